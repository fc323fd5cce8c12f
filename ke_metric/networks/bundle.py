"""Networks on disk that travel: config.json and model.safetensors, rebuilt anywhere without pickle.

A stored network is its architecture (how the dense network is built), the attributes in which it differs from that
(`settings`), and every parameter and buffer, with how each one lies in memory. A slim network, one that was split and
cut again, and a dense network are stored alike.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ke_metric.arrays import CHANNELS_LAST, memory_format_of, tensors_of
from ke_metric.disk import FolderKind, require_free, whole_folder
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.networks.bundle_config import (
    CONFIG,
    FORMAT_VERSION,
    WEIGHTS,
    Architecture,
    Description,
    NetworkCard,
    TensorFacts,
    WeightsFile,
    installed_versions,
    read_description,
    require_names_fit,
)
from ke_metric.networks.widths import apply_settings, find_settings

# A safetensors file begins with the length of its header, 8 bytes; its readers allow this much.
LARGEST_HEADER = 100_000_000
NO_CARD = NetworkCard()


def _is_stored_network(path: Path) -> bool:
    if not path.is_dir() or {entry.name for entry in path.iterdir()} != {CONFIG, WEIGHTS}:
        return False
    try:
        document = json.loads((path / CONFIG).read_bytes())
    except (OSError, RecursionError, ValueError):
        return False
    # Other libraries use the same two names.
    return isinstance(document, dict) and {"format_version", "architecture", "tensors", "weights"} <= document.keys()


STORED_NETWORK = FolderKind("a stored network", f"{CONFIG}, {WEIGHTS}", _is_stored_network)


def save_network(
    network: nn.Module,
    path: Path | str,
    *,
    architecture: Architecture,
    card: NetworkCard = NO_CARD,
    overwrite: bool = False,
) -> None:
    """Store a network as a folder with config.json and model.safetensors, whole or not at all.

    What was written is loaded and compared before it takes its place.

    Args:
        network: The network, on any device; unchanged. Its mode (train or eval), gradients and hooks that run only
            backward are not stored.
        path: Folder to make.
        architecture: How the dense network is built that this one was cut from, or is.
        card: Split, normalization and class names, for whoever loads it.
        overwrite: Replace the stored network that is there.

    Raises:
        KeMetricError: The folder is taken, the disk is full, the architecture cannot be built, the network differs
            from it in more than widths and plain attributes, or the class names are not one for each class.
    """
    place = require_free(Path(path), overwrite=overwrite, kind=STORED_NETWORK)
    dense = architecture.build()
    try:
        require_names_fit(card.class_names, architecture)
        settings = find_settings(network, dense)
        require_same_tensors(network, dense)
        weights = to_bytes(network)
    except ValueError as error:
        raise KeMetricError(
            f"{path}: the network cannot be stored: {error}. Architecture: {architecture.model_dump_json()}",
            ExitCode.RECIPE,
        ) from error
    description = Description(
        format_version=FORMAT_VERSION,
        versions=installed_versions(),
        architecture=architecture,  # type: ignore[arg-type]  # pydantic takes the kinds that there are
        embedding_size=architecture.embedding_size,
        **{name: getattr(card, name) for name in NetworkCard.model_fields},
        settings=settings,
        tensors={name: describe(tensor) for name, tensor in tensors_of(network).items()},
        weights=WeightsFile(bytes=len(weights), sha256=hashlib.sha256(weights).hexdigest()),
    )
    with whole_folder(place, overwrite=overwrite) as temporary:
        (temporary / WEIGHTS).write_bytes(weights)
        (temporary / CONFIG).write_text(description.to_json(), encoding="utf-8")
        _require_equal(load_network(temporary), network)


def load_network(path: Path | str, *, device: torch.device | str = "cpu") -> nn.Module:
    """Load a network that `save_network` stored, in eval mode: an ordinary network, to be used, trained or split.

    Nothing of the files is executed: they hold names, numbers and text, which are checked against each other and
    against the dense network of the architecture.

    Raises:
        KeMetricError: A file is missing, truncated, was changed, is none of ours or of another format version; the
            architecture cannot be built here; or what is stored does not fit it.
    """
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise KeMetricError(
            f"{folder}: {what}; a stored network is a folder with {CONFIG} and {WEIGHTS}", ExitCode.DATA
        )
    description = read_description(folder)
    stored = read_weights(folder / WEIGHTS, description.weights, description.tensors)
    try:
        network = description.architecture.build()
    except KeMetricError as error:
        code = ExitCode.ENVIRONMENT if error.exit_code is ExitCode.ENVIRONMENT else ExitCode.DATA
        raise KeMetricError(f"{folder / CONFIG}: {error}{description.other_versions}", code) from error
    try:
        apply_settings(network, description.settings)
        replace_tensors(network, stored, description.tensors)
    except ValueError as error:
        raise KeMetricError(
            f"{folder / CONFIG}: does not fit its own architecture: {error}{description.other_versions}",
            ExitCode.DATA,
        ) from error
    return network.eval().to(device)


def _require_equal(loaded: nn.Module, network: nn.Module) -> None:
    """Check, before anybody relies on it, that what can be loaded is what was to be stored."""
    assert not find_settings(network, loaded), "attributes are not those that were stored"
    ours, theirs = tensors_of(network), tensors_of(loaded)
    for name, tensor in ours.items():
        copy = theirs[name]
        assert type(tensor) is type(copy), (name, type(tensor), type(copy))
        assert describe(tensor) == describe(copy), (name, describe(tensor), describe(copy))
        assert _bits(tensor) == _bits(copy), (name, "values differ")


def _bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def describe(tensor: Tensor) -> TensorFacts:
    """Return how a tensor lies in memory; a view with gaps, or in another order, counts as contiguous."""
    return TensorFacts(
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        channels_last=memory_format_of(tensor) is not torch.contiguous_format,
        frozen=isinstance(tensor, nn.Parameter) and not tensor.requires_grad,
    )


def to_bytes(network: nn.Module) -> bytes:
    """Return the content of model.safetensors.

    Raises:
        ValueError: A tensor without values, of a special kind, or of a number type that safetensors does not have.
    """
    copies = {}
    for name, tensor in tensors_of(network).items():
        if tensor.is_meta or tensor.layout is not torch.strided or type(tensor) not in (Tensor, nn.Parameter):
            kind = f"{type(tensor).__name__}, {tensor.layout}, on {tensor.device}"
            raise ValueError(f"{name} is no ordinary tensor with values in memory ({kind})")
        # Copies are given: safetensors refuses tensors that share memory.
        copies[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    try:
        return safetensors.torch.save(copies, metadata={"format": "pt"})
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"safetensors: {type(error).__name__}: {error}") from error


def require_same_tensors(network: nn.Module, dense: nn.Module) -> None:
    """Check that the network has the tensors of its architecture, by name, and the same ones tied.

    Raises:
        ValueError: It has not.
    """
    ours, theirs = _first_names(network), _first_names(dense)
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{name} is {_in_words(name, ours)} in the network, {_in_words(name, theirs)} in its architecture"
            )


def _first_names(network: nn.Module) -> dict[str, str]:
    """Return the first name of every parameter and buffer: its own, or that of the tensor it is tied to."""
    first = {id(tensor): name for name, tensor in tensors_of(network).items()}
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    return {name: first[id(tensor)] for name, tensor in named}


def _in_words(name: str, first_names: Mapping[str, str]) -> str:
    if name not in first_names:
        return "absent"
    return "a tensor of its own" if first_names[name] == name else f"tied to {first_names[name]}"


def read_weights(path: Path, file: WeightsFile, stated: Mapping[str, TensorFacts]) -> dict[str, Tensor]:
    """Return the tensors of model.safetensors: those that config.json names, of the types and shapes it states."""
    content = _read_bytes(path, file)
    try:
        stored = safetensors.torch.load(content)
    except (SafetensorError, AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _refusal(path, content, f"no safetensors file ({type(error).__name__}: {error})") from error
    for name in {**stated, **stored}:
        if name not in stored or name not in stated:
            has, lacks = (WEIGHTS, CONFIG) if name in stored else (CONFIG, WEIGHTS)
            raise KeMetricError(f"{path}: {name!r} is in {has} but not in {lacks}", ExitCode.DATA)
        facts = describe(stored[name])
        if (facts.shape, facts.dtype) != (stated[name].shape, stated[name].dtype):
            raise KeMetricError(
                f"{path}: {name!r} is {facts.dtype} {list(facts.shape)}, by {CONFIG} {stated[name].dtype} "
                f"{list(stated[name].shape)}",
                ExitCode.DATA,
            )
    return stored


def _read_bytes(path: Path, stated: WeightsFile) -> bytes:
    """Return the content of a file that is exactly what config.json states; no more is ever read or allocated."""
    if not path.is_file():
        raise KeMetricError(f"{path}: no such file; {CONFIG} is there, its weights are not", ExitCode.DATA)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(stated.bytes if size == stated.bytes else 8)
    except OSError as error:
        raise KeMetricError(f"{path}: cannot be read: {error}", ExitCode.DATA) from error
    if size != stated.bytes:
        raise _refusal(path, content, f"has {size:,} bytes, by {CONFIG} {stated.bytes:,}: truncated, or another file")
    if hashlib.sha256(content).hexdigest() != stated.sha256:
        reason = f"was changed or damaged since it was written (its SHA-256 is not that of {CONFIG})"
        raise _refusal(path, content, reason)
    return content


def _refusal(path: Path, content: bytes, reason: str) -> KeMetricError:
    """Return the error for a file that is not what it should be; a pickle is called one."""
    opcode_of_pickle = content[:1] == b"\x80" and int.from_bytes(content[:8], "little") > LARGEST_HEADER
    if opcode_of_pickle or content[:4] == b"PK\x03\x04":
        reason = "no safetensors file but a pickle (torch.save), which can run code when it is read; it was not"
    return KeMetricError(f"{path}: {reason}", ExitCode.DATA)


def replace_tensors(network: nn.Module, stored: Mapping[str, Tensor], stated: Mapping[str, TensorFacts]) -> None:
    """Put stored tensors into a network, in place of all of its own; what is tied stays tied.

    Raises:
        ValueError: The names are not the same, or a tensor cannot be laid out or trained as stated.
    """
    own = tensors_of(network)
    for name in stored:
        if name not in own:
            raise ValueError(f"there is no tensor {name!r} in it{closest(name, own)}")
    for name in own:
        if name not in stored:
            raise ValueError(f"no tensor is stored for {name!r}")
    places = {id(tensor): _place(stored[name], stated[name], tensor) for name, tensor in own.items()}
    for module in network.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                # Torch's recurrent layers keep a second list of their parameters, which setattr knows.
                setattr(module, name, places[id(tensor)])


def _place(stored: Tensor, facts: TensorFacts, place: Tensor) -> Tensor:
    """Return a stored tensor as the parameter or buffer it is: in memory of its own, laid out as it was."""
    memory_format = torch.contiguous_format
    if facts.channels_last:
        if stored.ndim not in CHANNELS_LAST:
            raise ValueError(f"channels_last of a tensor with {stored.ndim} dimensions")
        memory_format = CHANNELS_LAST[stored.ndim]
    copy = torch.empty(stored.shape, dtype=stored.dtype, device="cpu", memory_format=memory_format).copy_(stored)
    if not isinstance(place, nn.Parameter):
        return copy
    if not facts.frozen and not (copy.is_floating_point() or copy.is_complex()):
        raise ValueError(f"a parameter of {facts.dtype} that is not frozen")
    return nn.Parameter(copy, requires_grad=not facts.frozen)
