"""Writes docs/commands.md: every command with its arguments, options and examples, from what click declares
(`make docs`).
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from ke_metric.cli import main

PAGE = Path(__file__).with_name("commands.md")
HEAD = """\
# Every command

Written by `docs/generate_commands.py` from the declarations; `ke-metric COMMAND --help` says the same in a \
terminal. Results go to stdout, progress goes to stderr; `--json` prints exactly one document.
"""
CODES = """\
## Exit codes

| code | meaning |
|---|---|
| 0 | ok |
| 1 | unexpected |
| 2 | usage: a command or an option that is not there |
| 3 | recipe |
| 4 | data |
| 5 | environment |
| 6 | training diverged |
| 7 | quality gate (`--min`) not met |
| 8 | lineage busy, finished or of another recipe |
| 130 | interrupted with state saved |
"""


def commands(group: click.Group, prefix: str = "ke-metric") -> Iterator[tuple[str, click.Command]]:
    """Yield every command that can be run, with all of its words."""
    for name in group.commands:
        command = group.commands[name]
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")


def help_of(command: click.Command) -> tuple[str, str]:
    """Return a command's words and its examples, which stand below `\\b` in its help."""
    paragraphs = [part.strip("\n") for part in inspect.cleandoc(command.help or "").split("\n\n")]
    words = [" ".join(part.split()) for part in paragraphs if not part.startswith("\b")]
    examples = [part.removeprefix("\b\n") for part in paragraphs if part.startswith("\b")]
    # What an example says beside its command becomes a comment of the shell.
    return "\n\n".join(map(escaped, words)), re.sub(r" {3,}(?=[^ #])", "  # ", "\n".join(examples))


def escaped(text: str) -> str:
    """Return text in which Markdown sees no marks but those of code, fit for a cell of a table."""
    return re.sub(r"(?<!\\)([<*|])", r"\\\1", text)


def row(parameter: click.Parameter, context: click.Context) -> str:
    """Return the row of an option or an argument."""
    metavar = parameter.make_metavar(context).removesuffix(" RANGE")
    if not isinstance(parameter, click.Option):
        return f"| {code(metavar)} | {escaped(ARGUMENTS.get(parameter.name or '', ''))} |"
    value = "" if parameter.is_flag or parameter.count else f" {metavar}"
    *short, last = parameter.opts
    name = ", ".join(map(code, [*short, f"{last}{value}"]))
    # An example at the end of the words is what one types.
    said = re.sub(r"(?<=: )--[\w-]+ \S+$", r"`\g<0>`", escaped(parameter.help or ""))
    notes = [
        "Must be given." * parameter.required,
        "May be given several times." * parameter.multiple,
        limits(parameter.type),
        f"Default: `{parameter.default}`." if parameter.show_default and not parameter.is_flag else "",
    ]
    end = "." if said and not said.endswith(".") else ""
    return f"| {name} | {' '.join(filter(None, [said + end, *notes]))} |"


def code(text: str) -> str:
    """Return text as code in a cell of a table."""
    return f"`{text}`".replace("|", "\\|")


def limits(kind: click.ParamType) -> str:
    """Return which numbers an option takes; empty where all."""
    if not isinstance(kind, click.IntRange | click.FloatRange):
        return ""
    lowest = "" if kind.min is None else f"{'More than' if kind.min_open else 'At least'} {kind.min}"
    highest = "" if kind.max is None else f"{'less than' if kind.max_open else 'at most'} {kind.max}"
    return f"{' and '.join(filter(None, [lowest, highest]))}.".capitalize()


ARGUMENTS = {
    "recipe": "A YAML file.",
    "lineage": "Folder of a lineage.",
    "lineages": "Folders of lineages.",
    "folder": "Folder that holds lineages.",
    "pictures": "A folder per class, or a CSV with a path and a label in each line.",
    "sources": "Files, folders, and CSV files with a column of paths.",
    "ids": "Ids of items.",
    "name": "A benchmark.",
    "name_or_path": "A benchmark, or a folder or CSV of yours.",
}
"""What the arguments are: click declares no words for them."""


def section(name: str, command: click.Command) -> str:
    """Return what is said of one command."""
    context = click.Context(command, info_name=name)
    words, examples = help_of(command)
    parts = [f"## {name}", words, f"`{' '.join([name, *command.collect_usage_pieces(context)])}`"]
    parameters = sorted(command.params, key=lambda parameter: isinstance(parameter, click.Option))
    rows = [row(parameter, context) for parameter in parameters if not getattr(parameter, "hidden", False)]
    parts += ["\n".join(["| | |", "|---|---|", *rows])] * bool(rows)
    parts += [f"```bash\n{examples}\n```"] * bool(examples)
    return "\n\n".join(part for part in parts if part)


def page() -> str:
    """Return the page."""
    return "\n\n".join([HEAD.strip(), *(section(*found) for found in commands(main)), CODES.strip()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
