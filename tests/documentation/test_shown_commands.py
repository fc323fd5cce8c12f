"""Every command that a document shows is one that the command line takes, with all of its options and values."""

import re

import click
import pytest
from shown_blocks import BLOCKS, DOCUMENTS, words_of

from ke_metric.cli import main

COMMANDS = sorted({tuple(words): block.name for block in BLOCKS for words in block.commands}.items())


def parse(words):
    """Parse a command as click does before it runs it; a click.UsageError where it cannot be run."""
    command, context, left = main, None, list(words)
    while isinstance(command, click.Group) and left:
        context = click.Context(command, info_name=command.name, parent=context)
        _, command, left = command.resolve_command(context, left)
    command.make_context(command.name, left, parent=context)


def test_commands_are_found():
    assert len(COMMANDS) > 60
    assert {block.partition(":")[0] for _, block in COMMANDS} >= {
        "README.md",
        "docs/retrieval.md",
        "docs/commands.md",
    }


@pytest.mark.parametrize(("words", "where"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_a_command_can_be_run(words, where):
    try:
        parse(words)
    except click.UsageError as error:
        pytest.fail(f"{where}: ke-metric {' '.join(words)}: {error.format_message()}")


@pytest.mark.parametrize(
    "line",
    [
        "trian recipe.yaml",
        "train",
        "train recipe.yaml --dryrun",
        "train recipe.yaml other.yaml",
        "eval --gen",
        "eval --network narrow",
        "search a.png",
        "search a.png --index photos.index -k none",
        "index destroy",
    ],
)
def test_a_command_that_cannot_be_run_would_be_seen(line):
    with pytest.raises(click.UsageError):
        parse(line.split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("eval --gen 3   # scores it again", ["eval", "--gen", "3"]),
        ("eval --json > scores.json", ["eval", "--json"]),
        ("eval --json | jq .", ["eval", "--json"]),
        ("serve --index a.index &", ["serve", "--index", "a.index"]),
        ("search a.png --where 'label == \"a > b\"'", ["search", "a.png", "--where", 'label == "a > b"']),
        ("train a.yaml --set split.rates=[0.25,0.5]", ["train", "a.yaml", "--set", "split.rates=[0.25,0.5]"]),
    ],
)
def test_what_is_the_shells_is_no_word_of_the_command(line, words):
    assert words_of(line) == words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_named_in_a_text_exist(document):
    text = re.sub(r"^```.*?^```", "", DOCUMENTS[document], flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r"`ke-metric ([a-z][^`]*)`", text):
        command, words = main, line.replace("|", " ").split()
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= options | {"--help", "--version"}, line
        assert not isinstance(command, click.Group) or not words or words[0].isupper() or "..." in line, line
