"""Pictures to embeddings by the workers of a Ray cluster: files of Parquet, of which an index is built.

    python -m eval.scaling.ray_embedding photos -o parts --network slim --workers 8 --address auto
    ke-metric index build --from 'parts/part-*.parquet' -o photos.index --bundle slim

It needs ke_metric[parquet] and ray[data] on every machine, and pictures, network and output at the same paths there.
Every worker loads the network once. A part of the pictures is one row of the data set and one file, which is whole or
absent: when a worker is killed, Ray gives its part to another one, which writes the same file. Started again, it goes
on: parts that are there stay, where id, path and label of their pictures are the same. A folder with other files,
such as those of another --rows, is refused.

The vectors are those of `ke-metric embed`, bit for bit, where --rows is a multiple of the batch size, the machines
have the same kind of processor and versions, and --threads is the number of threads that the other one has
(OMP_NUM_THREADS).

On stdout a JSON document for every part that is done, in no order; on stderr what was left out, and why.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from ke_metric import Embedder
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.parquet_files import embed_part, parts_of, require_parts_place
from ke_metric.retrieval.picture_list import list_pictures
from ke_metric.stores.contract import Item


@dataclass(frozen=True)
class Work:
    """What every worker is told.

    Attributes:
        network: Folder of a lineage or of a bundle.
        generation: Of a lineage; None: the best one kept.
        folder: Where the files go.
        threads: Of each worker.
        gpus: Of each worker, 0 for none; 0.5 puts two workers on one GPU.
    """

    network: str
    generation: str | None
    folder: str
    threads: int
    gpus: float


class PartEmbedder:
    """A worker: it loads the network once, and then embeds one part after another."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(work.threads)
        device = "cuda" if work.gpus else "cpu"
        self.embedder = Embedder.load(work.network, work.generation, device=device)
        self.folder = Path(work.folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Embed one part and say what became of it."""
        started, used = time.perf_counter(), time.process_time()
        items = [Item(*texts) for texts in zip(row["id"], row["path"], row["label"], strict=True)]
        try:
            facts = embed_part(self.folder / row["part"], self.embedder, items)
        except KeMetricError as error:  # Ray would end with a report of its own
            return {"error": str(error), "exit_code": int(error.exit_code)}
        return {
            "part": row["part"],
            "count": facts.count,
            "left_out": [picture["reason"] for picture in facts.left_out],
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - used,
            "worker": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
        }


def embed_by_workers(items: Sequence[Item], work: Work, *, rows: int, workers: int) -> Iterator[dict[str, Any]]:
    """Embed the pictures of items by so many workers, `rows` to a file; yields what each part gave as it is done."""
    parts = [
        {"part": name, **{field: [getattr(item, field) for item in part] for field in ("id", "path", "label")}}
        for name, part in parts_of(items, rows)
    ]
    # A block for each part: it is what Ray gives to a worker, and gives to another one when that is killed.
    for done in (
        ray.data.from_items(parts, override_num_blocks=len(parts))
        .map(
            PartEmbedder,
            fn_constructor_args=(work,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=work.threads,
            num_gpus=work.gpus,
        )
        .iter_rows()
    ):
        if "error" in done:
            raise KeMetricError(done["error"], ExitCode(done["exit_code"]))
        yield done


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="folders of pictures, or CSV files with path,label")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the files")
    parser.add_argument("--network", required=True, help="folder of a bundle (ke-metric slim) or of a lineage")
    parser.add_argument("--gen", help="generation of a lineage; the best one kept when left out")
    parser.add_argument("--rows", type=int, default=10_240, help="pictures in a file")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--address", help="of the cluster; one of this machine is started when left out")
    return parser.parse_args()


def _tell(reasons: Iterable[str]) -> None:
    for reason in reasons:
        print(f"left out: {reason}", file=sys.stderr)


def main() -> None:
    """Embed, and print what each part gave."""
    given = _arguments()
    output = given.output.absolute()
    work = Work(str(Path(given.network).absolute()), given.gen, str(output), given.threads, given.gpus)
    listed = list_pictures(given.sources)
    _tell(picture.reason for picture in listed.left_out)
    require_parts_place(output, {name for name, _ in parts_of(listed.items, given.rows, "--rows")})
    Embedder.load(work.network, work.generation)  # what is wrong with it is better told here than by a worker
    # Ray prints lines of its own on stdout, until the very end.
    results, sys.stdout = sys.stdout, sys.stderr
    ray.init(address=given.address, log_to_driver=False)
    for done in embed_by_workers(listed.items, work, rows=given.rows, workers=given.workers):
        _tell(done["left_out"])
        print(json.dumps(done), file=results, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeMetricError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
