"""`ke-metric data`: prepare, check and show.

`ke-metric data pictures`: the pictures that a lineage is scored on, as files. `ke-metric data store`: decoded ones
that are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli.display import Outcome, counting, say
from ke_metric.datasets.pictures import check_images, check_text, load_for_check, write_pictures
from ke_metric.datasets.prepare import prepare, prepare_emoji, prepare_text
from ke_metric.datasets.solar import prepare_solar
from ke_metric.disk import refuse_occupied
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.kept_stores import KeptStore, KeptStores
from ke_metric.images.pixel_store import fingerprint
from ke_metric.recipe.schema import Recipe


def prepare_benchmark(name: str, *, source: Path | None, target: Path) -> Outcome:
    """Prepare a benchmark into `target`."""
    if name == "emoji":
        return _prepare_emoji(source, target)
    if source is None and name == "solar":
        report = prepare_solar(target, progress=say)
        return Outcome(report.to_json(), prepare_text(report))
    if source is None:
        raise KeMetricError(
            f"data prepare {name}: name the archive or folder you have with --from PATH (nothing is downloaded)",
            ExitCode.USAGE,
        )
    report = prepare(name, source, target=target, progress=say)
    return Outcome(report.to_json(), prepare_text(report))


def _prepare_emoji(source: Path | None, target: Path) -> Outcome:
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
    return Outcome(document, text)


def check_benchmark(name_or_path: str, **options: Any) -> Outcome:
    """Look through every picture of a benchmark, folder or CSV; for the options see `load_for_check`."""
    benchmark = load_for_check(name_or_path, **options)
    with counting("decoding") as progress:
        report = check_images(benchmark, progress=progress)
    return Outcome(report.to_json(), check_text(report))


def write_lineage_pictures(*, lineage: Path | None, target: Path, part: str) -> Outcome:
    """Write the pictures of a part of the benchmark of a lineage's recipe.

    Args:
        lineage: The lineage's folder; the newest one when None.
        target: Folder to make.
        part: `test` or `train`.

    Raises:
        KeMetricError: No such lineage, its data are missing, or something lies in the target.
    """
    # What looks at networks takes a second to import, which the other commands here have no use for.
    from ke_metric.cli.lineages import open_lineage, tell_data_changes

    refuse_occupied(target)
    store = open_lineage(lineage)
    recipe = store.recipe
    benchmark = load_benchmark(recipe.data, recipe.task)
    tell_data_changes(store, fingerprint(benchmark))
    with counting(f"writing {benchmark.name}") as progress:
        written = write_pictures(benchmark, target, part=part, progress=progress)
    document = {
        "lineage": str(store.folder),
        "benchmark": benchmark.name,
        "folder": str(target),
        "classes": written.classes,
        "pictures": written.counts,
    }
    lines = [f"{target / name}: {count:,} pictures" for name, count in written.counts.items()]
    return Outcome(document, "\n".join([*lines, f"{written.classes:,} classes of {benchmark.name}"]))


def show_pictures(recipe: Recipe, target: Path, *, pictures: int, draws: int) -> Outcome:
    """Draw a contact sheet of training pictures of a recipe.

    Raises:
        KeMetricError: The sheet cannot be written, or the recipe's pictures cannot be read or made batches of.
    """
    from ke_metric.datasets.contact_sheet import draw_sheet, require_png, sheet_rows, write_sheet

    require_png(target)
    benchmark = load_benchmark(recipe.data, recipe.task)
    rows = sheet_rows(benchmark, recipe, pictures=pictures, draws=draws)
    size, count = recipe.data.image_size, len(benchmark.train)
    each = "one draw" if draws == 1 else f"{draws:,} draws"
    told = f"{len(rows):,} of {count:,} training pictures of {benchmark.name}, {each} of each"
    written = write_sheet(draw_sheet(f"{recipe.name}: {told}, {size} x {size} pixels", rows), target)
    document = {
        "sheet": str(target),
        "bytes": written,
        "benchmark": benchmark.name,
        "pictures": len(rows),
        "draws": draws,
        "image_size": size,
        "keys": [row.key for row in rows],
    }
    return Outcome(document, f"{told}: {target} ({written / 1000:,.0f} kB)")


def list_kept() -> Outcome:
    """List the decoded pictures that are kept."""
    stores = KeptStores.of_environment(say)
    kept = list(stores)
    used = sum(each.bytes for each in kept)
    document = {
        "folder": str(stores.folder),
        "bytes": used,
        "most_bytes": stores.most_bytes,
        "stores": [each.to_json() for each in kept],
    }
    total = f"{used / 1e6:,.0f} of {stores.most_bytes / 1e6:,.0f} MB in {stores.folder}"
    return Outcome(document, _kept_table(kept, total))


def clear_kept() -> Outcome:
    """Remove the decoded pictures that no process uses."""
    stores = KeptStores.of_environment(say)
    gone, left = stores.clear()
    document = {
        "folder": str(stores.folder),
        "removed": [each.to_json() for each in gone],
        "in_use": [each.to_json() for each in left if each.in_use],
        "not_removable": [each.to_json() for each in left if not each.in_use],
    }
    freed = sum(each.bytes for each in gone) / 1e6
    used, others = len(document["in_use"]), len(document["not_removable"])
    stay = f"; {used:,} in use stay" if used else ""
    stay += f"; {others:,} that are damaged or another user's stay" if others else ""
    return Outcome(document, f"removed {len(gone):,} stores, {freed:,.0f} MB, from {stores.folder}{stay}")


def _kept_table(kept: Iterable[KeptStore], total: str) -> RenderableType:
    table = Table("pictures", "MB", "size", "last used", "in use")
    for each in kept:
        facts = each.to_json()
        size = f"{each.settings.get('store_size', '')} {each.settings.get('store_shape', '')}"
        table.add_row(
            each.of,
            f"{each.bytes / 1e6:,.0f}",
            size,
            facts["used"].replace("T", " ")[:16],
            "yes" if each.in_use else "",
        )
    return Group(*([table] if table.row_count else []), total)
