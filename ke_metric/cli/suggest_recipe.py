"""`ke-metric recipe`: a recipe for pictures nobody has trained on, printed or written, and what comes next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from ke_metric.benchmarks.listings import Columns
from ke_metric.cli.display import Outcome, counting, say
from ke_metric.disk import disk_error, write_text
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.suggestion.suggest import Suggestion, parse_duration, suggest_recipe

SUFFIXES = (".yaml", ".yml")


def propose(
    pictures: Path,
    *,
    output: Path | None,
    overwrite: bool,
    limit: str | None,
    path_column: str,
    label_column: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Propose a recipe, and print or write it.

    Args:
        pictures: A folder or CSV.
        output: File to write; None: the recipe goes to stdout.
        overwrite: Whether it may replace a file.
        limit: What the training may take, in words.
        path_column: What the column of a CSV is called that has the path.
        label_column: And the one that has the class.
        as_json: Whether a document is printed instead.
        options: See `suggest_recipe`.

    Raises:
        KeMetricError: USAGE: the file is taken or the time is none; see `suggest_recipe`.
    """
    seconds = _seconds(limit)
    if output is not None:
        _require_free(output, overwrite=overwrite)
    columns = Columns(path_column, label_column)
    with counting(f"looking at {pictures}") as progress:
        found = suggest_recipe(
            pictures,
            seconds=seconds,
            columns=columns,
            progress=progress,
            said=lambda text: say(f"{text} ..."),
            **options,
        )
    if not found.fits:
        say(f"warning: it does not fit: {found.time_text}", style="yellow")
    document = {"recipe": str(output) if output is not None else None, **found.to_json(), "yaml": found.text}
    if output is not None:
        _write(output, found.text)
    if as_json:
        Outcome(document, "").print(as_json=True)
    elif output is None:
        click.echo(found.text, nl=False)
    else:
        Outcome(document, _told(found, output, pictures)).print(as_json=False)


def _seconds(limit: str | None) -> float | None:
    if limit is None:
        return None
    seconds = parse_duration(limit)
    if seconds is None:
        raise KeMetricError(f"--time {limit}: must be a number with its unit: 90s, 30m or 1.5h", ExitCode.USAGE)
    return seconds


def _require_free(output: Path, *, overwrite: bool) -> None:
    if output.suffix not in SUFFIXES:
        raise KeMetricError(f"{output}: a recipe is a YAML file; name it {output.stem}.yaml", ExitCode.USAGE)
    if output.is_dir():
        raise KeMetricError(f"{output}: is a folder", ExitCode.USAGE)
    if output.exists() and not overwrite:
        raise KeMetricError(f"{output}: exists; choose another name, or replace it with --overwrite", ExitCode.USAGE)


def _write(output: Path, text: str) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(output.parent, error, "cannot be made") from error
    write_text(output, text)


def _told(found: Suggestion, output: Path, pictures: Path) -> str:
    recipe, plan = found.recipe, found.plan
    file = shlex.quote(str(output))
    return "\n".join(
        [
            f"{output}: {recipe.task}, {found.scale}, {plan.generations} x {plan.epochs} epochs, "
            f"batches of {recipe.batches.size}",
            found.time_text,
            *(f"look at these first: {kind} ({count:,})" for kind, count in found.survey.problems.items()),
            *([f"      ke-metric data check {shlex.quote(str(pictures))}"] if found.survey.problems else []),
            f"next: ke-metric train {file} --dry-run",
            f"      ke-metric train {file}",
        ]
    )
