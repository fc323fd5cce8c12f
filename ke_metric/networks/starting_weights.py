"""Weights that a backbone starts from, read from a file: what of it matches, what is missing, what is left over.

Files of torchvision, timm, this package and of whatever trains their networks differ in what is wrapped around a
state dict and put before its names; the names and shapes of the backbone's own tensors find it. All of the backbone
is in the file, or it is refused: a part that stays random would be seen in the scores alone, if at all.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError, closest, some_of
from ke_metric.schema import Network

# State dicts lie this deep in a file, at most: {"model": {"teacher": {...}}}.
DEEPEST = 3
# Of two networks in one file that match alike, the averaged one is what its author scores: timm's and torchvision's
# `model_ema`, DINO's teacher; of MoCo's two, the one that was trained.
PREFERRED = ("ema", "teacher", "encoder_q")
SHOWN = 3
STEM_HINT = (
    ". network.stem = 'small' makes another first convolution: for weights of the standard stem set network.stem = "
    "'standard', with a data.image_size near the one that they were trained at (224, as a rule)"
)
STEM_REMARK = "network.stem = 'small': the weights should be those of a network that was trained with it, too"


@dataclass(frozen=True)
class StartingWeights:
    """What a file holds for a backbone.

    Attributes:
        file: Its path, as the recipe has it.
        sha256: Of its content.
        place: Where its state dict lies and what comes before the names there, `model: module.`; empty where neither.
        missing: Names of those that it does not: counters, of which no output depends.
        left_over: Names in its state dict that the backbone has no place for: the classifier.
        remark: What is to be known besides; empty where nothing is.
        tensors: Name in the backbone to the value in the file.
    """

    file: str
    sha256: str
    place: str
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    remark: str
    tensors: Mapping[str, Tensor]

    @property
    def matched(self) -> tuple[str, ...]:
        """Names of the backbone's tensors that the file holds."""
        return tuple(self.tensors)

    def describe(self) -> dict[str, Any]:
        """Return what is recorded: the file, and how many tensors there are of each kind."""
        counts = {"matched": len(self.matched), "missing": len(self.missing), "left_over": len(self.left_over)}
        return {"file": self.file, "sha256": self.sha256, "place": self.place, **counts}

    @property
    def told(self) -> str:
        """What is told of it, a line for every group."""
        groups = {"matched": self.matched, "missing": self.missing, "left over": self.left_over}
        lines = [
            f"  {name:<9} {len(names):>5}{f'  {some_of(names, SHOWN)}' if names else ''}"
            for name, names in groups.items()
        ]
        place = f", at {self.place!r}" if self.place else ""
        head = f"starting weights: {self.file}{place} (SHA-256 {self.sha256[:12]})"
        return "\n".join([head, *lines, *([f"  {self.remark}"] if self.remark else [])])

    @torch.no_grad()
    def load_into(self, backbone: nn.Module) -> None:
        """Give the backbone that was matched, or one built alike, the values."""
        own = backbone.state_dict()
        for name, value in self.tensors.items():
            own[name].copy_(value)


@dataclass(frozen=True)
class _Candidate:
    """A state dict in the file, and what comes before the names that match there.

    `found` is name in the backbone to name in the state dict.
    """

    place: str
    prefix: str
    state: Mapping[str, Tensor]
    found: Mapping[str, str]

    @property
    def told(self) -> str:
        return ": ".join(part for part in (self.place, self.prefix) if part)


def match(network: Network, backbone: nn.Module, earlier_names: Mapping[int, str]) -> StartingWeights:
    """Find a backbone in the file that `network.weights` names.

    Args:
        network: The recipe's section; `weights` is set.
        backbone: The backbone, with tensors on any device; unchanged.
        earlier_names: `id` of a tensor of the backbone to the name that it had before its strides were blurred, for
            a file of a network that was not.

    Raises:
        KeMetricError: DATA: the file cannot be read. RECIPE: nothing in it matches, tensors of the backbone are not
            in it or of another shape, or the file is of a larger backbone.
    """
    assert network.weights is not None
    content, sha256 = read_file(network.weights)
    own = backbone.state_dict(keep_vars=True)
    renamed = {earlier_names.get(id(tensor), name): name for name, tensor in own.items()}
    candidates = list(_candidates(content, [{name: name for name in own}, renamed]))
    if not candidates:
        raise _nothing(content, network, own)
    chosen = _chosen(candidates, network)
    tensors = {name: chosen.state[key] for name, key in chosen.found.items()}
    used = set(chosen.found.values())
    left_over = [key for key in chosen.state if key not in used]
    _require_fit(own, tensors, _of_deeper_layers(backbone, left_over, chosen), network)
    return StartingWeights(
        file=network.weights,
        sha256=sha256,
        place=chosen.told,
        missing=tuple(name for name in own if name not in tensors),
        left_over=tuple(left_over),
        remark=STEM_REMARK if network.stem == "small" else "",
        tensors=tensors,
    )


def read_file(name: str) -> tuple[Any, str]:
    """Return what a file of weights holds, on the CPU, and the SHA-256 of its content; nothing in it is executed.

    Raises:
        KeMetricError: DATA: it is missing, a folder, closed to this process, damaged, or holds what only running its
            code could read.
    """
    if not is_there(name):
        raise _refused(name, _absent(Path(name).expanduser()))
    sha256 = file_digest(name)
    with _told_of_reading(name):
        return _content(name), sha256


def _content(name: str) -> Any:
    path = Path(name).expanduser()
    try:
        with path.open("rb") as file:
            head = file.read(9)
        # Its header, which is JSON, begins after 8 bytes that say how long it is.
        if head[8:] == b"{":
            return safetensors.torch.load_file(path)
        # Namespaces, which hold the arguments of the training in most files of torchvision and timm, execute nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    # Of these the file's content is not the reason.
    except (OSError, MemoryError):
        raise
    except SafetensorError as error:
        raise _refused(name, f"is no whole safetensors file ({error})") from error
    # Bytes that were made to look like a pickle may fail anywhere in torch's reader.
    except Exception as error:
        raise _refused(
            name,
            f"cannot be read without running code that it may hold ({_reason(error)}). Save the state dict alone, "
            "where you trust the file: torch.save(network.state_dict(), ...), or save_file(...) of safetensors.torch",
        ) from error


@contextmanager
def _told_of_reading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, MemoryError) as error:
        raise _refused(name, f"cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Return the kind of an error and the line of it that says most: of torch's, what it would have to run."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
    told = next((line for line in lines if "GLOBAL" in line), lines[0])
    return f"{type(error).__name__}: {told}"


def is_there(name: str) -> bool:
    """Return whether there is a file where `network.weights` names one.

    Raises:
        KeMetricError: DATA: the system does not let this process look there.
    """
    with _told_of_reading(name):
        return Path(name).expanduser().is_file()


def file_digest(name: str) -> str:
    """Return the SHA-256 of the content of a file, as `network.weights` names it.

    Raises:
        KeMetricError: DATA: it cannot be read.
    """
    with _told_of_reading(name), Path(name).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_same(name: str, now: str, before: str, when: str) -> None:
    """Refuse a file whose SHA-256 has changed since `when`, in words.

    Raises:
        KeMetricError: DATA.
    """
    if now != before:
        raise _refused(
            name,
            f"has changed since {when} (SHA-256 {now[:12]}, was {before[:12]}): put the file back, or begin another "
            "lineage with --lineage",
        )


def _absent(path: Path) -> str:
    if path.is_dir():
        inside = sorted(each.name for kind in ("*.safetensors", "*.pt", "*.pth") for each in path.glob(kind))
        return f"is a folder; name a file in it{f': {some_of(inside)}' if inside else ', which holds no weights'}"
    siblings = [each.name for each in path.parent.glob("*")] if path.parent.is_dir() else []
    return f"there is no such file{closest(path.name, siblings)}"


def _refused(name: str, why: str, code: ExitCode = ExitCode.DATA) -> KeMetricError:
    return KeMetricError(f"network.weights = {name!r}: {why}", code)


def _state_dicts(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping of names to tensors in what a file holds, and where it lies."""
    if not isinstance(content, Mapping) or len(place) > DEEPEST:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield ".".join(place), tensors
    for key, value in named.items():
        yield from _state_dicts(value, (*place, key))


def _candidates(content: Any, namings: Sequence[Mapping[str, str]]) -> Iterator[_Candidate]:
    """Yield every state dict with everything that may come before the backbone's names in it.

    Args:
        content: What the file holds.
        namings: Ways to name the backbone's tensors: name in a file to name in the backbone.
    """
    for place, state in _state_dicts(content):
        best: dict[str, dict[str, str]] = {}
        for naming in namings:
            for prefix, found in _by_prefix(state, naming).items():
                if len(found) > len(best.get(prefix, {})):
                    best[prefix] = found
        for prefix, found in best.items():
            yield _Candidate(place, prefix, state, found)


def _by_prefix(state: Mapping[str, Tensor], naming: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return for all that may come before the names what is found then: name in the backbone to name in the file."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key in state:
        parts = key.split(".")
        for start in range(len(parts)):
            own = naming.get(".".join(parts[start:]))
            if own is not None:
                found["".join(f"{part}." for part in parts[:start])][own] = key
    return found


def _nothing(content: Any, network: Network, own: Mapping[str, Tensor]) -> KeMetricError:
    """Return the error for a file of something else, with the names on both sides."""
    there = [key for _, state in _state_dicts(content) for key in state]
    what = f"it has {some_of(there, SHOWN)}" if there else "it has no tensors by name"
    names = list(own)
    return _refused(
        str(network.weights),
        f"nothing in it matches network.backbone = {network.backbone!r}: {what}; the backbone has "
        f"{some_of(names, SHOWN)}{closest(names[0], there)}",
        ExitCode.RECIPE,
    )


def _chosen(candidates: Sequence[_Candidate], network: Network) -> _Candidate:
    """Return the candidate that most of the backbone is found in, the preferred one of equals."""
    name = str(network.weights)
    most = max(len(candidate.found) for candidate in candidates)
    best = [candidate for candidate in candidates if len(candidate.found) == most]
    for word in PREFERRED:
        preferred = [each for each in best if word in re.split(r"\W|_(?=ema)", each.told)]
        if len(best) > 1 and len(preferred) == 1:
            return preferred[0]
    if len(best) > 1:
        places = some_of([repr(each.told) for each in best])
        raise _refused(
            name,
            f"{len(best)} networks in it match network.backbone = {network.backbone!r} alike (at {places}); save the "
            "one that is meant alone",
            ExitCode.RECIPE,
        )
    return best[0]


def _require_fit(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], foreign: Sequence[str], network: Network
) -> None:
    """Refuse a file that is not all of the backbone, or is of another one; all that is wrong is told at once."""
    missing = [name for name, tensor in own.items() if name not in tensors and tensor.is_floating_point()]
    shaped = [
        f"{name} {list(tensor.shape)} in the file, {list(own[name].shape)} in the backbone"
        for name, tensor in tensors.items()
        if tensor.shape != own[name].shape
    ]
    wild = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    groups = (
        ("missing", missing),
        ("of another shape", shaped),
        ("of layers that the backbone does not have", foreign),
        ("not finite", wild),
    )
    misfits = [f"{len(names)} tensors {what}: {some_of(names, SHOWN)}" for what, names in groups if names]
    if misfits:
        hint = STEM_HINT if network.stem == "small" and shaped else ""
        raise _refused(
            str(network.weights),
            f"is not network.backbone = {network.backbone!r}, of whose {len(own)} tensors {len(tensors)} are there "
            f"by name: {'; '.join(misfits)}{hint}",
            ExitCode.RECIPE,
        )


def _of_deeper_layers(backbone: nn.Module, left_over: Sequence[str], chosen: _Candidate) -> list[str]:
    """Return which names that the backbone has no place for lie in its layers: the file is of a larger network.

    The classifier is no such layer: where it was, the backbone has an Identity. Nor is what has no fractions, tables
    that a network works out for itself.
    """
    own = {name for name, child in backbone.named_children() if child.state_dict()}
    identities = tuple(f"{name}." for name, module in backbone.named_modules() if isinstance(module, nn.Identity))
    names = {key: key.removeprefix(chosen.prefix) for key in left_over if key.startswith(chosen.prefix)}
    return [
        key
        for key, name in names.items()
        if name.partition(".")[0] in own and not name.startswith(identities) and chosen.state[key].is_floating_point()
    ]
