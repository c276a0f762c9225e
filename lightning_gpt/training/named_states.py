"""An optimizer's state by the names of its parameters, rather than by their numbers.

The number of a parameter depends on the groups of an optimizer and on how a model is spread over devices; its name does
not.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.errors import CallError


def name_states(optimizer: torch.optim.Optimizer, parameters: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
    """Have ``optimizer.state_dict()`` name its parameters, and ``load_state_dict()`` find them by name.

    What is loaded is the state of each parameter. The groups and their options stay as they are: they follow from the
    configuration.

    Args:
        optimizer: The optimizer.
        parameters: Gives every parameter that it trains, with its name. A layout replaces parameters and their names.
    """

    def in_order(optimizer: torch.optim.Optimizer) -> list[str]:
        names = {parameter: name for name, parameter in parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]

    def named(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        order = in_order(optimizer)
        groups = [{**group, "params": [order[number] for number in group["params"]]} for group in state["param_groups"]]
        return {
            **state,
            "state": {order[number]: each for number, each in state["state"].items()},
            "param_groups": groups,
        }

    def numbered(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        numbers = {name: number for number, name in enumerate(in_order(optimizer))}
        unknown = [name for name in state["state"] if name not in numbers]
        if unknown:
            raise CallError(f"the checkpoint's optimizer trains different weights from this run: {', '.join(unknown)}")
        groups, first = [], 0
        for group in optimizer.param_groups:
            after = first + len(group["params"])
            groups.append({**group, "params": list(range(first, after))})
            first = after
        states = {numbers[name]: each for name, each in state["state"].items()}
        return {**state, "state": states, "param_groups": groups}

    optimizer.register_state_dict_post_hook(named)
    optimizer.register_load_state_dict_pre_hook(numbered)
