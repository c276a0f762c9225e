"""The study ``oversmoothing``: which accounts in the literature the runs support, by one simple test each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lightning_gpt.studies.report.document import Block, Findings, Heading, Table, Text
from lightning_gpt.studies.report.fits import rank_correlation
from lightning_gpt.studies.report.groups import layer_values, spread
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section
from lightning_gpt.studies.run.result import CellResult
from lightning_gpt.studies.spec.cells import value_at

_CHANCE = 0.01
_COSINE, _RESIDUAL = "token_cosine", "rank_residual"
_SUPPORTED, _AGAINST, _OPEN, _UNTESTED = "supported", "not supported", "undecided", "not tested"


@dataclass(frozen=True)
class Verdict:
    """What the runs show about one account."""

    account: str
    claim: str
    measured: str
    verdict: str


@dataclass(frozen=True)
class Accounts(Section):
    """One row per account: what it claims, what was measured to test it, and whether the runs support it."""

    def blocks(self, results: StudyResults) -> list[Block]:
        runs = [result for result in results.finished if layer_values(result, _COSINE)]
        if not runs:
            return []
        verdicts = [_rank_collapse(runs), _spectral_gap(runs), _norm(runs), _eigenspectrum(runs)]
        sentences = [f"{each.account}: {each.verdict}. {each.measured}" for each in verdicts]
        rows = [[each.account, each.claim, each.measured, each.verdict] for each in verdicts]
        note = (
            "Each account is reduced to one test on these runs, so a verdict is about that test at this size, not "
            "about the account as a whole. Correlations are over the layers of all runs, which are not independent; "
            "they do not show causes."
        )
        table = Table(["account", "claim", "measured", "verdict"], rows)
        return [Heading("Accounts of over-smoothing"), Findings(sentences), Text(note), table]


def _option(result: CellResult, name: str, default: str) -> Any:
    value = value_at(result.cell.config, f"model.init_args.{name}")
    return default if value is None else value


def _last(result: CellResult, name: str, *, first: bool = False) -> float | None:
    values = layer_values(result, name, first=first)
    return values[-1] if values else None


def _mean(values: Sequence[float | None]) -> float | None:
    found = spread(values)
    return None if found is None else found.mean


def _rank_collapse(runs: Sequence[CellResult]) -> Verdict:
    """Dong et al.: the residual vanishes with depth without skip connections, and does not with them."""
    account = "Rank collapse without skip connections (Dong et al. 2021, 2103.03404)"
    claim = (
        "Attention alone drives ‖X − 1x̄ᵀ‖/‖X‖ to 0, doubly exponentially with depth; skip connections prevent it and "
        "the FFN slows it"
    )
    without = [run for run in runs if _option(run, "residual", "pre") == "none"]
    beside = [run for run in runs if _option(run, "residual", "pre") == "pre" and _like_one_of(run, without)]
    texts, lower = [], []
    for first, when in ((True, "before training"), (False, "after training")):
        bare = _mean([_last(run, _RESIDUAL, first=first) for run in without])
        skip = _mean([_last(run, _RESIDUAL, first=first) for run in beside])
        if bare is None or skip is None:
            continue
        texts.append(f"{when}, {bare:.3g} without and {skip:.3g} with skip connections")
        lower.append(bare < 0.1 * skip)
    if not texts:
        return Verdict(account, claim, "There is no pair of runs with and without skip connections.", _UNTESTED)
    measured = f"Rank residual of the last layer, with the FFN: {'; '.join(texts)}.{_acceleration(without)}"
    verdict = _SUPPORTED if all(lower) else _OPEN if any(lower) else _AGAINST
    return Verdict(account, claim, measured, verdict)


def _like_one_of(run: CellResult, others: Sequence[CellResult]) -> bool:
    """Whether one of ``others`` has the same depth and norm."""
    same = ("n_layer", "norm")
    return any(all(_option(run, name, "") == _option(other, name, "") for name in same) for other in others)


def _acceleration(without: Sequence[CellResult]) -> str:
    """Whether the factor by which the residual falls grows from layer to layer, as in a doubly exponential fall."""
    early, late = [], []
    for run in without:
        series = [value for value in layer_values(run, _RESIDUAL, first=True) if value]
        factors = [math.log(after / before) for before, after in pairwise(series)]
        half = len(factors) // 2
        if half:
            early.append(sum(factors[:half]) / half)
            late.append(sum(factors[half:]) / (len(factors) - half))
    if not early:
        return ""
    first, second = (math.exp(sum(part) / len(part)) for part in (early, late))
    shape = "faster than exponentially" if second < first < 1 else "not faster than exponentially"
    return (
        f" Before training and without skip connections, a layer multiplies it by {first:.3g} in the first half of the "
        f"layers and by {second:.3g} in the second: {shape}."
    )


def _growths(runs: Sequence[CellResult], of_blocks: str) -> tuple[list[float], list[float]]:
    """Each block's figure, and the growth of token cosine across that block, over all trained runs."""
    xs, ys = [], []
    for run in runs:
        cosines, figures = layer_values(run, _COSINE), layer_values(run, of_blocks)
        if len(cosines) != len(figures) + 1:
            continue
        for block, x in enumerate(figures):
            before, after = cosines[block], cosines[block + 1]
            if x is not None and before is not None and after is not None:
                xs.append(x)
                ys.append(after - before)
    return xs, ys


def _correlation(runs: Sequence[CellResult], figure: str, what: str) -> tuple[str, str]:
    """Measurement and verdict for an account by which token cosine grows more where a block's figure is larger."""
    xs, ys = _growths(runs, figure)
    found = rank_correlation(xs, ys)
    if found is None:
        return "The runs lack the diagnostics.", _UNTESTED
    measured = f"Spearman's ρ of {what} and the growth of token cosine across a block: {found.rho:.2f}"
    measured += f" (p = {found.p:.2g}, {found.n} blocks of {len(runs)} runs)."
    return measured, _OPEN if found.p >= _CHANCE else _SUPPORTED if found.rho > 0 else _AGAINST


def _spectral_gap(runs: Sequence[CellResult]) -> Verdict:
    measured, verdict = _correlation(runs, "spectral_gap", "attention's spectral gap")
    return Verdict(
        "Spectral gap of attention (2312.06182)",
        "Tokens become alike because attention has one leading eigenvalue and a gap below it: the wider, the faster",
        measured,
        verdict,
    )


def _eigenspectrum(runs: Sequence[CellResult]) -> Verdict:
    measured, verdict = _correlation(runs, "value_positive_share", "the positive share of W_V W_O's spectrum")
    return Verdict(
        "Eigenspectrum of the value projection (2401.04301)",
        "Over-smoothing is not inevitable: whether attention smooths or sharpens depends on the sign of W_V W_O's "
        "eigenvalues",
        measured,
        verdict,
    )


def _norm(runs: Sequence[CellResult]) -> Verdict:
    """Wu et al.: LayerNorm can keep tokens apart, even under a causal mask: pairs that differ only in the norm."""
    account = "Masks and LayerNorm (2405.18781)"
    claim = "Under a causal mask tokens still collapse, but more slowly; LayerNorm can keep the rank above one"
    higher, total, pairs = 0, 0, []
    for run in runs:
        if _option(run, "norm", "layer") != "none":
            continue
        for other in runs:
            same = all(_option(run, name, "") == _option(other, name, "") for name in ("residual", "n_layer"))
            if same and _option(other, "norm", "layer") == "layer" and run.cell.seed == other.cell.seed:
                bare, normed = _last(run, _RESIDUAL, first=True), _last(other, _RESIDUAL, first=True)
                if bare is not None and normed is not None:
                    total, higher = total + 1, higher + (normed > bare)
                    pairs.append((bare, normed))
    if not total:
        return Verdict(account, claim, "There is no pair of runs with and without LayerNorm.", _UNTESTED)
    bare_mean, normed_mean = (sum(side) / total for side in zip(*pairs, strict=True))
    measured = (
        f"Rank residual of the last layer before training: {normed_mean:.3g} with LayerNorm, {bare_mean:.3g} without; "
        f"higher with it in {higher} of {total} pairs that differ only in the norm."
    )
    return Verdict(account, claim, measured, _SUPPORTED if higher == total else _AGAINST if not higher else _OPEN)
