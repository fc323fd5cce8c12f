"""What can only be learnt by importing libraries: each in a process of its own, which may fail or end as it likes.

`python -m ke_metric.diagnosis.probes NAME` prints a JSON object a line; of imports, what was tried before the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

SECONDS = 180
"""After which a process that answers no more is ended."""
ENDED = "ended the process"
LONGEST = 300
"""Characters of what a library says."""


@dataclass(frozen=True)
class ProbeResult:
    """What a process learnt.

    Attributes:
        facts: What it printed, later lines over earlier ones.
        failure: Why it did not come to its end; None where it did.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None


def run_probe(name: str, arguments: Sequence[str] = (), *, seconds: float = SECONDS) -> ProbeResult:
    """Run a probe in another process and return what it learnt; never raises.

    Args:
        name: One of `PROBES`.
        arguments: What it is given.
        seconds: After which it is ended.
    """
    command = [sys.executable, "-m", "ke_metric.diagnosis.probes", name]
    try:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        # Bytes, whatever was asked for.
        told = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        return ProbeResult(_facts(told), f"did not answer within {seconds:.0f} s")
    except OSError as error:
        return ProbeResult(failure=f"could not be started: {error}")
    facts = _facts(done.stdout)
    if done.returncode == 0:
        return ProbeResult(facts)
    return ProbeResult(facts, _last_words(done.returncode, done.stderr))


def _facts(output: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for line in output.splitlines():
        try:
            facts |= json.loads(line)
        except (TypeError, ValueError):
            # A library that prints something while it is imported.
            continue
    return facts


def _last_words(code: int, errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = lines[-1][:LONGEST] if lines else "without a word"
    return f"ended by signal {-code}: {said}" if code < 0 else said


def _tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 -- to the process that asked


def _imports(names: Sequence[str]) -> None:
    """Import modules, and say before and after each what is being done: one may end the process."""
    for name in names:
        _tell(**{name: ENDED})
        try:
            import_module(name)
        except BaseException as error:
            _tell(**{name: f"{type(error).__name__}: {str(error).strip() or 'without a word'}"[:LONGEST]})
        else:
            _tell(**{name: None})


def _devices(_: Sequence[str]) -> None:
    """Tell of GPUs, threads and precision, and try an operation that torchvision's own library does."""
    import torch
    import torchvision

    from ke_metric.training.engine import Engine

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    torchvision.ops.nms(boxes, torch.tensor([0.5, 0.4]), 0.5)
    cuda = [
        f"{torch.cuda.get_device_name(number)} ({torch.cuda.get_device_properties(number).total_memory / 1e9:.0f} GB)"
        for number in range(torch.cuda.device_count())
    ]
    _tell(
        torch=torch.__version__,
        cuda_build=torch.version.cuda,
        cuda=cuda if torch.cuda.is_available() else [],
        mps=bool(torch.backends.mps.is_available()),
        threads=torch.get_num_threads(),
    )
    engine = Engine()
    _tell(device=str(engine.device), precision=engine.precision)


def _neighbors(_: Sequence[str]) -> None:
    """Search the same vectors by FAISS and by torch."""
    import numpy as np

    from ke_metric.evaluation.backend import choose_backend, describe_faiss, search

    library = describe_faiss()
    _tell(version=library.version, gpus=library.gpus)
    vectors = np.random.default_rng(0).standard_normal((400, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    own = np.arange(len(vectors))
    names = ["faiss-cpu", *["faiss-gpu"] * (library.gpus > 0)]
    expected = search(vectors, vectors, 5, backend=choose_backend("torch"), self_match=own).indices
    found = {
        name: search(vectors, vectors, 5, backend=choose_backend(name), self_match=own).indices for name in names
    }
    _tell(tried=names, wrong=[name for name in names if not bool((found[name] == expected).all())])


def _fonts(_: Sequence[str]) -> None:
    """Draw a letter in every face of the demo."""
    from ke_metric.benchmarks.drawn import FACES, draw

    missing = [face for face in FACES if draw(ord("A"), face) is None]
    _tell(faces=len(FACES), missing=missing)


PROBES: Mapping[str, Callable[[Sequence[str]], None]] = {
    "imports": _imports,
    "devices": _devices,
    "neighbors": _neighbors,
    "fonts": _fonts,
}


if __name__ == "__main__":
    PROBES[sys.argv[1]](sys.argv[2:])
