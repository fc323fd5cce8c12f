"""`ke-metric lineages`: what was trained, what is kept of it, and removing it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from ke_metric.cli.display import Outcome, resume_command, say
from ke_metric.errors import ExitCode, KeMetricError, readable
from ke_metric.lineage.listing import (
    BUSY,
    DAMAGED,
    LineageSummary,
    drop_superfluous_weights,
    list_lineages,
    remove_lineages,
    require_own,
    require_removable,
    summary_of,
    superfluous_weights,
    weights_kept,
)
from ke_metric.lineage.report import header, scorecard_document, scorecards_table, untrained_document
from ke_metric.lineage.store import Lineage

STYLES = {BUSY: "cyan", DAMAGED: "red", "finished": "green"}
FINISHED = "finished"
MISSING = "-"


def list_them(parent: Path) -> Outcome:
    """List the lineages of a folder, the newest first; a damaged one is in the list with its reason."""
    found = list_lineages(parent)
    document = {"folder": str(parent), "lineages": [summary.to_json() for summary in found]}
    if not found:
        return Outcome(document, f"no lineage under {parent}/: ke-metric train RECIPE begins one")
    reasons = [
        Text(readable(f"{each.folder} is damaged: {each.damage}")) for each in found if each.damage is not None
    ]
    return Outcome(document, Group(_list_table(parent, found), *reasons))


def _list_table(parent: Path, found: Sequence[LineageSummary]) -> Table:
    counts = f"{_counted(len(found), 'lineage')}, {_bytes(sum(summary.size for summary in found))}"
    columns = ("lineage", "recipe", "task", "generations", "status", "score", "dense", "slim", "size", "last change")
    numbers = ("generations", "dense", "slim", "size")
    table = Table(
        *(Column(name, justify="right" if name in numbers else "left", no_wrap=name != "recipe") for name in columns),
        title=Text(f"{readable(str(parent))}: {counts}; scores in percent, last (best)"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for each in found:
        known = each.damage is None
        table.add_row(
            Text(readable(str(each.folder))),
            Text(readable(each.recipe) or MISSING),
            each.task or MISSING,
            f"{each.done} of {each.planned}" if known else MISSING,
            Text(readable(each.status), style=STYLES.get(each.status, "yellow")),
            header(each.score) if each.score else MISSING,
            *(_last_and_best(each, network) for network in ("dense", "slim")),
            _bytes(each.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(each.changed)),
        )
    return table


def _last_and_best(summary: LineageSummary, network: str) -> str:
    scores = summary.scores.get(network, {})
    shown = {which: f"{100 * value:.1f}" for which, value in scores.items()}
    if "last" not in shown:
        return MISSING
    return shown["last"] + (f" ({shown['best']})" if shown.get("best", shown["last"]) != shown["last"] else "")


def show(folder: Path) -> Outcome:
    """Show a lineage: facts, scores, weights that are kept, the command that made it, and how it goes on.

    Raises:
        KeMetricError: There is none, or it is damaged.
    """
    lineage = Lineage(folder)
    summary, facts = summary_of(folder), lineage.facts
    if summary.damage is not None:
        raise KeMetricError(f"the lineage is damaged: {summary.damage}", ExitCode.LINEAGE)
    cards = {number: lineage.scorecard(number) for number in lineage.numbers}
    untrained, kept = lineage.untrained, weights_kept(lineage)
    known: dict[str, Any] = {
        name: facts[name] for name in ("created", "command", "processor", "commit", "versions") if name in facts
    }
    after = list(_next_commands(lineage, summary))
    document: dict[str, Any] = {
        **summary.to_json(),
        **known,
        **untrained_document(untrained, cards),
        "generations": [scorecard_document(number, card) for number, card in cards.items()],
        "weights": {str(number): size for number, size in kept.items()},
        "next": [{"command": command, "what": what} for what, command in after],
    }
    shown: list[RenderableType] = [_facts_table(summary, known, kept)]
    if cards:
        shown.append(scorecards_table(str(folder), cards, untrained=untrained))
    return Outcome(document, Group(*shown, *(Text(readable(f"{what}:\n  {command}")) for what, command in after)))


def _facts_table(summary: LineageSummary, known: dict[str, Any], kept: dict[int, int]) -> Table:
    table = Table(show_header=False, box=box.SIMPLE, padding=(0, 1, 0, 0))
    each = ", ".join(f"generation {number} ({_bytes(size)})" for number, size in kept.items())
    versions = known.get("versions", {})
    rows = {
        "lineage": f"{summary.folder} ({_bytes(summary.size)})",
        "recipe": f"{summary.recipe}, {summary.task}, seed {summary.seed}",
        "status": f"{summary.status}, {summary.done} of {_counted(summary.planned, 'generation')}",
        "weights kept": each or "none",
        "begun": known.get("created", MISSING),
        "by": known.get("command", MISSING),
        "on": ", ".join(
            [
                *[known["processor"]] * ("processor" in known),
                *(f"{name} {versions[name]}" for name in ("ke_metric", "torch") if name in versions),
            ]
        ),
    }
    for name, value in rows.items():
        table.add_row(name, Text(readable(str(value))))
    return table


def _next_commands(lineage: Lineage, summary: LineageSummary) -> Iterator[tuple[str, str]]:
    """Yield what can be done next with a lineage, and the command that does it."""
    recipe = lineage.recipe
    if summary.status == BUSY:
        return
    if summary.done < summary.planned:
        yield "to go on", resume_command(lineage.folder, None, processes=1)
    elif not recipe.method.why_not_longer:
        more = f"--set generations={summary.planned + 1}"
        yield "for one more generation", f"{resume_command(lineage.folder, None, processes=1)} {more}"
    if summary.done:
        yield "to score it again", f"ke-metric eval --lineage {lineage.folder}"
        what = "embed" if recipe.task == "retrieval" else "predict"
        yield "to use it", f"ke-metric {what} PICTURES -o {what}.out --lineage {lineage.folder}"
    if superfluous_weights(lineage):
        command = f"ke-metric lineages remove --weights {lineage.folder}"
        yield "to drop weights that are neither the last nor the best", command


def remove(folders: Sequence[Path], *, weights: bool, yes: bool) -> Outcome:
    """Remove lineages, or the weights of them that are neither the last nor the best, once that was agreed to.

    Args:
        folders: Their folders.
        weights: Whether only weights go.
        yes: Whether it is agreed to; asked for otherwise.

    Raises:
        KeMetricError: LINEAGE: one may not be removed; USAGE: nobody is there to be asked.
    """
    require_removable(folders)
    if not weights:
        require_own(folders)
    document = _planned_weights(folders) if weights else _planned_folders(folders)
    if document["bytes"] == 0 and weights:
        return Outcome(document, "no weights but those of the last and the best generations: nothing to remove")
    for line in document["what"]:
        say(line)
    if not yes:
        _ask(document["bytes"])
    if weights:
        drop_superfluous_weights(folders)
    else:
        remove_lineages(folders)
    document["removed"] = True
    return Outcome(document, f"removed: {_bytes(document['bytes'])}")


def _planned_folders(folders: Sequence[Path]) -> dict[str, Any]:
    found = [summary_of(folder) for folder in folders]
    lines = []
    for each in found:
        done = "" if each.damage else f"{each.done} of {_counted(each.planned, 'generation')}, "
        lines.append(f"to be removed: {each.folder}, {_bytes(each.size)} ({done}{each.status})")
    return _planned([str(folder) for folder in folders], sum(each.size for each in found), lines)


def _planned_weights(folders: Sequence[Path]) -> dict[str, Any]:
    found = {folder: superfluous_weights(Lineage(folder)) for folder in folders}
    lines = [
        f"to be removed: weights of generation {', '.join(map(str, numbers))} of {folder}, "
        f"{_bytes(sum(numbers.values()))}"
        for folder, numbers in found.items()
        if numbers
    ]
    return _planned([str(folder) for folder in folders], sum(sum(each.values()) for each in found.values()), lines)


def _planned(lineages: list[str], size: int, lines: list[str]) -> dict[str, Any]:
    return {"lineages": lineages, "bytes": size, "what": lines, "removed": False}


def _ask(size: int) -> None:
    if not sys.stdin.isatty():
        raise KeMetricError(
            "nothing was removed: nobody can be asked here (stdin is no terminal); --yes agrees beforehand",
            ExitCode.USAGE,
        )
    if not click.confirm(f"remove {_bytes(size)}?", err=True):
        raise KeMetricError("nothing was removed", ExitCode.USAGE)


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
