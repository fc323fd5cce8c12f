"""What figures depend on besides what is measured: command, machine, versions, commit, as lines of Markdown."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from ke_metric.environment import describe_environment


def provenance_lines(packages: Sequence[str], *, more: str = "") -> list[str]:
    """Return the lines that stand above a table.

    Args:
        packages: Those whose versions matter beside ke_metric and torch, as pip names them.
        more: What else there is to say of the run, such as rounds and seeds.
    """
    facts = describe_environment()
    versions = [f"{name} {facts['versions'].get(name, 'missing')}" for name in ("ke_metric", "torch", *packages)]
    commit = facts.get("commit", "not known") + (", changed since" if facts.get("commit_changed") else "")
    machine = [facts.get("processor", "processor not known"), f"{facts.get('cores')} cores"]
    if torch.cuda.is_available():
        machine.append(torch.cuda.get_device_name())
    return [
        f"- command: `{' '.join([_script(), *sys.argv[1:]])}`",
        f"- machine: {', '.join(machine)}; {torch.get_num_threads()} threads{'; ' + more if more else ''}",
        f"- versions: Python {facts['python']}, {', '.join(versions)}",
        f"- commit: {commit}; date: {datetime.now(UTC):%Y-%m-%d}",
    ]


def _script() -> str:
    """Return what the running script is started with."""
    module = sys.modules["__main__"].__spec__
    return f"python {Path(sys.argv[0]).name}" if module is None else f"python -m {module.name}"
