import pytest
import torch


@pytest.fixture(autouse=True)
def _proxies_are_the_same_whatever_ran_before():
    """A number may be out of reach of float32 for some proxies, and they are drawn from the default stream."""
    torch.manual_seed(0)
