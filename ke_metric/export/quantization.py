"""An ONNX file of fp32 numbers as one of 8-bit integers, by ONNX Runtime's own quantization.

Shapes: N pictures, S image size in pixels.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ke_metric.export.onnx_file import INPUT, export_error
from ke_metric.export.verification import PixelArray, unit_range

Int8 = Literal["none", "dynamic", "static"]
CALIBRATION_BATCH = 32


def quantize(source: Path, target: Path, calibration: PixelArray | None) -> None:
    """Write an ONNX file of 8-bit integers.

    Static: the range of every activation is measured on pictures, once and for all (QDQ nodes, unsigned activations,
    weights of 7 bits with a scale for each channel: with 8 bits, processors without VNNI overflow). Dynamic: it is
    measured anew in every batch; convolutions of that kind are slow. Its weights are unsigned: convolutions of signed
    ones are not in every version of ONNX Runtime.

    Args:
        source: A file that `write_onnx` wrote.
        target: The file to make.
        calibration: uint8 [N, S, S, 3] for static ranges; None: dynamic ones.

    Raises:
        KeMetricError: ONNX Runtime cannot do it with this network.
    """
    try:
        _quantize(source, target, calibration)
    except OSError:
        raise
    except Exception as error:
        # ONNX Runtime's exceptions have no common class of their own.
        raise export_error("ONNX of 8-bit integers", error) from error


def _quantize(source: Path, target: Path, calibration: PixelArray | None) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        # The symbolic inference does not know the batch of a graph from torch.export, and stops with a TypeError.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        _forget_shapes_of_weights(prepared)
        if calibration is None:
            quantization.quantize_dynamic(prepared, target, weight_type=quantization.QuantType.QUInt8)
            return
        quantization.quantize_static(
            prepared,
            target,
            _reader(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )


def _forget_shapes_of_weights(path: Path) -> None:
    """Take out of a graph what it says of the shapes of its weights, which their values tell anyway.

    Before onnxruntime 1.32, `quantize_dynamic` turns the weight of a linear layer round and leaves the shape that is
    told beside it; ONNX's shape inference then refuses the graph, because the two differ.
    """
    import onnx

    model = onnx.load(path)
    weights = {weight.name for weight in model.graph.initializer}
    others = [told for told in model.graph.value_info if told.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(others)
    onnx.save(model, path)


def _reader(pictures: PixelArray) -> Any:
    """Return what ONNX Runtime takes batches of pictures from."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Gives a batch at each call, and None at the end."""

        def __init__(self) -> None:
            starts = range(0, len(pictures), CALIBRATION_BATCH)
            self._batches = iter([pictures[start : start + CALIBRATION_BATCH] for start in starts])

        def get_next(self) -> dict[str, Any] | None:
            """Return the next batch."""
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: unit_range(batch)}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's advice, given on the root logger, from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
