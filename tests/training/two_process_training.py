"""The program of one process of a training by two: `two_process_training.py ARGUMENTS` of ke-metric.

Process 1 kills itself before the optimizer step that the environment variable DIES_AT names.
"""

import os
import signal
import sys

from ke_metric.cli import main
from ke_metric.training.one_generation import GenerationTraining

take_step = GenerationTraining.take_step


def dying_step(self, step, batch):
    if os.environ["RANK"] == "1" and step == int(os.environ.get("DIES_AT", "-1")):
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(self, step, batch)


GenerationTraining.take_step = dying_step
main(sys.argv[1:], prog_name="ke-metric")
