"""Knowledge Evolution: the child inherits its parent's fit hypothesis and draws a new reset hypothesis.

Taha, Shrivastava, Davis: Knowledge Evolution in Neural Networks, CVPR 2021 (arXiv 2103.05152). For every layer,
W <- M * W + (1 - M) * R with the split mask M and R drawn anew in each generation; norm layers (affine and running
statistics) and biases are inherited whole.
"""

from __future__ import annotations

from torch import nn

from ke_metric.generation import load_whole
from ke_metric.methods.fit_steps import with_fit_steps
from ke_metric.methods.method import Birth, Method
from ke_metric.methods.teacher import guidance
from ke_metric.regime import Regime
from ke_metric.split.reset import redraw_reset


class KnowledgeEvolution(Method):
    """Inherits the fit hypothesis of the lineage's split plan and redraws the reset hypothesis by `method.reset`."""

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`.

        Raises:
            KeMetricError: A tensor of the parent is missing, left over or of another shape.
        """
        assert birth.parent is not None, "generation 1 has no parent"
        load_whole(child, birth.parent, "the parent's weights")
        generator = birth.generator("reset")
        redraw_reset(child, birth.plan, generator=generator, init=birth.recipe.reset, fresh=birth.fresh())

    def regime(self, network: nn.Module, birth: Birth) -> Regime:
        """See `Method.regime`; a teacher and steps of the fit hypothesis alone where the recipe asks for them."""
        return with_fit_steps(guidance(birth), network, birth)
