"""The tables of ``docs/scale.md``: layouts that the plan proposes for large models: ``python -m benchmarks.scale``.

Each row is what ``lightning-gpt plan --config configs/model/llm_<layers>l.yaml --gpus N`` finds with the options that
the page names. With ``--write`` the page is rewritten.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.planning.devices import known_devices
from lightning_gpt.planning.plan import Plan
from lightning_gpt.planning.search import fastest
from lightning_gpt.planning.tables import gib, short
from lightning_gpt.planning.training import Training

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"
DEPTHS, DEVICES = (32, 64, 96), (8, 64, 1024)
WIDTHS = {4096: {"n_head": 32, "hidden": 11008}, 8192: {"n_head": 64, "hidden": 22016}}
"""Widths, with the heads and hidden units of each."""
GLOBAL_ROWS = 1024
DEVICE = "H100-SXM"
_VOCABULARY = 50257
_BEGIN, _END = "<!-- table -->", "<!-- end of table -->"


def training(n_layer: int, dim: int) -> Training:
    """The model of a config at a width, trained in bf16 with rows of one sequence."""
    file = ROOT / "configs" / "model" / f"llm_{n_layer}l.yaml"
    options = yaml.safe_load(file.read_text())["model"]["init_args"]
    sizes = {"dim": dim, "n_head": WIDTHS[dim]["n_head"], "ffn": {"kind": "swiglu", "hidden": WIDTHS[dim]["hidden"]}}
    with torch.device("meta"):
        model = GPT(GPTConfig(**{**options, **sizes, "vocab_size": _VOCABULARY}))
    time = model.config.block_size
    return Training(model=model, precision="bf16-mixed", device="cuda", rows=1, time=time, global_rows=GLOBAL_ROWS)


def row(run: Training, n_layer: int, dim: int, devices: int) -> str:
    """One line of the table."""
    best, closest = fastest(run, known_devices()[DEVICE], devices)
    made = best or closest
    assert made is not None
    start = f"| {n_layer} | {dim:,} | {short(run.parameters)} | {devices:,} | {_layout(made)} |"
    if best is None:
        return f"{start} lacks {gib(-made.spare)} of {gib(made.usable)} | | | |"
    rate = made.utilisation / made.device.rate(run.precision)
    days = 20 * run.active / made.tokens_per_second / 86400
    return (
        f"{start} {gib(made.fullest.total)} of {gib(made.usable)} | {made.time.total:,.3g} | {rate:.0%} | {days:,.3g} |"
    )


def _layout(made: Plan) -> str:
    return made.layout.described() + (" (sequence)" if made.layout.sequence else "")


def rows(depths: tuple[int, ...] = DEPTHS, widths: tuple[int, ...] = tuple(WIDTHS)) -> Iterator[str]:
    """The lines of the table below its head."""
    for n_layer in depths:
        for dim in widths:
            run = training(n_layer, dim)
            for devices in DEVICES:
                yield row(run, n_layer, dim, devices)


def main() -> None:
    """Print the lines; rewrite the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite docs/scale.md")
    write, lines = parser.parse_args().write, []
    for line in rows():
        print(line, flush=True)
        lines.append(line)
    if write:
        head, _, _ = table_of(PAGE.read_text())
        text = "\n".join([_BEGIN, *head, *lines, _END])
        page = re.sub(f"{_BEGIN}.*?{_END}", lambda _: text, PAGE.read_text(), flags=re.S)
        PAGE.write_text(page)


def table_of(page: str) -> tuple[list[str], list[str], str]:
    """The head of the table, its lines, and all of it as text."""
    text = page[page.index(_BEGIN) + len(_BEGIN) : page.index(_END)].strip()
    lines = text.splitlines()
    return lines[:2], lines[2:], text


if __name__ == "__main__":
    main()
