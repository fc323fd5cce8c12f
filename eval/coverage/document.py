"""The document about what was measured: a summary, the rules, a line for each network, and what stopped a split."""

import inspect
import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.coverage import torch_pruning, verdict
from eval.coverage.torch_pruning import RUNS, SAME
from eval.coverage.verdict import EXACT, EXACT_FP64, EXACT_NORMS, EXACT_PASTED, VERDICTS
from eval.shared import networks
from ke_metric.errors import ExitCode, KeMetricError

Row = dict[str, Any]
# A tool and a split rate.
Task = tuple[str, float]

USAGE = """\
pip install -e '.[timm,compare]'
python -m eval.coverage.run run --out FILE.jsonl [--jobs 1] [--networks NAME ...] [--rates 0.5 0.8] [--timeout 180]
python -m eval.coverage.run table FILE.jsonl --out docs/results/coverage.md
"""
LONGEST_COMMAND = 200
OURS, THEIRS = "ke_metric", "torch-pruning"
PROVEN = (EXACT, EXACT_NORMS, EXACT_PASTED)
# Below this share of all parameters in the reset hypothesis, a network is hardly split, however exactly.
HARDLY = 0.1
CONVOLUTIONAL = "convolutional"
GROUPS = tuple(
    (f"{library}, {title}", library, wanted)
    for library in networks.LIBRARIES
    for title, wanted in ((CONVOLUTIONAL, True), ("others", False))
)
SHORT = {
    EXACT_NORMS: "exact (norms)",
    EXACT_PASTED: "exact (keep_whole)",
    SAME: "exact",
    torch_pruning.OTHER: "runs, differs",
    torch_pruning.UNDECIDED: "runs",
}


def read(path: Path) -> tuple[list[dict[str, Any]], list[Row]]:
    """Return command and machine of every run that wrote to a file, and the last row of each network, tool and rate.

    Raises:
        KeMetricError: There is no such file, or it holds something else.
    """
    if not path.is_file():
        raise KeMetricError(f"there is no file {path}", ExitCode.USAGE)
    started, rows = [], {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            if "started" in entry:
                started.append(entry)
            else:
                rows[entry["network"], entry["tool"], entry["rate"]] = entry
        except (KeyError, TypeError, ValueError) as error:
            raise KeMetricError(
                f"{path}, line {number}: no row of `eval.coverage.run run`", ExitCode.USAGE
            ) from error
    return started, list(rows.values())


def table(path: Path, out: Path) -> None:
    """Write the document of a file of rows.

    Raises:
        KeMetricError: There is no such file, it holds something else, or no rows.
    """
    started, rows = read(path)
    if not rows or not started:
        raise KeMetricError(f"{path} holds no rows", ExitCode.USAGE)
    out.write_text(document(started, rows), encoding="utf-8")


def document(started: Sequence[dict[str, Any]], rows: Sequence[Row]) -> str:
    """Return the document as Markdown.

    Args:
        started: Command and machine of every run that gave rows.
        rows: A row per network, tool and rate.
    """
    parts: dict[str, Iterable[str]] = {
        "## Summary": summary(rows),
        "## How to repeat it": _provenance(started, rows),
        "## What was asked, and what counts": _rules(),
        "## A line per network": _lines(rows),
        "## What is kept whole": _kept_whole(rows),
        "## Not exact at once: why": _reasons(rows),
        "## Where Torch-Pruning stopped": _stops(rows),
    }
    lines = ["# Which networks can be split", "", "Written by `eval.coverage.run table` from what `run` measured."]
    for title, part in parts.items():
        lines += ["", title, "", *part]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def summary(rows: Sequence[Row]) -> list[str]:
    """Return the summary tables, ours and Torch-Pruning's, and who is hardly split, as lines of Markdown."""
    ours = ["networks", "rate", "number", *VERDICTS, "the first three", f"of them reset < {HARDLY:.0%}"]
    ours += ["Torch-Pruning: runs", "and equals the zeroed dense network"]
    theirs = ["networks", "rate", "number", *torch_pruning.VERDICTS]
    return [
        "ke_metric: how many networks got which verdict; the last two columns are Torch-Pruning's.",
        "",
        *_header(ours),
        *(_line(cells) for cells in _counts(rows)),
        "",
        "Torch-Pruning: how many networks got which verdict.",
        "",
        *_header(theirs),
        *(_line(cells) for cells in _their_counts(rows)),
        "",
        *_hardly_split(rows),
    ]


def _groups(rows: Sequence[Row], tool: str) -> Iterator[tuple[str, float, list[Row]]]:
    """Yield name, rate and rows of every group of networks that has any."""
    for name, library, wanted in GROUPS:
        for rate in _rates(rows):
            group = [
                row for row in rows if _is_in(row, library, wanted) and (row["tool"], row["rate"]) == (tool, rate)
            ]
            if group:
                yield name, rate, group


def _is_in(row: Row, library: str, convolutional: bool) -> bool:
    return row["network"].startswith(f"{library}/") and (row.get("class") == CONVOLUTIONAL) == convolutional


def _rates(rows: Sequence[Row]) -> list[float]:
    return sorted({row["rate"] for row in rows})


def _counts(rows: Sequence[Row]) -> Iterator[list[str]]:
    theirs = {(name, rate): group for name, rate, group in _groups(rows, THEIRS)}
    for name, rate, group in _groups(rows, OURS):
        counts = Counter(row["verdict"] for row in group)
        proven = [row for row in group if row["verdict"] in PROVEN]
        hardly = sum(row["reset_share"] < HARDLY for row in proven)
        other = theirs.get((name, rate), [])
        yield [
            name,
            f"{rate:g}",
            str(len(group)),
            *(str(counts[verdict]) for verdict in VERDICTS),
            f"{len(proven)} ({100 * len(proven) / len(group):.0f} %)",
            str(hardly),
            f"{sum(row['verdict'] in RUNS for row in other)} of {len(other)}",
            f"{sum(row['verdict'] == SAME for row in other)} of {len(other)}",
        ]


def _their_counts(rows: Sequence[Row]) -> Iterator[list[str]]:
    for name, rate, group in _groups(rows, THEIRS):
        counts = Counter(row["verdict"] for row in group)
        found = [str(counts[verdict]) for verdict in torch_pruning.VERDICTS]
        yield [name, f"{rate:g}", str(len(group)), *found]


def _hardly_split(rows: Sequence[Row]) -> Iterator[str]:
    """Yield which networks keep nearly all of their weights: exact is easy where nothing is reset."""
    for rate in _rates(rows):
        found = [
            f"{row['network']} ({row['reset_share']:.1%})"
            for row in rows
            if row["tool"] == OURS and row["rate"] == rate and row.get("reset_share", 1) < HARDLY
        ]
        yield (
            f"Rate {rate:g}, at which a chain of layers resets {1 - rate**2:.0%} of its weights: networks that reset "
            f"less than {HARDLY:.0%} of their parameters: {', '.join(found) or 'none'}."
        )
        yield ""


# --- provenance and rules -------------------------------------------------------------------------------------------


def _provenance(started: Sequence[dict[str, Any]], rows: Sequence[Row]) -> Iterator[str]:
    yield from ("```", *USAGE.splitlines(), "```", "")
    for tool in (OURS, THEIRS):
        used = Counter(row["made_by"] for row in rows if row["tool"] == tool)
        if len(used) > 1:
            counts = ", ".join(f"{count} by {made_by}" for made_by, count in used.items())
            yield f"**The rows of {tool} are of different sources or versions: {counts}.**"
            yield ""
    digests = {row["made_by"] for row in rows}
    for run in (entry for entry in started if digests & set(entry["made_by"].values())):
        commit = run.get("commit", "not known") + (", changed since" if run.get("commit_changed") else "")
        versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        memory = "any amount" if run["memory"] is None else f"{run['memory'] / 1e9:.0f} GB"
        yield from (
            f"- {run['started']}: `{textwrap.shorten(run['command'], LONGEST_COMMAND, placeholder=' ...')}`",
            f"  - commit {commit}; digests of sources and versions: "
            + ", ".join(f"{tool} {digest}" for tool, digest in run["made_by"].items()),
            f"  - Python {run['python']}, {versions}",
            f"  - {run.get('processor', 'processor not known')}, {run.get('cores')} cores, {run.get('system')}; "
            f"{run['jobs']} at a time; each has {run['threads']} threads, {run['seconds']:g} s for every answer and "
            f"{memory} of memory",
        )
    yield (f"- seeds: sample of timm {networks.SAMPLE_SEED}, weights 0, images {networks.IMAGE_SEED}; wels masks 0")
    yield ""


def _rules() -> list[str]:
    return [
        f"**Networks.** All classifiers of torchvision; of timm's names, sorted and shuffled by "
        f"`random.Random({networks.SAMPLE_SEED})`, the first {networks.SAMPLE_NETWORKS} with at most "
        f"{networks.SAMPLE_PARAMETERS / 1e6:.0f} M parameters, of any family.",
        "",
        *_said("Images", networks.make_images),
        *_said("Image size", networks.build_for_test),
        *_said("Weights", networks.give_weights),
        *_said("Norm statistics", networks.measure_statistics),
        *_said("Convolutional or not", networks.class_of),
        *_said("What is demanded of ke_metric", verdict),
        f"**Limits.** Outputs in fp32 differ by at most {verdict.LIMIT:g} of the largest dense output, and by at "
        f"most {verdict.LIMIT_OF_SIGNAL:g} of what the dense outputs for two images differ by. Where that is not so, "
        f"but outputs in fp64 differ by at most {verdict.LIMIT_FP64:g}, a network is *{EXACT_FP64}*: it amplifies "
        "rounding. Everything else that runs is *wrong*.",
        "",
        "**Refused.** The split says what it cannot follow. Where the message gives a list of what to keep whole, "
        f"that is done, up to {verdict.PASTES} times: *{EXACT_PASTED}*. For the others WELS is tried: fit entries "
        "stay as they are, reset entries change, the outputs are finite.",
        "",
        "**No answer.** The time limit was over. A tool that had no answer at one rate is not asked at the others.",
        "",
        *_said("What is demanded of Torch-Pruning", torch_pruning.ask),
        "It is made for pruning before fine-tuning, and does not promise that its networks equal the dense one with "
        "what was removed at zero; that column says how many do.",
    ]


def _said(title: str, source: Any) -> list[str]:
    """Return what the docstring of a function or module says between its first line and its arguments."""
    text = inspect.cleandoc(source.__doc__).partition("\n\n")[2].split("\nArgs:")[0].strip()
    return [f"**{title}.** {text}", ""]


# --- a line per network -------------------------------------------------------------------------------------------


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    rates = _rates(rows)
    yield (
        f"Cells are for rate {' / '.join(f'{rate:g}' for rate in rates)}. Error: largest difference of outputs in "
        "fp32, relative to the largest dense output. Reset: share of all parameters that is the reset hypothesis. "
        "FLOPs: slim / dense at this image size. Whole: modules that the plan keeps whole by itself. *exact "
        "(norms)*: norms over fit channels. *exact (keep_whole)*: with the lists of the error messages."
    )
    titles = ["network", "class", "M", "pixels", "verdict", "error", "reset", "FLOPs", "whole", "Torch-Pruning"]
    for name, library, wanted in GROUPS:
        group = _by_network(row for row in rows if _is_in(row, library, wanted))
        if group:
            yield from ("", f"### {name}", "", *_header(titles))
            yield from (_line(_cells(network, answers, rates)) for network, answers in sorted(group.items()))


def _by_network(rows: Iterable[Row]) -> dict[str, dict[Task, Row]]:
    found: dict[str, dict[Task, Row]] = {}
    for row in rows:
        found.setdefault(row["network"], {})[row["tool"], row["rate"]] = row
    return found


def _cells(network: str, answers: dict[Task, Row], rates: Sequence[float]) -> list[str]:
    facts = next(iter(answers.values()))
    ours = [answers.get((OURS, rate), {}) for rate in rates]
    theirs = [answers.get((THEIRS, rate), {}) for rate in rates]
    return [
        network.partition("/")[2],
        facts.get("class", "not known"),
        f"{facts['parameters'] / 1e6:.1f}" if "parameters" in facts else "",
        str(facts.get("pixels", "")),
        _each(ours, lambda row: SHORT.get(row["verdict"], row["verdict"])),
        _each(ours, lambda row: f"{row['error']:.0e}" if row["error"] else "0"),
        _each(ours, lambda row: f"{row['reset_share']:.0%}"),
        _each(ours, lambda row: f"{row['flop_ratio']:.2f}"),
        _each(ours, lambda row: str(len(row["kept_whole"]))),
        _each(theirs, lambda row: SHORT.get(row["verdict"], row["verdict"])),
    ]


def _each(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Return a cell per rate, one where they are the same, a dash where there is no figure."""

    def shown(row: Row) -> str:
        try:
            return cell(row)
        except KeyError:
            return "–"

    cells = [shown(row) for row in rows]
    return cells[0] if len(set(cells)) == 1 else " / ".join(cells)


# --- reasons ------------------------------------------------------------------------------------------------------


def _kept_whole(rows: Sequence[Row]) -> list[str]:
    """Return a line per network and rate of which a plan keeps something whole, with the first reason."""
    lines = []
    for row in rows:
        if whole := row.get("kept_whole") or {}:
            names = ", ".join(list(whole)[:6]) + (f" and {len(whole) - 6} more" if len(whole) > 6 else "")
            reason = _quoted(next(iter(whole.values())))
            lines.append(f"- {row['network']}, rate {row['rate']:g}: {names}. The first because of {reason}")
    return lines or ["Nothing is."]


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Return a line per network and rate that was not exact at once, with its reason."""
    lines = []
    for row in rows:
        if row["tool"] != OURS or row["verdict"] in (EXACT, EXACT_NORMS):
            continue
        line = f"- {row['network']}, rate {row['rate']:g}: {row['verdict']}. {_quoted(row.get('reason', ''))}"
        if row.get("pasted"):
            line += f" Kept whole then: {', '.join(row['pasted'][:12])}."
        if "reason_pasted" in row:
            line += f" With that: {_quoted(row['reason_pasted'])}"
        if "wels" in row:
            line += f" WELS {row['wels']}."
        lines.append(line)
    return lines or ["All were."]


def _stops(rows: Sequence[Row]) -> list[str]:
    """Return how often Torch-Pruning gave each reason; numbers in a reason are left out."""
    reasons: Counter[str] = Counter()
    for row in rows:
        if row["tool"] == THEIRS and row["verdict"] not in RUNS:
            reasons[f"{row['verdict']}: {_quoted(re.sub('[0-9]+', '#', row.get('reason', '')))}"] += 1
    lines = [_line([str(number), reason.replace("|", "\\|")]) for reason, number in reasons.most_common()]
    return [*_header(["networks x rates", "verdict and reason"]), *lines] if lines else ["Nowhere."]


def _quoted(text: str) -> str:
    """Return the first line of a message as Markdown code, without folders of the machine it was raised on."""
    line = re.sub(r"/\S*/site-packages/", "", text.partition("\n")[0]).replace("`", "'")
    return f"`{line[:400].rstrip()}`" if line else ""


def _header(titles: Sequence[str]) -> list[str]:
    return [_line(titles), _line(["---"] * len(titles))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
