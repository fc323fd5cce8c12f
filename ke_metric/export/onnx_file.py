"""Files of other runtimes: ONNX in fp32 or 8-bit integers, run by ONNX Runtime; and programs of torch.export.

A .pt2 file may hold pickles, which run code when they are loaded; nothing here loads one that it did not just write.
Shapes: B batch, D embedding or classes, N pictures, S image size in pixels.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ke_metric.arrays import FloatArray, PixelArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.export.record import ONNX_FILE, read_record
from ke_metric.images.preparation import unit_range
from ke_metric.networks.dense import PictureModule

Int8 = Literal["none", "dynamic", "static"]
INPUT = "images"
OUTPUTS = ("embeddings", "logits")
CLASS_NAMES = "class_names"
"""Key of the file's metadata; its value is a JSON list."""
OPSET = 20
LARGEST_FILE = 2**31 - 2**22
"""Bytes of weights that fit into one ONNX file: protobuf ends at 2 GiB, and the graph takes a little."""
EXAMPLES = 2
"""Pictures that the graph is followed with: with a single one torch.export takes the batch for a constant."""
ANY_BATCH = ({0: torch.export.Dim("batch", min=1)},)
CALIBRATION_BATCH = 32
ERRORS_ONLY = 3
"""ONNX Runtime's severity: it warns of things in its own optimisation that nobody can mend."""


def require_onnx() -> None:
    """Raise KeMetricError (ENVIRONMENT) unless what writes and runs ONNX files is installed."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise KeMetricError(
            f"{', '.join(missing)}: not installed, ONNX needs it: pip install 'ke_metric[export]'",
            ExitCode.ENVIRONMENT,
        )


def write_onnx(
    module: PictureModule,
    path: Path,
    *,
    image_size: int,
    output: str = "embeddings",
    class_names: Sequence[str] = (),
) -> None:
    """Write a module as an ONNX file that takes any number of pictures at a time.

    Args:
        module: On the processor, in eval mode; unchanged.
        path: The file; weights of more than 2 GiB lie in one more beside it.
        image_size: S.
        output: What it gives, one of `OUTPUTS`.
        class_names: Names of the classes in the order of the logits, for the file's metadata.

    Raises:
        KeMetricError: The network cannot be exported.
    """
    weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    with _exporting("ONNX"):
        program = torch.onnx.export(
            module,
            _example(image_size),
            dynamo=True,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes=ANY_BATCH,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None, "with dynamo=True there is a program"
    for node in program.model.graph.all_nodes():
        # Stack traces, with the paths of this machine, which are nobody else's business.
        node.metadata_props.clear()
    if class_names:
        program.model.metadata_props[CLASS_NAMES] = json.dumps(list(class_names))
    program.save(path, external_data=weights > LARGEST_FILE)


def write_program(module: PictureModule, path: Path, *, image_size: int) -> None:
    """Write a module as a .pt2 file that takes any number of pictures at a time; otherwise as `write_onnx`."""
    with _exporting("a program of torch.export"), torch.no_grad():
        program = torch.export.export(module, _example(image_size), dynamic_shapes=ANY_BATCH)
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
            vectors: FloatArray = network(unit_range(pixels)).numpy()
        return vectors

    return embed


def _example(image_size: int) -> tuple[torch.Tensor]:
    return (torch.zeros(EXAMPLES, 3, image_size, image_size),)


@contextmanager
def _exporting(what: str) -> Iterator[None]:
    """Say in words what a network cannot be exported as; torch's reports are not for stdout, which is for results."""
    with redirect_stdout(sys.stderr):
        try:
            yield
        except Exception as error:
            raise export_error(what, error) from error


def export_error(what: str, error: Exception) -> KeMetricError:
    """Return what a user sees when a network cannot be exported."""
    lines = str(error).strip().splitlines() or [""]
    return KeMetricError(f"the network cannot be exported as {what}: {type(error).__name__}: {lines[0]}")


class OnnxNetwork:
    """An exported ONNX file, run by ONNX Runtime on the processor.

    Args:
        path: The file, or the folder that `ke-metric export` made, whose checksums are then compared.
        threads: Of one call; as many as there are cores when None.

    Attributes:
        output: `embeddings` or `logits`: what it gives.
        class_names: Names of the classes in the order of the logits; empty for embeddings.
        dimension: D.
        image_size: S.
        digest: Of its vectors, as an index knows it; None for a file alone.

    Raises:
        KeMetricError: ONNX Runtime is not installed, or the file is missing, damaged, or not of `ke-metric export`.
    """

    def __init__(self, path: Path | str, *, threads: int | None = None) -> None:
        require_onnx()
        place = Path(path)
        self.digest: str | None = None
        if place.is_dir():
            record = read_record(place)
            if record.format != "onnx":
                raise KeMetricError(f"{place}: is of format {record.format!r}, must be 'onnx'", ExitCode.DATA)
            place, self.digest = place / ONNX_FILE, record.digest
        self._session = _open(place, threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        names = [value.name for value in (*inputs, *outputs)]
        if len(names) != 2 or names[0] != INPUT or names[1] not in OUTPUTS:
            raise KeMetricError(f"{place}: was not made by ke-metric export: input and output differ", ExitCode.DATA)
        self.output = names[1]
        told = self._session.get_modelmeta().custom_metadata_map.get(CLASS_NAMES, "[]")
        self.class_names: tuple[str, ...] = tuple(json.loads(told))
        self.image_size = int(inputs[0].shape[2])
        self.dimension = int(outputs[0].shape[1])

    def __call__(self, images: PixelArray | FloatArray) -> FloatArray:
        """Return the embeddings float32 [B, D], L2-normalised, or the logits.

        Args:
            images: Prepared pictures, uint8 [B, S, S, 3] (`Embedder.prepare`) or float32 [B, 3, S, S] in [0, 1].

        Raises:
            KeMetricError: DATA: they have another shape or type, or other numbers.
        """
        size = self.image_size
        shapes = {np.dtype(np.uint8): (size, size, 3), np.dtype(np.float32): (3, size, size)}
        if images.shape[1:] != shapes.get(images.dtype):
            raise KeMetricError(
                f"pictures {list(images.shape)} of {images.dtype}, must be uint8 [B, {size}, {size}, 3] or float32 "
                f"[B, 3, {size}, {size}]",
                ExitCode.DATA,
            )
        if images.dtype == np.float32 and not bool(((images >= 0) & (images <= 1)).all()):
            raise KeMetricError(
                f"pictures of float32 must lie in [0, 1], these in [{images.min():.3g}, {images.max():.3g}]; "
                "standardisation is inside the file",
                ExitCode.DATA,
            )
        batch = unit_range(images.astype(np.uint8, copy=False)).numpy() if images.dtype == np.uint8 else images
        vectors: npt.NDArray[np.float32] = self._session.run([self.output], {INPUT: batch})[0]
        return vectors


def _open(path: Path, threads: int | None) -> Any:
    """Return the session of a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if not path.is_file():
        raise KeMetricError(f"{path}: no such file", ExitCode.DATA)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's exceptions have no common class of their own.
        raise KeMetricError(f"{path}: ONNX Runtime cannot load it: {error}", ExitCode.DATA) from error


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
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
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
        except OSError:
            raise
        except Exception as error:
            # ONNX Runtime's exceptions have no common class of their own.
            raise export_error("ONNX of 8-bit integers", error) from error


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
    """Return what ONNX Runtime takes batches of pictures from, and None at the end."""
    from onnxruntime.quantization import CalibrationDataReader

    starts = range(0, len(pictures), CALIBRATION_BATCH)
    batches = iter([pictures[start : start + CALIBRATION_BATCH] for start in starts])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: unit_range(batch).numpy()}

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
