"""The fused loss in two processes, replicated (DDP) and sharded (FSDP2), against one process on the joined batch."""

import pytest

from tests.parallel import fused_losses
from tests.parallel.world import result


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", fused_losses.LAYOUTS)
def test_two_processes_have_the_gradients_of_one(layout: str, tied: bool) -> None:
    found = result(fused_losses.__name__, 2, f"{layout} {tied}")
    assert found["difference"] < 1e-6
    assert found["largest"] > 0.01
