"""`ke-metric data`: prepare and check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ke_metric.cli.display import counting, say
from ke_metric.cli.result import Result
from ke_metric.data.check import check_images, check_text, load_for_check
from ke_metric.data.emoji import prepare_emoji
from ke_metric.data.prepare import prepare, prepare_text
from ke_metric.errors import ExitCode, KeMetricError


def prepare_benchmark(name: str, *, source: Path | None, target: Path) -> Result:
    """Prepare a benchmark into `target`."""
    if name == "emoji":
        return _prepare_emoji(source, target)
    if source is None:
        raise KeMetricError(
            f"data prepare {name}: name the archive or folder you have with --from PATH (nothing is downloaded)",
            ExitCode.USAGE,
        )
    report = prepare(name, source, target=target, progress=say)
    return Result(report.to_json(), prepare_text(report))


def _prepare_emoji(source: Path | None, target: Path) -> Result:
    with counting("rendering emoji") as progress:
        prepared = prepare_emoji(target, source=source, progress=progress)
    document = {
        "benchmark": "emoji",
        "root": str(target),
        "classes": prepared.classes,
        "images": prepared.images,
        "left_out": list(prepared.left_out),
    }
    text = (
        f"emoji is ready: data.root = {target}\n{prepared.images:,} pictures of {prepared.classes:,} emojis; "
        f"{len(prepared.left_out):,} drawings left out (--json names them); licences in {target / 'licences.json'}"
    )
    return Result(document, text)


def check_benchmark(name_or_path: str, **options: Any) -> Result:
    """Look through every picture of a benchmark, folder or CSV; for the options see `load_for_check`."""
    benchmark = load_for_check(name_or_path, **options)
    with counting("decoding") as progress:
        report = check_images(benchmark, progress=progress)
    return Result(report.to_json(), check_text(report))
