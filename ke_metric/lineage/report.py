"""Scorecards for people and for programs: a row per network of each generation, or plain JSON values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from ke_metric.errors import readable
from ke_metric.generation import Scorecard, Scores, SlimScores

RECALL = "recall@"
VALIDATION = "validation_"
ACCURACIES = ("top1", "balanced_accuracy", "top5", "validation_top1", "validation_top5")
PRECISIONS = ("map@r", "r_precision")
# Columns that are left out, in this order, where a table would be too wide; programs find the scores in the document.
# In the place of RECALL are all Recall@K but that of the smallest K, by K; the last one stands for the one K it has.
DISPENSABLE = (
    "r_precision", "map@r", RECALL, "parameters", "nmi", "validation_top5", "top5", "validation_balanced_accuracy",
    "balanced_accuracy", "validation_top1", f"{VALIDATION}{RECALL}", "epochs", "seeds",
)  # fmt: skip
BASELINE = "majority_baseline"
MISSING = "-"
WORST_PAIRS = 5


def scorecard_document(number: int, scorecard: Scorecard) -> dict[str, Any]:
    """Return a generation's scores as plain JSON values; what was not computed is absent.

    `best_epoch` says which one counts of the epochs `trained`, where a validation part decided. `slim_repair` says
    what was repaired of the slim network, `slim_as_cut` what it scored before. The slim networks of other rates are
    in `narrow`, by rate, and `narrow_repair` and `narrow_as_cut` say the same of them. Of a classification `classes`
    has, by network, the accuracy of every class and what its pictures were taken for.
    """
    document: dict[str, Any] = {"generation": number, "dense": dict(scorecard.dense)}
    if scorecard.best_epoch is not None:
        document["best_epoch"] = asdict(scorecard.best_epoch)
    if scorecard.slim is not None:
        document["slim"] = dict(scorecard.slim)
    if scorecard.slim_repair is not None:
        document["slim_repair"] = scorecard.slim_repair
    if scorecard.slim_as_cut is not None:
        document["slim_as_cut"] = dict(scorecard.slim_as_cut)
    document |= _narrow_document(scorecard.narrow or {})
    if scorecard.sizes is not None:
        document["sizes"] = {network: dict(found) for network, found in scorecard.sizes.items()}
    if scorecard.classes is not None:
        document["classes"] = {network: asdict(found) for network, found in scorecard.classes.items()}
    return document


def _narrow_document(narrow: Mapping[str, SlimScores]) -> dict[str, Any]:
    repairs = {rate: found.repair for rate, found in narrow.items() if found.repair is not None}
    as_cut = {rate: dict(found.as_cut) for rate, found in narrow.items() if found.as_cut is not None}
    facts = {
        "narrow": {rate: dict(found.scores) for rate, found in narrow.items()},
        "narrow_repair": repairs,
        "narrow_as_cut": as_cut,
    }
    return {name: value for name, value in facts.items() if value}


def idle_steps(training_log: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many `steps` of a training were `idle_steps`, of loss 0 or without tuples; nothing if none was."""
    idle = sum(record.get("idle_steps", 0) for record in training_log)
    per_epoch = max((record.get("steps", 0) for record in training_log), default=0)
    return {"idle_steps": idle, "steps": per_epoch * len(training_log)} if idle else {}


def untrained_document(untrained: Scorecard | None, scorecards: Mapping[int, Scorecard]) -> dict[str, Any]:
    """Return what a command's document says of the network before any training; nothing where nobody knows."""
    if untrained is None:
        return {}
    worse = sorted(worse_generations(untrained, scorecards))
    return {"untrained": {**scorecard_document(0, untrained), "better_than_generations": worse}}


def worse_generations(untrained: Scorecard, scorecards: Mapping[int, Scorecard]) -> dict[int, float]:
    """Return the generations whose dense network is below the untrained one in the decisive score, and that score."""
    name = decisive_score(untrained.dense)
    found = {number: card.dense[name] for number, card in scorecards.items() if name in card.dense} if name else {}
    return {number: value for number, value in found.items() if value < untrained.dense[name or ""]}


def decisive_score(scores: Scores) -> str | None:
    """Return the score that a training is for: top-1, or Recall@K of the smallest K; None where there is neither."""
    if "top1" in scores:
        return "top1"
    return next(iter(_recalls(scores)), None)


def _recalls(names: Iterable[str]) -> list[str]:
    """Return every Recall@K, by K."""
    return sorted(
        (name for name in names if name.startswith(RECALL)), key=lambda name: int(name.removeprefix(RECALL))
    )


def _validation_recalls(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(f"{VALIDATION}{RECALL}"))


def scorecards_table(
    title: str,
    scorecards: Mapping[int, Scorecard],
    *,
    networks: Collection[str] | None = None,
    untrained: Scorecard | None = None,
) -> FittingTable:
    """Return the table of generation number to scorecard: all but NMI, which lies in [0, 1], in percent.

    The network before any training is shown as generation 0 where its scores are known. What has no column is in
    `scorecard_document`.

    Args:
        title: What stands above.
        scorecards: Of each generation.
        networks: Those that are shown, by the names of `Scorecard.networks`; all when None.
        untrained: Scores before any training.
    """
    shown = {0: untrained} | dict(scorecards) if untrained and _is_asked("dense", networks) else scorecards
    names = shown_names(scores for card in shown.values() for scores in card.networks.values())
    notes = [told_baseline(card.dense for card in shown.values())]
    notes += [told_worse(untrained, scorecards)] if untrained else []
    notes += [*told_repairs(scorecards, networks), told_best_epochs(scorecards)]
    caption = Text("\n").join(Text(note) for note in notes if note) if any(notes) else None

    def build(names: Sequence[str], facts: Sequence[str]) -> Table:
        table = Table(
            *number_columns(("generation", "network", *facts), names),
            title=Text(f"{readable(title)}, {unit(names)} in percent", no_wrap=True, overflow="ignore"),
            title_justify="left",
            caption=caption,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for number, card in shown.items():
            parameters = {"dense": card.dense_parameters}
            parameters |= {name: found.parameters for name, found in card.slims.items()}
            asked = {name: each for name, each in card.networks.items() if _is_asked(name, networks)}
            for position, (name, scores) in enumerate(asked.items()):
                counts = [f"{parameters[name]:,}"] * len(facts)
                table.add_row("" if position else str(number), name, *counts, *score_cells(scores, names))
                _add_sizes(table, card, name, facts, names)
        return table

    return FittingTable(build, names)


def _add_sizes(table: Table, card: Scorecard, network: str, facts: Sequence[str], names: Sequence[str]) -> None:
    """Add a row for every size that a network's embeddings were scored at, the largest first."""
    found = (card.sizes or {}).get(network, {})
    for size in sorted(found, key=int, reverse=True):
        table.add_row("", f"{network}, {size}", *("" for _ in facts), *score_cells(found[size], names))


def number_columns(facts: Sequence[str], names: Sequence[str]) -> list[Column]:
    """Return the columns of facts and scores, none of which is ever wrapped: half a number is a wrong one."""
    return [Column(each, justify="right", no_wrap=True) for each in (*facts, *map(header, names))]


class FittingTable:
    """A table that leaves columns out, the least asked for first, until it fits where it is printed.

    Where that is not enough it is wider than that.

    Args:
        build: Makes the table of these scores and facts, of columns of texts, which may be narrowed to their longest
            word where they are not `no_wrap`.
        names: All scores that there are.
        facts: All other columns that may be left out.
    """

    def __init__(
        self,
        build: Callable[[Sequence[str], Sequence[str]], Table],
        names: Sequence[str],
        *,
        facts: Sequence[str] = ("parameters",),
    ) -> None:
        self._build, self._names, self._facts = build, list(names), list(facts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Print it, as rich asks for."""
        names, facts = self._names, self._facts
        table = self._build(names, facts)
        groups = {RECALL: _recalls(names)[1:], f"{VALIDATION}{RECALL}": _validation_recalls(names)}
        for dispensable in (name for each in DISPENSABLE for name in groups.get(each, [each])):
            if _least_width(table) <= options.max_width:
                break
            names, facts = ([name for name in some if name != dispensable] for some in (names, facts))
            table = self._build(names, facts)
        if _least_width(table) > options.max_width:
            table.width = _least_width(table)
        yield table


def _least_width(table: Table) -> int:
    """Return how wide a table of texts is when no word and no `no_wrap` column is broken."""
    width = len(table.columns) + 1
    for column in table.columns:
        texts = [str(text) for text in (column.header, *column.cells)]
        parts = texts if column.no_wrap else [word for text in texts for word in text.split()]
        width += max(map(cell_len, parts), default=0) + table.padding[1] + table.padding[3]
    return width


def told_repairs(scorecards: Mapping[int, Scorecard], networks: Collection[str] | None = None) -> list[str]:
    """Return a sentence for every slim network that was repaired: how, and what it scored as it was cut out.

    Args:
        scorecards: Of each generation.
        networks: Those that are meant, by name; all when None.
    """
    told: dict[str, list[str]] = {}
    for number, card in scorecards.items():
        for name, found in card.slims.items():
            score = decisive_score(found.as_cut or {})
            if found.as_cut is None or score is None or not _is_asked(name, networks):
                continue
            how = " + ".join(_steps_of(found.repair or "", classifies="top1" in found.as_cut))
            before = f"{header(score)} {100 * found.as_cut[score]:.1f} as cut"
            told.setdefault(name, []).append(f"generation {number} {how} ({before})")
    return [f"{name} repaired: {', '.join(each)}" for name, each in told.items()]


def told_best_epochs(scorecards: Mapping[int, Scorecard]) -> str | None:
    """Return the sentence on which epochs' weights these are; None where they are all the last ones."""
    found = {number: card.best_epoch for number, card in scorecards.items() if card.best_epoch is not None}
    told = ", ".join(f"{best.epoch} of {best.trained} in generation {number}" for number, best in found.items())
    return f"weights of the epoch that was best on the validation part: {told}" if found else None


def _steps_of(repair: str, *, classifies: bool) -> list[str]:
    """Return in words what a kind of repair (`SlimRepair.kind`) consists of."""
    layer = "last layer refitted" if classifies else "whitening"
    return [*["statistics"] * (repair in ("statistics", "both")), *[layer] * (repair != "statistics")]


def _is_asked(network: str, networks: Collection[str] | None) -> bool:
    return networks is None or network in networks


def told_worse(untrained: Scorecard, scorecards: Mapping[int, Scorecard]) -> str | None:
    """Return the sentence on generations that training made worse than they began; None where there is none."""
    worse, name = worse_generations(untrained, scorecards), decisive_score(untrained.dense)
    if not worse or name is None:
        return None
    told = ", ".join(f"{100 * value:.1f} in generation {number}" for number, value in worse.items())
    return f"training made it worse: {header(name)} {100 * untrained.dense[name]:.1f} untrained, {told}"


def told_baseline(cards: Iterable[Scores]) -> str | None:
    """Return what the accuracies are to be held against; None where there is nothing."""
    found = {scores[BASELINE] for scores in cards if BASELINE in scores}
    told = ", ".join(f"{100 * share:.1f}" for share in sorted(found))
    return f"always answering the largest class of the test part: top-1 {told}" if found else None


def mistakes_table(
    number: int | str, scorecard: Scorecard, *, networks: Collection[str] | None = None
) -> Table | Text:
    """Return the classes that were most often taken for another one; nothing, where none was or nobody knows.

    Args:
        number: Of the generation.
        scorecard: Of the generation.
        networks: Those that are shown, by the names of `Scorecard.networks`; all when None.
    """
    table = Table(
        *(Column(name, overflow="fold") for name in ("network", "class", "taken for")),
        *(Column(name, justify="right") for name in ("pictures", "of", "%")),
        title=Text(f"generation {number}, most often mistaken"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for network, found in (scorecard.classes or {}).items():
        if not _is_asked(network, networks):
            continue
        taken = [(own, other, count) for own, others in found.confusion.items() for other, count in others.items()]
        mistaken = sorted((each for each in taken if each[0] != each[1]), key=lambda each: -each[2])
        for position, (own, other, count) in enumerate(mistaken[:WORST_PAIRS]):
            total = sum(found.confusion[own].values())
            label = "" if position else network
            table.add_row(label, own, other, f"{count:,}", f"{total:,}", f"{100 * count / total:.1f}")
    return table if table.rows else Text(end="")


def shown_names(cards: Iterable[Scores]) -> list[str]:
    """Return the scores that have a column: every Recall@K, by K, MAP@R, R-precision and NMI; accuracies."""
    names = {name for scores in cards for name in scores}
    others = [name for name in (*PRECISIONS, "nmi", *ACCURACIES) if name in names]
    return [*_recalls(names), *_validation_recalls(names), *others]


def unit(names: Sequence[str]) -> str:
    """Return which of these scores are in percent, in words."""
    accuracies = ["accuracies"] * bool(set(names) & set(ACCURACIES))
    recalls = ["R@K"] * (not accuracies or any(name.startswith(RECALL) for name in names))
    *first, last = [*recalls, *(header(name) for name in PRECISIONS if name in names), *accuracies]
    return f"{', '.join(first)} and {last}" if first else last


def header(name: str) -> str:
    """Return the name of a score as a column has it."""
    if name == "balanced_accuracy":
        return "balanced"
    if name == "r_precision":
        return "R-prec"
    if name.startswith(VALIDATION):
        return f"val {header(name.removeprefix(VALIDATION))}"
    if name in ACCURACIES:
        return name.replace("top", "top-")
    return name.upper().replace("RECALL", "R")


def is_share(name: str) -> bool:
    """Whether a score is a share of the queries, neighbours or images, shown in percent."""
    bare = name.removeprefix(VALIDATION)
    return bare.startswith(RECALL) or bare in (*PRECISIONS, *ACCURACIES, BASELINE)


def score_cells(scores: Scores, names: Sequence[str]) -> list[str]:
    """Return the cells of a row, a dash where a score was not computed."""
    found = {name: f"{100 * value:.1f}" if is_share(name) else f"{value:.3f}" for name, value in scores.items()}
    return [found.get(name, MISSING) for name in names]
