"""The last generation as a slim network: cut out of its parent, trained on, its parent the teacher.

What pruning calls fine-tuning (Han et al., NeurIPS 2015), with the teacher of Hinton, Vinyals, Dean (2015); for
retrieval with the similarities of `teacher.py`. Ours. `extract_slim` throws the reset hypothesis away, and with it
what the dense network knew through it; here the slim network learns it before it goes.
"""

from __future__ import annotations

from torch import nn

from ke_metric.methods.method import Birth, Method
from ke_metric.methods.teacher import taught_by_parent
from ke_metric.regime import Regime
from ke_metric.split.plan import SplitPlan
from ke_metric.split.slim import extract_slim


class SlimLast(Method):
    """Inherits the fit hypothesis and is nothing else; stands in for a recipe's method in the last generation.

    With `method.slim_last`; its parent is the generation before, grown by the recipe's method.
    """

    changes_architecture = True

    def architecture(self, network: nn.Module, plan: SplitPlan) -> nn.Module:
        """Return the slim network.

        Raises:
            KeMetricError: The plan is one of single weights.
        """
        return extract_slim(network, plan)

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`; the child is as wide as the slim network."""
        assert birth.parent_plan is not None, "generation 1 has no parent"
        slim = extract_slim(birth.parent_network(), birth.parent_plan)
        child.load_state_dict(slim.state_dict(), strict=True)

    def regime(self, network: nn.Module, birth: Birth) -> Regime:
        """Return the teacher's regime; a weight of 1 unless the recipe names another."""
        return taught_by_parent(birth)
