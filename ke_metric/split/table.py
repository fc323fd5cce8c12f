"""A split plan as a table to read."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ke_metric.split.masks import ChannelMask, WeightMask

if TYPE_CHECKING:
    from ke_metric.split.plan import SplitPlan


# Why a module or weight is kept whole that `keep_whole` names.
ASKED_FOR = "keep_whole names it"


def split_table(plan: SplitPlan) -> str:
    """Return one line for every weight: kept / all outputs, kept / all inputs (kels only), share that is fit.

    Below the table: what is kept whole and why, what is frozen, and which norms see the fit channels only.
    """
    rows = [("weight", "outputs", "inputs", "fit")]
    rows += [
        (name, *_channels(mask), _share(mask.fit_count, prod(mask.shape))) for name, mask in plan.weights.items()
    ]
    rows.append(("all", "", "", _share(plan.fit_count, plan.fit_count + plan.reset_count)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    asked_for = [name for name, reason in plan.kept_whole.items() if reason == ASKED_FOR]
    notes = [
        f"{module} keeps all of its channels: {reason}"
        for module, reason in plan.kept_whole.items()
        if module not in asked_for
    ]
    if asked_for:
        notes.append(f"kept whole by request: {', '.join(asked_for)}")
    if plan.frozen:
        notes.append(f"frozen (requires_grad=False), and so never redrawn: {', '.join(plan.frozen)}")
    if plan.norms:
        notes.append(f"statistics over the fit channels only: {', '.join(plan.norms)}")
    return "\n".join([f"{plan.kind} at split rate {plan.rate}", *lines, *notes])


def _channels(mask: ChannelMask | WeightMask) -> tuple[str, str]:
    if isinstance(mask, WeightMask):
        return str(mask.shape[0]), str(mask.shape[1])
    return f"{mask.outputs.count} / {mask.outputs.size}", f"{mask.inputs.count} / {mask.inputs.size}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
