"""What the documents show: their fenced blocks, and the commands and Python in them."""

import re
import shlex
from dataclasses import dataclass

from built_site import ROOT

PATHS = (ROOT / "README.md", ROOT / "eval" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A prompt, or variables that are set for the command alone, may stand before it.
COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*ke-metric (?=[a-z-])(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    text: str

    @property
    def name(self):
        """Where it stands."""
        return f"{self.document}:{self.line}"

    @property
    def commands(self):
        """The words of every ke-metric command in it, without what is the shell's."""
        whole = re.sub(r"\s*\\\n\s*", " ", self.text)
        return [words_of(line) for line in COMMAND.findall(whole)]


def words_of(line):
    """Return the words of a command up to a comment, a pipe or a redirection."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words = []
    for word in lexer:
        if word[0] in "|;&<>":
            break
        words.append(word)
    return words


def blocks_of(document):
    """Return the fenced blocks of a document."""
    text = DOCUMENTS[document]
    return [
        Block(document, text.count("\n", 0, found.start()) + 1, found[1], found[2]) for found in FENCE.finditer(text)
    ]


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
