"""Networks on disk that travel: config.json and model.safetensors, rebuilt anywhere without pickle.

A stored network is its architecture (how the dense network is built), the attributes in which it differs from that
(`settings`), and every parameter and buffer. A slim network, one that was split and cut again, and a dense network
are stored alike.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.architecture import Architecture
from ke_metric.networks.description import (
    CONFIG,
    FORMAT_VERSION,
    WEIGHTS,
    Description,
    NetworkCard,
    WeightsFile,
    installed_versions,
    read_description,
    require_names_fit,
)
from ke_metric.networks.folders import require_free, whole_folder
from ke_metric.networks.settings import apply_settings, find_settings
from ke_metric.networks.tensors import (
    describe,
    read_weights,
    replace_tensors,
    require_same_tensors,
    tensors_of,
    to_bytes,
)

NO_CARD = NetworkCard()


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
        path: The folder to make.
        architecture: How the dense network is built that this one was cut from, or is.
        card: Split, normalization and class names, for whoever loads it.
        overwrite: Replace the stored network that is there.

    Raises:
        KeMetricError: The folder is taken, the disk is full, the architecture cannot be built, the network differs
            from it in more than widths and plain attributes, or the class names are not one for each class.
    """
    place = require_free(Path(path), overwrite=overwrite)
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

    Args:
        path: The folder.
        device: Where the network is put.

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
