"""An embedder or a predictor as a program of torch.export, in a .pt2 file.

Such a file may hold pickles, which run code when they are loaded; nothing here loads one that it did not just write.

Shapes: B batch, D embedding or classes, S image size in pixels.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ke_metric.evaluation.embeddings import FloatArray
from ke_metric.export.onnx_file import EXAMPLES, export_error
from ke_metric.export.verification import PixelArray, unit_range
from ke_metric.retrieval.module import PictureModule


def write_program(module: PictureModule, path: Path, *, image_size: int) -> None:
    """Write a module as a .pt2 file that takes any number of pictures at a time.

    Args:
        module: On the processor, in eval mode; unchanged.
        path: The file.
        image_size: S.

    Raises:
        KeMetricError: The network cannot be exported.
    """
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        try:
            program = torch.export.export(
                module,
                (torch.zeros(EXAMPLES, 3, image_size, image_size),),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )
        except Exception as error:
            raise export_error("a program of torch.export", error) from error
    for node in program.graph.nodes:
        # It has the paths of this machine, which are nobody else's business.
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path)


def run_program(path: Path) -> Callable[[PixelArray], FloatArray]:
    """Load a .pt2 file that was just written; never one from elsewhere.

    Returns:
        A function of prepared pictures uint8 [B, S, S, 3] that gives embeddings, or logits, float32 [B, D].
    """
    network = torch.export.load(path).module()

    def embed(pixels: PixelArray) -> FloatArray:
        with torch.no_grad():
            vectors: FloatArray = network(torch.from_numpy(unit_range(pixels))).numpy()
        return vectors

    return embed
