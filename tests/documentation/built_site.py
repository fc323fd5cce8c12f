"""Builds the site of docs/ as `make docs` does, and reads what was built."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What a browser fetches by itself, and what it follows only when somebody clicks.
FETCHED = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
ELSEWHERE = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)


def build(docs, target):
    """Build a folder of pages; return what Sphinx said of it and its exit status."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-d", target / "doctrees"]
    finished = subprocess.run([*command, docs, target / "html"], capture_output=True, text=True, check=False)
    return finished.returncode, finished.stdout + finished.stderr


@dataclass
class Page(HTMLParser):
    """What a page of the site refers to.

    Attributes:
        fetched: Addresses that a browser fetches with the page.
        links: Addresses that it follows when asked.
        anchors: Names of places in the page.
    """

    text: str
    fetched: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self):
        super().__init__()
        self.feed(self.text)
        self.fetched += addresses_in_styles(self.text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.fetched += [given[name] for name in FETCHED.get(tag, ()) if given.get(name)]
        self.links += [given["href"]] if tag == "a" and given.get("href") else []
        self.anchors |= {given["id"]} if given.get("id") else set()


def addresses_in_styles(text):
    """Return what style sheets, or styles in a page, fetch."""
    return re.findall(r"""(?:url\(|@import\s+)\s*["']?([^"')\s]+)""", text)


def from_elsewhere(addresses):
    """Return the addresses that are not of the site itself."""
    return [address for address in addresses if ELSEWHERE.match(address)]
