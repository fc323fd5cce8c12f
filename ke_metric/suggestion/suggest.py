"""A recipe for a user's own pictures: proposed by what they are, timed on this machine, fitted to a time.

What comes out is YAML with the reason beside every choice; it loads, and its first steps have been taken.
"""

from __future__ import annotations

import importlib.util
import json
import re
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ke_metric.benchmarks.listings import Columns
from ke_metric.images.decoding import Progress
from ke_metric.images.image_set import count_parts
from ke_metric.recipe.schema import Recipe
from ke_metric.suggestion.choices import FieldChoice, Plan, Scale, Surroundings, as_recipe, choices, scales, with_plan
from ke_metric.suggestion.cost import GenerationCost, fitting_plan, is_ample, measure
from ke_metric.suggestion.survey import PictureSurvey, survey_pictures
from ke_metric.training.engine import Engine

WIDTH = 110
"""Columns up to which a reason stands behind its field; a longer one stands above it."""
PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
# What YAML would read as something else than text.
RESERVED = frozenset({"true", "false", "null"})

Listener = Callable[[str], None]


@dataclass(frozen=True)
class Suggestion:
    """A recipe for some pictures, and what a training by it takes.

    Attributes:
        survey: What the pictures are.
        chosen: The fields, each with its reason.
        recipe: The recipe they make.
        scale: How large pictures and network are.
        plan: How long is trained.
        cost: What a generation takes here.
        seconds: Of the whole training, decoding included.
        available: Seconds that were to be fitted into; None where nothing was said.
        fits: Whether the plan fits.
    """

    survey: PictureSurvey
    chosen: Sequence[FieldChoice]
    recipe: Recipe
    scale: Scale
    plan: Plan
    cost: GenerationCost
    seconds: float
    available: float | None
    fits: bool

    @property
    def time_text(self) -> str:
        """What the training takes, in a sentence."""
        each = duration(self.cost.seconds(self.plan.epochs))
        whole = "" if self.plan.generations == 1 else f", {duration(self.seconds)} in all"
        where = f"measured here, on {self.cost.engine['device']}, while nothing else is done"
        said = f"about {each} a generation{whole}, {where}"
        if self.available is None:
            return said
        if not self.fits:
            return (
                f"{said}: more than {duration(self.available)}, and less would teach nothing; train on fewer "
                "pictures, or on a faster machine"
            )
        return f"{said}; {duration(self.available)} are there"

    @property
    def text(self) -> str:
        """The recipe as YAML with comments."""
        return "\n".join([*self._head(), *_lines(self.chosen)]) + "\n"

    def _head(self) -> Iterator[str]:
        yield "# Proposed by ke-metric recipe from the pictures; change what you know better."
        parts = (f"{part.images:,} of {part.classes:,} classes ({name})" for name, part in self._counts())
        yield f"# Pictures: {', '.join(parts)}."
        for kind, count in self.survey.problems.items():
            yield f"# Look at these first (ke-metric data check): {kind}, {count:,}."
        yield from (f"# {line}" for line in textwrap.wrap(f"Time: {self.time_text}.", WIDTH - 2))

    def _counts(self) -> Iterator[tuple[str, Any]]:
        counts = count_parts(self.survey.benchmark)
        if counts.get("query") == counts.get("gallery"):
            counts.pop("gallery", None)
        yield from counts.items()

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "task": self.recipe.task,
            "pictures": self.survey.to_json(),
            "choices": {
                choice.name: {"value": choice.value, **({"reason": choice.reason} if choice.reason else {})}
                for choice in self.chosen
            },
            "measured": self.cost.to_json(),
            "generations": self.plan.generations,
            "epochs": self.plan.epochs,
            "seconds_per_generation": round(self.cost.seconds(self.plan.epochs), 1),
            "seconds": round(self.seconds, 1),
            **({} if self.available is None else {"available_seconds": self.available}),
            "fits": self.fits,
        }


def suggest_recipe(
    path: Path,
    *,
    task: str | None = None,
    seconds: float | None = None,
    device: str | None = None,
    columns: Columns | None = None,
    progress: Progress | None = None,
    said: Listener = lambda text: None,
) -> Suggestion:
    """Propose a recipe for the pictures of a folder or CSV, and measure what it takes.

    Args:
        path: A folder with a folder per class (or such folders below train and test), or a CSV with path,label.
        task: `retrieval` or `classification`; chosen by the classes when None.
        seconds: What the training may take; as long as usual when None.
        device: A torch device; found by itself when None.
        columns: What the columns of a CSV are called.
        progress: Called with the number of pictures decoded and their total.
        said: Hears what is measured.

    Raises:
        KeMetricError: The pictures cannot be trained on (DATA); the device is not there (ENVIRONMENT).
    """
    # Before thousands of pictures are decoded.
    engine = Engine("auto", device)
    started = time.perf_counter()
    survey = survey_pictures(path, task=task, columns=columns, progress=progress)
    decoding = time.perf_counter() - started
    around = Surroundings(
        on_gpu=engine.device.type != "cpu",
        has_timm=importlib.util.find_spec("timm") is not None,
        columns=columns or Columns(),
    )
    available = None if seconds is None else max(0.0, seconds - decoding)
    candidates = scales(survey, around)
    for scale in candidates:
        chosen = choices(survey, path.expanduser().absolute(), scale, around)
        # Any plan will do: how long a step takes does not depend on how many there are.
        said(f"timing {scale}")
        cost = measure(as_recipe(with_plan(chosen, Plan(3, 10), "")), survey.benchmark, device)
        plan, fits = fitting_plan(cost, available)
        if seconds is None or is_ample(plan, cost):
            break
    chosen = with_plan(chosen, plan, f"{plan.epochs * cost.batches:,} steps, {_minutes(cost, plan)} a generation")
    return Suggestion(
        survey=survey,
        chosen=chosen,
        recipe=as_recipe(chosen),
        scale=scale,
        plan=plan,
        cost=cost,
        seconds=decoding + plan.generations * cost.seconds(plan.epochs),
        available=seconds,
        fits=fits,
    )


def _minutes(cost: GenerationCost, plan: Plan) -> str:
    return f"about {duration(cost.seconds(plan.epochs))}"


def _lines(chosen: Sequence[FieldChoice]) -> Iterator[str]:
    """Yield the lines of a YAML file; every section is one run of choices."""
    section = ""
    for choice in chosen:
        parent, _, own = choice.name.rpartition(".")
        if parent != section:
            section = parent
            yield from [f"{parent}:"] * bool(parent)
        indent = "  " * bool(parent)
        line = f"{indent}{own}: {_value(choice.value)}"
        behind = f"{line:<24}  # {choice.reason}"
        if choice.reason and len(behind) > WIDTH:
            yield from (f"{indent}# {part}" for part in textwrap.wrap(choice.reason, WIDTH - 4))
            yield line
        else:
            yield behind if choice.reason else line


def _value(value: Any) -> str:
    """Return a value as YAML has it: as JSON, but for texts that need no quotes."""
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in RESERVED:
        return value
    return json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Return a time in words: `40 s`, `12 minutes`, `3.5 hours`."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def parse_duration(text: str) -> float | None:
    """Return the seconds of `90s`, `30m` or `1.5h`; None where it is none of these, or 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    return seconds or None
