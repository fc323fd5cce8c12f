"""The command line: parses, calls one function, prints. Results on stdout, progress on stderr.

Imports nothing heavy before a command runs, so that `ke-metric --help` is quick. The only room that may import every
other one.
"""

from ke_metric.cli.commands import main

__all__ = ["main"]
