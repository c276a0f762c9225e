"""The study ``initialisation``: the untrained model's loss against ln|V|, and its attention against uniform."""

import math
from dataclasses import dataclass

from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.chart import new_dot_rows
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture, Table
from lightning_gpt.studies.report.estimates import LEVEL
from lightning_gpt.studies.report.groups import Group, groups, layer_values
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section
from lightning_gpt.studies.run.result import CellResult
from lightning_gpt.studies.spec.cells import value_at
from lightning_gpt.studies.spec.measures import measure

_LIKE_UNIFORM = 0.01
_ROW_TOKENS = 128  # the longest row of tokens that the layer diagnostics probe
_LOSS, _UNIFORM, _ENTROPY = "initial/loss", "initial/uniform_loss", "attention_entropy"


@dataclass(frozen=True)
class Initialisation(Section):
    """Loss against ln|V|, and entropy of attention against that of uniform causal attention, both at step 0."""

    def blocks(self, results: StudyResults) -> list[Block]:
        shown = [group for group in groups(results) if group.spread(_LOSS)]
        if not shown:
            return []
        return [Heading("Before training"), *self._loss(shown), *self._attention(shown)]

    def _loss(self, shown: list[Group]) -> list[Block]:
        figures, rows, near = measure("scalar:any"), [], 0
        for group in shown:
            loss, uniform = group.spread(_LOSS), group.spread(_UNIFORM)
            assert loss is not None
            if uniform is None:
                continue
            excess = loss.mean / uniform.mean - 1
            near += all(abs(value / uniform.mean - 1) <= _LIKE_UNIFORM for value in loss.values)
            loss_text = figures.text(loss.mean, loss.half_width)
            rows.append([group.label, loss_text, f"{uniform.mean:.4f}", f"{excess:+.2%}"])
        sentence = (
            f"The loss at step 0 is within {_LIKE_UNIFORM:.0%} of ln|V| in {near} of {len(rows)} settings, in all "
            f"their seeds: there the untrained model is near uniform."
        )
        header = ["setting", "loss at step 0 (nats)", "ln|V|", "difference"]
        caption = f"Mean ± half its {1 - LEVEL:.0%} confidence interval over the seeds."
        return [Findings([sentence], sentence), Table(header, rows, caption)]

    def _attention(self, shown: list[Group]) -> list[Block]:
        measured = [group for group in shown if any(_entropy_shares(result) for result in group.results)]
        if not measured:
            return []
        shares = {
            group.label: [share for result in group.results for share in _entropy_shares(result)] for group in measured
        }
        near = sum(min(each) >= 1 - _LIKE_UNIFORM for each in shares.values())
        chart, ax = new_dot_rows(list(shares))
        plots.draw_rows(chart, ax, shares, means=True)
        ax.axvline(1.0, color="#444444", linewidth=1, linestyle="--")
        ax.set_xlim(0, 1.05)
        ax.set_xlabel("attention entropy / that of uniform attention")
        sentence = (
            f"At step 0 the entropy of attention is at least {1 - _LIKE_UNIFORM:.0%} of that of uniform attention in "
            f"every layer and seed of {near} of {len(measured)} settings: there each token attends almost equally to "
            f"all tokens before it."
        )
        caption = "One dot per layer and seed; bar: mean; dashed: uniform attention."
        return [Findings([sentence], sentence), Picture("initial_attention", chart, caption)]


def _entropy_shares(result: CellResult) -> list[float]:
    """For each layer, entropy at step 0 / ``1/t Σ_i ln i``, the entropy of uniform causal attention over t tokens."""
    if not result.layers or result.layers[0]["step"] != 0:
        return []
    time = value_at(result.cell.config, "model.init_args.block_size")
    if not isinstance(time, int):
        return []
    time = min(time, _ROW_TOKENS)
    uniform = math.fsum(math.log(length) for length in range(1, time + 1)) / time
    return [value / uniform for value in layer_values(result, _ENTROPY, first=True) if value is not None]
