"""How Sphinx makes a site of the pages in docs/ (`make docs`). The pages stay readable as they lie, on a code host
too, and the site loads nothing from elsewhere.
"""

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "ke_metric"
author = "the authors of ke_metric"
html_title = "ke_metric"
extensions = ["myst_parser", "rooms_picture"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
# What a page shows without naming a language is a terminal.
highlight_language = "text"
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["scrolling.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
# A browser lets a page that lies in a file read no other file, which summaries of search results would need.
html_show_search_summary = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

NAMED_PAGE = re.compile(r"docs/([\w./-]+)\.md")


class LinkNamedPages(SphinxTransform):
    """Make links of the pages that a text names as it lies in the repository: `docs/start.md`."""

    default_priority = 210

    def apply(self, **_: object) -> None:
        """Put a link around every such name that is not in one."""
        for name in list(self.document.findall(nodes.literal)):
            page = NAMED_PAGE.fullmatch(name.astext())
            if page is None or isinstance(name.parent, nodes.reference | pending_xref):
                continue
            link = pending_xref(
                "",
                name.deepcopy(),
                refdoc=self.env.docname,
                refdomain="std",
                reftype="doc",
                reftarget=f"/{page[1]}",
                refexplicit=True,
                refwarn=True,
            )
            name.parent.replace(name, link)


def give_captions_a_level(app: Sphinx, page: str, template: str, context: dict[str, str], *_: object) -> None:
    """Say which level the headings in the navigation are of, without which screen readers cannot place them."""
    tree = "furo_navigation_tree"
    context[tree] = context[tree].replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app: Sphinx) -> None:
    """Add what is the project's own."""
    app.add_transform(LinkNamedPages)
    # After the theme has made the navigation.
    app.connect("html-page-context", give_captions_a_level, priority=900)
