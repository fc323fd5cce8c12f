"""The page of a report: one HTML file that needs nothing else, and lets nothing in.

The script of the figures is inside, compressed; a policy in the page allows exactly this script, the few lines that
start it and the one style sheet, by their hashes, and no connection to anywhere. Every text from a lineage (names of
classes, files, folders) is escaped by Jinja2; the figures' data are compressed and hold no letter of HTML at all.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from functools import cache
from pathlib import Path

import ke_metric
from ke_metric.disk import write_text
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.report.charts import PALETTE, for_page
from ke_metric.report.page_parts import Report

HERE = Path(__file__).parent
TEMPLATE, STYLE, STARTER = "page.html", "page.css", "page.js"
NAMES_AT_MOST = 400
"""Of the queries that a gallery lists by name."""
EXTRA = "pip install 'ke_metric[report]'"


def require_report_extra() -> None:
    """Refuse to begin where a library is missing.

    Raises:
        KeMetricError: ENVIRONMENT: what draws figures or fills the template is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise KeMetricError(f"a report needs {error.name}; install it: {EXTRA}", ExitCode.ENVIRONMENT) from error


def render_page(report: Report) -> str:
    """Return the page as HTML.

    Raises:
        KeMetricError: The extra `report` is not installed.
    """
    require_report_extra()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = f"{_colors()}\n{(HERE / STYLE).read_text(encoding='utf-8')}"
    starter = (HERE / STARTER).read_text(encoding="utf-8")
    library = figure_library()
    text = environment.get_template(TEMPLATE).render(
        report=report,
        policy=_policy(style, starter, library),
        style=style,
        starter=starter,
        library=packed(library),
        figures=packed(json.dumps({chart.name: for_page(chart) for chart in report.charts}, allow_nan=False)),
        names_at_most=NAMES_AT_MOST,
        version=ke_metric.__version__,
    )
    # Names of files may hold bytes that are no text.
    return text.encode("utf-8", "replace").decode()


def write_page(report: Report, path: Path) -> int:
    """Write the page, whole or not at all, and return its bytes.

    Raises:
        KeMetricError: It cannot be written, or the extra `report` is not installed.
    """
    text = render_page(report)
    write_text(path, text)
    return len(text.encode())


def packed(text: str) -> str:
    """Return a text compressed, in letters that mean nothing to HTML: whatever a name holds, it ends no element."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def figure_library() -> str:
    """Return the script that draws the figures: Vega-Embed with Vega-Lite and Vega."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.drawFigure = vegaEmbed;"))


def _policy(style: str, *scripts: str) -> str:
    allowed = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; img-src data:; script-src {allowed}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _colors() -> str:
    """Return the colours as CSS variables: those of the light scheme, and of the dark one where it is asked for."""
    light, dark = ("".join(f"--{name}:{pair[side]};" for name, pair in PALETTE.items()) for side in (0, 1))
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        + "".join(f".swatch.{name}{{background:var(--{name})}}" for name in PALETTE)
    )
