"""`ke-metric report`: one page that shows what a lineage has become."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from ke_metric.cli.display import Outcome, say
from ke_metric.cli.lineages import open_lineage
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.lineage.folder import REPORT
from ke_metric.lineage.store import Lineage
from ke_metric.report.charts import write_figures
from ke_metric.report.lineage_report import gather_report
from ke_metric.report.page import require_report_extra, write_page
from ke_metric.report.page_parts import Number, Report

ENDINGS = (".html", ".htm")


def report_lineages(
    folders: Sequence[Path],
    *,
    output: Path | None,
    baselines: Sequence[Path],
    figures: Path | None,
    device: str | None,
) -> Outcome:
    """Write the report of a lineage.

    Args:
        folders: Of the lineage, then of others that are shown beside it; the newest one when there is none.
        output: The page; `report.html` in the lineage's folder when None.
        baselines: Folders of the long trainings that it is held against.
        figures: Folder for the figures as PNG and SVG; none are written when None.
        device: A torch device.

    Raises:
        KeMetricError: See `gather_report`; a library is missing, or the page cannot be written.
    """
    require_report_extra()
    lineages = [Lineage(folder) for folder in folders] or [open_lineage(None)]
    path = output or lineages[0].folder / REPORT
    _require_place(path, output)
    gathered = gather_report(
        lineages,
        baselines=[Lineage(folder) for folder in baselines],
        device=device,
        progress=lambda text: say(f"{text} ..."),
    )
    report = gathered.report
    size = write_page(report, path)
    drawn = write_figures(report.charts, figures) if figures is not None else []
    document = {
        "lineage": str(lineages[0].folder),
        "page": str(path),
        "bytes": size,
        "figures": [str(each) for each in drawn],
        "headline": [_document(each.title, each.number, each.note) for each in report.headline],
        "missing": {section.name: list(section.missing) for section in report.sections if section.missing},
        "changes": list(gathered.changes),
    }
    return Outcome(document, Text("\n".join(_lines(report, path, size, drawn))))


def _require_place(path: Path, output: Path | None) -> None:
    """Refuse a page that cannot be written, before anything is computed."""
    if path.suffix.lower() not in ENDINGS:
        raise KeMetricError(f"-o {output}: must end in {' or '.join(ENDINGS)}", ExitCode.USAGE)
    if not path.parent.is_dir():
        raise KeMetricError(f"-o {output}: there is no folder {path.parent}", ExitCode.USAGE)
    if path.is_dir():
        raise KeMetricError(f"-o {output}: is a folder; name a file", ExitCode.USAGE)


def _document(title: str, number: Number, note: str) -> dict[str, Any]:
    return {"title": title, "value": number.value, "text": number.text, "note": note}


def _lines(report: Report, path: Path, size: int, drawn: Sequence[Path]) -> list[str]:
    lines = [f"{each.title}: {each.number.text} ({each.note})" for each in report.headline]
    lines += [f"{section.title}: {' '.join(section.missing)}" for section in report.sections if section.missing]
    lines += [f"{len(drawn):,} figures in {drawn[0].parent}"] if drawn else []
    return [*lines, f"report: {path} ({size / 1000:,.0f} kB)"]
