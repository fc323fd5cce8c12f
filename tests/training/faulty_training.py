"""The program of one process of a training by several: `faulty_training.py ARGUMENTS` of ke-metric.

The environment variable FAULT says what becomes of it, as `RANK:WHERE:WHAT`: where is `step` (the optimizer step
that the variable STEP names), `scoring`, `saving` (a generation), `decoding` or `precision` (its choice, when the
processes have joined); what is `die` (SIGKILL) or `fail`
(with a message for the user). With SLOW, the first process computes the scores of a generation for as many seconds
longer, alone.
"""

import os
import signal
import sys
import time

from ke_metric import scoring
from ke_metric.cli import main, train
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.lineage.store import Lineage
from ke_metric.training import engine
from ke_metric.training.one_generation import GenerationTraining

RANK, WHERE, WHAT = os.environ.get("FAULT", "::").split(":")


def meet(where):
    """Meet the fault of this place, if it is this process's."""
    if (os.environ.get("RANK", "0"), where) != (RANK, WHERE):
        return
    if WHAT == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeMetricError("a picture that process alone has seen is broken", ExitCode.DATA)


def meeting(where, work, when=lambda *arguments: True):
    def met(*arguments, **options):
        if when(*arguments):
            meet(where)
        return work(*arguments, **options)

    return met


def slow_scorecard(*arguments, **options):
    scoring.score_retrieval = slow_scores
    return scorecard(*arguments, **options)


def slow_scores(*arguments, **options):
    time.sleep(float(os.environ.get("SLOW", "0")))
    return score_retrieval(*arguments, **options)


score_retrieval, scorecard = scoring.score_retrieval, scoring.Scorer.scorecard
scoring.Scorer.scorecard = meeting("scoring", slow_scorecard)
GenerationTraining.take_step = meeting(
    "step", GenerationTraining.take_step, lambda self, step, batch: step == int(os.environ.get("STEP", "-1"))
)
Lineage.append = meeting("saving", Lineage.append)
engine._choose_precision = meeting("precision", engine._choose_precision)
train._decoded = meeting("decoding", train._decoded)
main(sys.argv[1:], prog_name="ke-metric")
