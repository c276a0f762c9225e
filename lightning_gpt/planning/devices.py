"""The devices that a plan can be made for: a table in ``devices.yaml``, and files of the user's own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning_gpt.errors import CallError
from lightning_gpt.options import Positive, Range, check_options, shown
from lightning_gpt.safe_yaml import parse_yaml, read_yaml

GIB = 2**30
Products = Literal["fp64", "fp32", "bf16", "fp16"]
"""Precision of the inputs of matrix products."""

_PRODUCTS: dict[str, Products] = {"64": "fp64", "bf16": "bf16", "16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class DeviceKind:
    """One kind of device.

    Args:
        name: Its name in the table.
        tflops: Peak rates of dense matrix products in 10¹² FLOP/s, by the precision of their inputs.
        memory_gib: Memory that can be allocated, in GiB.
        memory_gb_s: Memory bandwidth, in 10⁹ byte/s.
        link_gb_s: Bandwidth between two devices of a node, in each direction, in 10⁹ byte/s.
        network_gb_s: Bandwidth between nodes for each device, in each direction, in 10⁹ byte/s.
        node: Devices of a usual node.
        matches: A part of the name that the driver reports; empty for none.
        type: What torch calls it.
    """

    name: str
    tflops: dict[str, Any]
    memory_gib: Positive
    memory_gb_s: Positive
    link_gb_s: Positive
    network_gb_s: Positive
    node: Annotated[int, Range(1, 1024)] = 8
    matches: str = ""
    type: Literal["cuda", "cpu"] = "cuda"
    rates: Mapping[Products, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_options(type(self).__init__, vars(self), f"{self.name}.")
        if not self.tflops:
            raise CallError(f"{self.name}.tflops is empty; it must have one rate or more, of fp64, fp32, bf16, fp16")
        rates: dict[Any, float] = {}
        for precision, tera in self.tflops.items():
            if precision not in ("fp64", "fp32", "bf16", "fp16"):
                raise CallError(f"{self.name}.tflops has {shown(precision)}; allowed: fp64, fp32, bf16, fp16")
            if isinstance(tera, bool) or not isinstance(tera, int | float) or not 0 < tera < 1e9:
                raise CallError(f"{self.name}.tflops.{precision} is {shown(tera)}; it must be above 0 and below 1e9")
            rates[precision] = tera * 1e12
        object.__setattr__(self, "rates", rates)

    @property
    def memory(self) -> float:
        """Bytes that can be allocated."""
        return self.memory_gib * GIB

    def rate(self, precision: str) -> float:
        """Peak FLOP/s of matrix products under a Trainer's ``precision``, such as ``bf16-mixed``.

        Raises:
            CallError: The device has no units for it.
        """
        products = _PRODUCTS.get(precision.split("-")[0], "fp32")
        if products not in self.rates:
            allowed = ", ".join(name for name in fitting_precisions(self))
            raise CallError(f"{self.name} has no {products} units for precision {precision}; allowed: {allowed}")
        return self.rates[products]


def fitting_precisions(kind: DeviceKind) -> list[str]:
    """The Trainer's precisions that a device has units for, the fastest safe one first."""
    found = [
        ("bf16-mixed", "bf16"),
        ("bf16-true", "bf16"),
        ("16-mixed", "fp16"),
        ("32-true", "fp32"),
        ("64-true", "fp64"),
    ]
    return [precision for precision, products in found if products in kind.rates]


@cache
def known_devices() -> Mapping[str, DeviceKind]:
    """The devices of the packaged table, by name."""
    table = files("lightning_gpt.planning").joinpath("devices.yaml").read_text(encoding="utf-8")
    return _table(parse_yaml(table), "devices.yaml")


def devices_of(file: str) -> Mapping[str, DeviceKind]:
    """The devices of a user's file, by name.

    Raises:
        CallError: The file is missing or is not a table of devices.
    """
    try:
        return _table(read_yaml(Path(file), "devices file"), file)
    except CallError as error:
        raise error if file in str(error) else CallError(f"devices file {file!r}: {error}") from None


def device_named(name: str, devices: Mapping[str, DeviceKind]) -> DeviceKind:
    """The device called ``name``, however its letters are cased.

    Raises:
        CallError: There is none; the message names those that are meant most likely.
    """
    by_name = {each.lower(): each for each in devices}
    if name.lower() in by_name:
        return devices[by_name[name.lower()]]
    parts = [each for lower, each in by_name.items() if name and (name.lower() in lower or lower in name.lower())]
    close = parts or [by_name[each] for each in get_close_matches(name.lower(), by_name, n=3, cutoff=0.5)]
    meant = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(devices)}"
    raise CallError(f"no device is called {shown(name)}; {meant}")


def matching(name: str) -> DeviceKind | None:
    """The known device that the driver calls ``name``; None if none is."""
    found = [kind for kind in known_devices().values() if kind.matches and kind.matches in name]
    return max(found, key=lambda kind: len(kind.matches), default=None)


def _table(content: Any, file: str) -> Mapping[str, DeviceKind]:
    if not isinstance(content, dict) or not content:
        raise CallError(f"devices file {file!r} has no devices; each is a name with a mapping")
    allowed = [name for name in DeviceKind.__dataclass_fields__ if name not in ("name", "rates")]
    needed = ("tflops", "memory_gib", "memory_gb_s", "link_gb_s", "network_gb_s")
    found = {}
    for name, values in content.items():
        if not isinstance(name, str) or not isinstance(values, dict):
            raise CallError(f"devices file {file!r}: {name} must be a name with a mapping of {', '.join(allowed)}")
        wrong = [f"unknown key {key!r}" for key in values if key not in allowed]
        wrong += [f"{key} is missing" for key in needed if key not in values]
        if wrong:
            raise CallError(f"devices file {file!r}: {name}: {wrong[0]}; the keys are {', '.join(allowed)}")
        found[name] = DeviceKind(name=name, **values)
    return found
