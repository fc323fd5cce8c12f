"""The command line: parses, calls one function, prints. Results on stdout, progress on stderr.

Imports nothing heavy before a command runs, so that `ke-metric --help` is quick, and of the declarations only those
beside the command that was named. The only room that may import every other one.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from ke_metric.errors import ExitCode, KeMetricError, readable

DECLARED = {
    **dict.fromkeys(("train", "eval", "slim", "compare", "data"), "commands"),
    **dict.fromkeys(("embed", "predict", "index", "search", "export", "serve"), "retrieval_commands"),
    **dict.fromkeys(("explore", "lineages", "recipe", "report", "doctor"), "look_commands"),
}
"""In which module a command is declared."""


class Declared(Mapping[str, click.Command]):
    """The commands by name; a module that declares them is imported when one of its commands is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        command: click.Command = getattr(
            import_module(f"ke_metric.cli.{DECLARED[name]}"), "evaluate" if name == "eval" else name
        )
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(DECLARED)

    def __len__(self) -> int:
        return len(DECLARED)


@contextmanager
def importing() -> Iterator[None]:
    """Surround the imports of a command, in which the garbage collector does not look for garbage, now or later.

    torch and what comes with it are 400,000 objects that stay. To look through them again and again while they grow
    takes a seventh of the time of the imports, and half a second whenever all objects are looked through.
    """
    known, was_enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        # Where nothing was new there may be garbage among the objects, of another command in the same process.
        if len(sys.modules) > known:
            gc.freeze()


class Commands(click.Group):
    """A group that turns a KeMetricError into its message on stderr and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeMetricError as error:
            # Also where torchrun has started several processes: those that have joined end with a bare exit code
            # where another one says why, and what one meets before that may be its own.
            click.echo(f"ke-metric: {readable(str(error))}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            training = "; if it has finished an epoch, it goes on after that with --resume"
            click.echo(f"ke-metric: stopped at once{training * (ctx.invoked_subcommand == 'train')}", err=True)
            ctx.exit(ExitCode.INTERRUPTED)


@click.group(cls=Commands, commands=Declared(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ke_metric")
def main() -> None:
    """Knowledge Evolution: train an image network generation after generation on a small data set.

    \b
    ke-metric recipe ~/my_images -o birds.yaml      propose a recipe for pictures of yours
    ke-metric train recipes/glyphs_resnet18.yaml    train a lineage, nothing to download
    ke-metric eval --gen 3                          score a generation again
    ke-metric slim --gen 3 -o slim                  store its slim network, to be used anywhere
    ke-metric predict photos -o predictions.csv     tell classes, by a trained classifier
    ke-metric index build photos -o photos.index    embed pictures into an index
    ke-metric search new.jpg --index photos.index   find the most similar ones
    ke-metric compare lineages/*                    scores over seeds, and which recipe is ahead
    ke-metric lineages                              what was trained; show one, remove some
    ke-metric explore                               see what pictures find, in the browser
    ke-metric doctor                                what is wrong with the environment, and what mends it
    ke-metric report lineages/demo                  one page that shows all of it
    ke-metric data check ~/my_images                look for bad files before training
    """


def run_program() -> None:
    """Be the program `ke-metric`, which ends with its command; `main` is for a process that goes on."""
    # At its end Python looks through all objects again, also those of what was imported outside `importing`.
    atexit.register(gc.freeze)
    main()
