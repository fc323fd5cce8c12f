"""`ke-metric doctor`: what is wrong with the environment, and the command that mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ke_metric.cli.display import Outcome, counting
from ke_metric.diagnosis.doctor import diagnose
from ke_metric.diagnosis.packages import Finding

STYLES = {"ok": "green", "advice": "yellow", "broken": "red"}


def examine(lineages: Path) -> Outcome:
    """Look at the environment.

    Args:
        lineages: Where lineages lie, or will.
    """
    with counting("looking at the environment"):
        findings = diagnose(lineages)
    document: dict[str, Any] = {
        "ok": not any(finding.level == "broken" for finding in findings),
        "findings": [finding.to_json() for finding in findings],
    }
    return Outcome(document, Group(_table(findings), *_cures(findings)))


def _table(findings: list[Finding]) -> Table:
    table = Table(show_header=False, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for finding in findings:
        table.add_row(finding.topic, Text(finding.level, style=STYLES[finding.level]), Text(finding.told))
    return table


def _cures(findings: list[Finding]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for level, title in (("broken", "to be mended"), ("advice", "if you want it")):
        cured = [finding for finding in findings if finding.level == level]
        lines += [Text(f"{title}:", style=STYLES[level])] * bool(cured)
        lines += [Text(f"  {finding.topic}: {finding.cure}") for finding in cured]
    return lines or [Text("nothing is wrong")]
