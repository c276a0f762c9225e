"""Parameters of which several stages of a pipeline hold copies, such as a head that is tied to the embedding."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Copies:
    """Keeps copies equal: each gets the sum of all their gradients.

    Args:
        needed: The modules that each process of the group needs, of one model that is whole in all of them.
        group: The processes, which are stages of a pipeline.
    """

    def __init__(self, needed: Sequence[Iterable[nn.Module]], group: dist.ProcessGroup) -> None:
        self._group = group
        holders: dict[tuple[nn.Module, str], list[int]] = {}
        for rank, modules in enumerate(needed):
            places = {
                (part, name): None for module in modules for part in module.modules() for name in part._parameters
            }
            for place in places:
                holders.setdefault(place, []).append(rank)
        # by module and name, because sharding replaces the parameters themselves
        self._places = {
            place: ranks
            for place, ranks in holders.items()
            if len(ranks) > 1 and place[0]._parameters[place[1]] is not None
        }

    def _own(self) -> list[tuple[nn.Parameter, list[int]]]:
        """The copies that this process holds, and the ranks of all that hold them."""
        own = []
        for (part, name), ranks in self._places.items():
            parameter = part._parameters[name]
            if self._group.rank() in ranks and parameter is not None:
                own.append((parameter, ranks))
        return own

    def counted_elsewhere(self) -> set[nn.Parameter]:
        """The copies that an earlier stage counts, in a norm over all stages."""
        return {parameter for parameter, ranks in self._own() if ranks[0] != self._group.rank()}

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Give each copy the sum of the copies' gradients."""
        for parameter, ranks in self._own():
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradient = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
            if len(ranks) == self._group.size():
                dist.all_reduce(gradient, group=self._group)
            else:
                self._add_other(gradient, next(rank for rank in ranks if rank != self._group.rank()))

    def _add_other(self, gradient: Tensor, rank: int) -> None:
        """Add the gradient of the one other process that holds a copy; both add the same two numbers."""
        peer, theirs = dist.get_global_rank(self._group, rank), torch.empty_like(gradient)
        own = gradient.contiguous()
        exchange = [dist.P2POp(dist.isend, own, peer, self._group), dist.P2POp(dist.irecv, theirs, peer, self._group)]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        gradient += theirs
