"""Write down what the package does: `python tests/golden/record.py OUT [PART...]` makes OUT/record.json.

Only the command line and the public names are used, so that the record outlives a rebuilding of the modules. OUT/work
keeps the lineages and indexes that were made on the way.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

# Before torch is loaded: sums over several threads have another order, and tables the width of the terminal.
os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}

import record_commands
import record_lineages
import record_schema
import record_stores
import torch
from canary import machine
from golden_world import make_world, to_text

QUICK = {
    "recipes": record_schema.recipes,
    "masks": record_schema.masks,
    "options": record_schema.options,
    "base": record_lineages.base_lineages,
    "stores": record_stores.stores,
    "bundles": record_stores.bundles,
    "commands": record_commands.commands,
    "errors": record_commands.errors,
}
LONG = {"lineages": record_lineages.lineages, "exports": record_stores.exports}
PARTS = QUICK | LONG


def record(out: Path, names: list[str]) -> dict:
    """Return the parts that are named, made in a new folder OUT/work."""
    work = out.resolve() / "work"
    work.mkdir(parents=True)
    os.chdir(work)
    make_world()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {"machine": machine()}
    record_lineages.base_lineages()
    for name in names:
        begun = time.perf_counter()
        found[name] = PARTS[name]()
        print(f"{name}: {time.perf_counter() - begun:.1f} s", file=sys.stderr)  # noqa: T201
    return found


def main() -> None:
    """Record all parts, or those that are named after the folder."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(f"{__doc__}\nParts: {', '.join(PARTS)}")
    out = Path(sys.argv[1]).resolve()
    found = record(out, [name for name in PARTS if name in sys.argv[2:] or len(sys.argv) == 2])
    (out / "record.json").write_text(to_text(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
