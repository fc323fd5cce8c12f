"""`ke-metric slim` and `ke-metric export`: a network as one that travels, or as a file of another runtime.

What is exported is compared with PyTorch on real pictures before it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ke_metric.arrays import IntArray, PixelArray
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli.display import Outcome, counting, say, say_network
from ke_metric.cli.lineages import generation_of, load_either, open_lineage, tell_data_changes
from ke_metric.cli.options import ModelChoice
from ke_metric.disk import require_free
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import choose_backend
from ke_metric.export.export import Evidence, ExportSettings, export, require_place
from ke_metric.export.record import ExportRecord, LabelledPictures, ScoredPictures, require_enough
from ke_metric.generation import Scores
from ke_metric.images.decoding import in_order
from ke_metric.images.image_set import ImageSet
from ke_metric.images.pixel_store import fingerprint
from ke_metric.lineage.report import is_share
from ke_metric.lineage.store import Lineage
from ke_metric.networks.bundle import STORED_NETWORK, save_network
from ke_metric.networks.bundle_config import WEIGHTS, Architecture
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.networks.sizes import cut_to_size
from ke_metric.randomness import numpy_generator
from ke_metric.retrieval.embedder import PictureNetwork
from ke_metric.retrieval.network_choice import card_of, choose_network
from ke_metric.retrieval.picture_list import list_pictures
from ke_metric.scoring import count_parameters


def store_network(
    *,
    which: str | None,
    network: str,
    rate: float | None,
    lineage: Path | None,
    folder: Path,
    overwrite: bool,
    size: int | None = None,
) -> Outcome:
    """Store a network of a generation, its slim or its dense one, as config.json and model.safetensors.

    Args:
        which: A number, `last` or `best`; None: the best one whose weights were kept.
        network: `slim` or `dense`.
        rate: Split rate of the slim network; None: `split.rate`.
        lineage: The lineage's folder; the newest one when None.
        folder: The folder to make.
        overwrite: Replace the stored network that is there.
        size: Keep so many of the first numbers of an embedding; None: all.

    Raises:
        KeMetricError: No such lineage or generation, weights not kept, no slim network or none of this rate, no
            embeddings of such a size, or the folder is taken.
    """
    require_free(folder, overwrite=overwrite, kind=STORED_NETWORK)
    store = open_lineage(lineage)
    choice = choose_network(store, generation_of(which), network, rate)
    say_network(f"{store.folder}, {choice.words}", choice.reason)
    generation = store.load(choice.number)
    class_names = generation.provenance.class_names
    networks = LineageNetworks(store.recipe, len(class_names))
    # Laid out in memory as they were when they were scored.
    dense, _ = networks.restore(generation)
    slim = networks.slim(dense, generation, choice.rate) if choice.has_slim else None
    stored = dense if slim is None or network == "dense" else slim
    architecture = Architecture.of_recipe(store.recipe, classes=len(class_names) if class_names else None)
    card, trained = card_of(choice, generation, slim=stored is slim), store.recipe.network.nested_sizes
    stored, architecture, card, told = cut_to_size(
        stored, architecture, card, size=size, trained=trained, what=str(store.folder)
    )
    if told:
        say(f"stored{told}")
    save_network(stored, folder, architecture=architecture, card=card, overwrite=overwrite)
    document: dict[str, Any] = {
        "lineage": str(store.folder),
        "generation": generation.number,
        "network": network,
        **({"rate": choice.rate} if choice.rate is not None else {}),
        "folder": str(folder),
        "dense_parameters": count_parameters(dense),
        "dense_bytes": sum(tensor.nbytes for tensor in generation.weights.values()),
        "dense": dict(generation.scorecard.dense),
    }
    if slim is not None:
        document["slim_parameters"] = count_parameters(slim)
        document["slim_bytes"] = sum(tensor.nbytes for tensor in slim.state_dict().values())
    document[f"{network}_bytes"] = (folder / WEIGHTS).stat().st_size
    slim_name = choice.name if network == "slim" else "slim"
    if scored := generation.scorecard.slims.get(slim_name):
        document["slim"] = dict(scored.scores)
    document |= {"size": architecture.embedding_size} if told else {}
    return Outcome(document, _slim_table(document, slim_name))


def _slim_table(document: dict[str, Any], slim_name: str) -> Table:
    size = f", size {document['size']} (the scores are those of all numbers)" if "size" in document else ""
    table = Table(title=f"{document['folder']}: {document['lineage']}{size}", title_justify="left")
    networks = [name for name in ("dense", "slim") if f"{name}_parameters" in document]
    table.add_column(f"generation {document['generation']}")
    for name in networks:
        title = slim_name if name == "slim" else name
        table.add_column(f"{title}, stored" if name == document["network"] else title, justify="right")
    table.add_row("parameters", *(f"{document[f'{name}_parameters']:,}" for name in networks))
    table.add_row("size", *(f"{document[f'{name}_bytes'] / 1e6:,.1f} MB" for name in networks))
    scores: dict[str, Scores] = {name: document.get(name, {}) for name in networks}
    for score in dict.fromkeys(score for found in scores.values() for score in found):
        table.add_row(score, *(_shown(score, found.get(score)) for found in scores.values()))
    return table


def _shown(name: str, value: float | None) -> str:
    """Return a share in percent, a count of pictures as a whole number, other scores as they are."""
    if value is None:
        return "-"
    if is_share(name):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if name.startswith("queries") else f"{value:.3f}"


COMPARED = 96
"""Pictures that file and network are compared on, spread over all there are: full batches of 1, 3 and 32."""
CALIBRATED = 256
"""Pictures that static ranges are measured on."""
SCORED_BATCH = 256


def export_network(
    *, model: ModelChoice, folder: Path, settings: ExportSettings, pictures: Path | None, overwrite: bool
) -> Outcome:
    """Export a network.

    Args:
        model: Which one; it runs on the processor, whose numbers are those of every other one.
        folder: Folder to make.
        settings: What is written.
        pictures: A folder of pictures to compare on; None: the test part of the lineage's benchmark.
        overwrite: Replace the export that is there.

    Raises:
        KeMetricError: The folder is taken, there is no such network, there are too few pictures, or the file differs
            from the network.
    """
    require_place(folder, settings, overwrite=overwrite)
    if model.bundle is not None and pictures is None:
        raise KeMetricError(
            "--bundle: a stored network knows no pictures; name a folder of at least 32 with --pictures",
            ExitCode.USAGE,
        )
    chosen = replace(model, device="cpu")
    if model.bundle is None and model.lineage is None:
        # Looked for once: another lineage may become the newest one meanwhile.
        chosen = replace(chosen, lineage=open_lineage(None).folder)
    network = load_either(chosen)
    if pictures is not None:
        evidence = _of_folder(pictures, network, settings)
    else:
        assert chosen.lineage is not None, "a bundle has pictures named"
        evidence = _of_lineage(Lineage(chosen.lineage), network, settings)
    with counting("exporting"):
        record = export(network, folder, settings=settings, evidence=evidence, overwrite=overwrite)
    return Outcome({"folder": str(folder)} | record.document, _table(folder, record))


def _of_folder(folder: Path, network: PictureNetwork, settings: ExportSettings) -> Evidence:
    items = list_pictures([folder], labels=False).items
    paths = [Path(item.path) for item in items]
    require_enough(len(paths), str(folder))

    def prepared(numbers: IntArray) -> PixelArray:
        return np.stack(list(in_order(lambda n: network.prepare(paths[n]), numbers)))

    static = settings.int8 == "static"
    return Evidence(
        prepared(_spread(len(paths))),
        source=str(folder),
        calibration=prepared(_sample(len(paths), seed=0)) if static else None,
    )


def _of_lineage(store: Lineage, network: PictureNetwork, settings: ExportSettings) -> Evidence:
    recipe = store.recipe
    benchmark = load_benchmark(recipe.data, recipe.task)
    tell_data_changes(store, fingerprint(benchmark))
    query, train = benchmark.query, benchmark.train
    source = f"queries of {benchmark.name}"
    require_enough(len(query), source)
    scored = None
    if settings.int8 != "none":
        if recipe.task == "retrieval":
            # Known before a picture is decoded.
            choose_backend(recipe.evaluation.backend)
        classes = recipe.task == "classification"
        alone = classes or benchmark.leave_one_out
        gallery = None if alone else _labelled(benchmark.gallery, network)
        scored = ScoredPictures(_labelled(query, network), gallery, recipe.evaluation.backend, classes)
    calibrated = _sample(len(train), seed=recipe.seed) if settings.int8 == "static" else None
    return Evidence(
        _prepared(query.at(_spread(len(query))), network),
        source=source,
        calibration=None if calibrated is None else _prepared(train.at(calibrated), network),
        scored=scored,
    )


def _spread(count: int) -> IntArray:
    """Return numbers of pictures, evenly spread: benchmarks and folders are sorted by class."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, COMPARED)).astype(np.int64))


def _sample(count: int, *, seed: int) -> IntArray:
    return np.sort(numpy_generator(seed, 0, "calibration").permutation(count)[:CALIBRATED])


def _labelled(images: ImageSet, network: PictureNetwork) -> LabelledPictures:
    return LabelledPictures(_batches(images, network), images.labels, images.keys)


def _batches(images: ImageSet, network: PictureNetwork) -> Iterator[PixelArray]:
    prepared = in_order(lambda n: network.prepare(images.read(n), images.keys[n]), range(len(images)))
    while batch := list(islice(prepared, SCORED_BATCH)):
        yield np.stack(batch)


def _prepared(images: ImageSet, network: PictureNetwork) -> PixelArray:
    return np.concatenate(list(_batches(images, network)))


def _table(folder: Path, record: ExportRecord) -> Table:
    title = f"{folder}: {record.embedder} ({record.embedder_digest[:12]})"
    table = Table(show_header=False, title=title, title_justify="left")
    for name, facts in record.files.items():
        table.add_row(name, f"{facts.bytes / 1e6:,.1f} MB")
    table.add_row("input", f"images, float32 [B, 3, {record.image_size}, {record.image_size}] in [0, 1]")
    table.add_row("output", f"{record.output}, float32 [B, {record.dimension}]")
    table.add_row("compared on", f"{record.verification.pictures} pictures: {record.verification.source}")
    for found in record.verification.batches:
        what, share = found.same
        table.add_row(
            f"batch {found.batch}",
            f"max |difference| {found.max_difference:.2g}, smallest cosine {found.smallest_cosine:.6f}, "
            f"same {what} {share:.1%}",
        )
    score, cost = ("top-1", record.top1) if record.output == "logits" else ("Recall@1", record.recall_at_1)
    if cost is not None:
        told = f"{cost.pytorch:.4f} with PyTorch, {cost.exported:.4f} with the file ({cost.points:+.2f} points lost)"
        table.add_row(score, told)
    elif record.int8 != "none":
        table.add_row(score, "not measured: the pictures have no labels")
    return table
