"""The study ``oversmoothing``: which accounts in the literature the runs support, by one simple test each."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning_gpt.studies.report.comparisons import compare
from lightning_gpt.studies.report.correlations import correlation_within
from lightning_gpt.studies.report.document import Block, Findings, Heading, Table, Tested, Text, Written
from lightning_gpt.studies.report.estimates import SeedSpread, spread
from lightning_gpt.studies.report.groups import layer_values
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital
from lightning_gpt.studies.report.sections.differences import shown
from lightning_gpt.studies.report.tested import p_text
from lightning_gpt.studies.run.result import CellResult
from lightning_gpt.studies.spec.cells import value_at, with_keys
from lightning_gpt.studies.spec.measures import measure

_COSINE, _RESIDUAL = "token_cosine", "rank_residual"
_SUPPORTED, _AGAINST, _OPEN, _UNTESTED = "supported", "not supported", "undecided", "not tested"
_COLLAPSED = 0.1
"""Below this share of the residual with skip connections, that without them has collapsed."""


@dataclass(frozen=True)
class Verdict:
    """What the runs show about one account.

    Args:
        account: Whose it is.
        claim: What it says.
        measured: What was measured to test it.
        verdict: What the measurement says, unless it is a test's.
        p: The p-value of the test that decides, where there is one; ``verdict`` is then what a small one means.
    """

    account: str
    claim: str
    measured: str
    verdict: str
    p: float | None = None


@dataclass(frozen=True)
class Accounts(Section):
    """One row per account: what it claims, what was measured to test it, and whether the runs support it."""

    def blocks(self, results: StudyResults) -> list[Block]:
        runs = [result for result in results.finished if layer_values(result, _COSINE)]
        if not runs:
            return []
        verdicts = [_rank_collapse(runs), _spectral_gap(runs), _norm(runs), _eigenspectrum(runs)]
        note = (
            "Each account is reduced to one test on these runs, so a verdict is about that test at this size, not "
            "about the account as a whole. Correlations are over the blocks inside each run, ranked and permuted "
            "within the run; neighbouring blocks are not independent, and a correlation does not show a cause."
        )
        p = [each.p for each in verdicts if each.p is not None]
        return [Heading("Accounts of over-smoothing"), Tested(p, partial(_written, verdicts)), Text(note)]


def _written(verdicts: list[Verdict], corrected: list[float], count: int) -> list[Written]:
    """The accounts, where those that rest on a test are undecided unless its corrected p-value counts."""
    left, rows = iter(corrected), []
    for each in verdicts:
        verdict, measured = each.verdict, each.measured
        if each.p is not None:
            p = next(left)
            verdict = each.verdict if shown(p) else _OPEN
            measured = (
                f"{measured}, {p_text(p)} corrected for the {count} {'tests' if count > 1 else 'test'} of this report."
            )
        rows.append([each.account, each.claim, measured, verdict])
    sentences = [f"{account}: {verdict}. {measured}" for account, _, measured, verdict in rows]
    by_verdict = {verdict: [row[0] for row in rows if row[3] == verdict] for verdict in (_SUPPORTED, _AGAINST, _OPEN)}
    parts = [f"{verdict}: {'; '.join(accounts)}" for verdict, accounts in by_verdict.items() if accounts]
    answer = f"Of the accounts in the literature, {'. '.join([*parts[:1], *map(capital, parts[1:])])}." if parts else ""
    return [Findings(sentences, answer), Table(["account", "claim", "measured", "verdict"], rows)]


def _option(result: CellResult, name: str, default: str) -> Any:
    value = value_at(result.cell.config, f"model.init_args.{name}")
    return default if value is None else value


def _last(result: CellResult, name: str, *, first: bool = False) -> float | None:
    values = layer_values(result, name, first=first)
    return values[-1] if values else None


def _rank_collapse(runs: Sequence[CellResult]) -> Verdict:
    """Dong et al.: the residual vanishes with depth without skip connections, and does not with them."""
    account = "Rank collapse without skip connections (Dong et al. 2021, 2103.03404)"
    claim = (
        "Attention alone drives ‖X − 1x̄ᵀ‖/‖X‖ to 0, doubly exponentially with depth; skip connections prevent it and "
        "the FFN slows it"
    )
    bare = [run for run in runs if _option(run, "residual", "pre") == "none"]
    skipping = [run for run in runs if _option(run, "residual", "pre") == "pre"]
    beside = [run for run in skipping if any(_differ_only_in("residual", run, other) for other in bare)]
    without = [run for run in bare if any(_differ_only_in("residual", run, other) for other in skipping)]
    texts, verdicts = [], []
    for first, when in ((True, "before training"), (False, "after training")):
        ratios = _ratios(without, beside, first=first)
        if ratios is None:
            continue
        half = ratios.half_width
        share = f"{math.exp(ratios.mean):.3g} times"
        if half is None:
            texts.append(f"{when}, {share} (one pair)")
            verdicts.append(_OPEN)
            continue
        low, high = math.exp(ratios.mean - half), math.exp(ratios.mean + half)
        texts.append(f"{when}, {share} [{low:.3g}, {high:.3g}]")
        verdicts.append(_SUPPORTED if high < _COLLAPSED else _AGAINST if low > _COLLAPSED else _OPEN)
    if not texts:
        return Verdict(account, claim, "There is no pair of runs with and without skip connections.", _UNTESTED)
    measured = (
        f"Rank residual of the last layer without skip connections over that with them, by seed, with the FFN: "
        f"{'; '.join(texts)}; collapsed means less than {_COLLAPSED}.{_acceleration(without)}"
    )
    verdict = verdicts[0] if len(set(verdicts)) == 1 else _OPEN
    return Verdict(account, claim, measured, verdict)


def _ratios(without: Sequence[CellResult], beside: Sequence[CellResult], *, first: bool) -> SeedSpread | None:
    """The logarithms of the last residual without skip connections over that with them, by seed (geometric means)."""

    def by_seed(runs: Sequence[CellResult]) -> dict[int, float]:
        found: dict[int, list[float]] = {}
        for run in runs:
            if last := _last(run, _RESIDUAL, first=first):
                found.setdefault(run.cell.seed, []).append(math.log(last))
        return {seed: sum(logarithms) / len(logarithms) for seed, logarithms in found.items()}

    bare, skip = by_seed(without), by_seed(beside)
    return spread(bare[seed] - skip[seed] for seed in sorted(bare.keys() & skip.keys()))


def _differ_only_in(name: str, run: CellResult, other: CellResult) -> bool:
    """Whether two runs have one configuration and one seed, but for an option of the model."""
    alike = {f"model.init_args.{name}": None}
    return with_keys(run.cell.config, alike) == with_keys(other.cell.config, alike)


def _acceleration(without: Sequence[CellResult]) -> str:
    """Whether the factor by which the residual falls grows from layer to layer, as in a doubly exponential fall."""
    halves: dict[str, list[tuple[float, float]]] = {}
    for run in without:
        series = [value for value in layer_values(run, _RESIDUAL, first=True) if value]
        factors = [math.log(after / before) for before, after in itertools.pairwise(series)]
        half = len(factors) // 2
        if half:
            both = (sum(factors[:half]) / half, sum(factors[half:]) / (len(factors) - half))
            halves.setdefault(str(_option(run, "norm", "layer")), []).append(both)
    parts = []
    for norm, pairs in halves.items():
        first, second = (math.exp(sum(part) / len(part)) for part in zip(*pairs, strict=True))
        shape = "faster than exponentially" if second < first < 1 else "not faster than exponentially"
        parts.append(
            f"by {first:.3g} in the first half of the layers and {second:.3g} in the second with norm {norm}, {shape}"
        )
    if not parts:
        return ""
    return f" Before training and without skip connections, a layer multiplies it {'; '.join(parts)}."


def _growths(run: CellResult, of_blocks: str) -> tuple[list[float], list[float]]:
    """Each block's figure, and the growth of token cosine across that block, in a trained run."""
    xs, ys = [], []
    cosines, figures = layer_values(run, _COSINE), layer_values(run, of_blocks)
    if len(cosines) == len(figures) + 1:
        for block, x in enumerate(figures):
            before, after = cosines[block], cosines[block + 1]
            if x is not None and before is not None and after is not None:
                xs.append(x)
                ys.append(after - before)
    return xs, ys


def _correlation(runs: Sequence[CellResult], figure: str, what: str) -> tuple[str, str, float | None]:
    """Measurement, verdict and p-value of an account: token cosine grows more where a block's figure is larger."""
    found = correlation_within([_growths(run, figure) for run in runs])
    if found is None:
        return "The runs lack the diagnostics.", _UNTESTED, None
    measured = f"Spearman's ρ within runs of {what} and the growth of token cosine across a block: {found.rho:.2f}"
    measured += f" ({found.n} blocks of {found.runs} runs)"
    return measured, _SUPPORTED if found.rho > 0 else _AGAINST, found.p


def _spectral_gap(runs: Sequence[CellResult]) -> Verdict:
    measured, verdict, p = _correlation(runs, "spectral_gap", "attention's spectral gap")
    return Verdict(
        "Spectral gap of attention (2312.06182)",
        "Tokens become alike because attention has one leading eigenvalue and a gap below it: the wider, the faster",
        measured,
        verdict,
        p,
    )


def _eigenspectrum(runs: Sequence[CellResult]) -> Verdict:
    measured, verdict, p = _correlation(runs, "value_positive_share", "the positive share of W_V W_O's spectrum")
    return Verdict(
        "Eigenspectrum of the value projection (2401.04301)",
        "Over-smoothing is not inevitable: whether attention smooths or sharpens depends on the sign of W_V W_O's "
        "eigenvalues",
        measured,
        verdict,
        p,
    )


def _norm(runs: Sequence[CellResult]) -> Verdict:
    """Wu et al.: LayerNorm can keep tokens apart, even under a causal mask: pairs that differ only in the norm."""
    account = "Masks and LayerNorm (2405.18781)"
    claim = "Under a causal mask tokens still collapse, but more slowly; LayerNorm can keep the rank above one"
    pairs: dict[int, list[tuple[float, float]]] = {}
    for run, other in itertools.product(runs, runs):
        if (_option(run, "norm", "layer"), _option(other, "norm", "layer")) != ("layer", "none"):
            continue
        beside, without = _last(run, _RESIDUAL, first=True), _last(other, _RESIDUAL, first=True)
        if beside is not None and without is not None and _differ_only_in("norm", run, other):
            pairs.setdefault(run.cell.seed, []).append((beside, without))
    if not pairs:
        return Verdict(account, claim, "There is no pair of runs with and without LayerNorm.", _UNTESTED)
    # pairs of one seed have the same weights in common, so they count as one
    normed, bare = (
        {seed: sum(pair[side] for pair in found) / len(found) for seed, found in pairs.items()} for side in (0, 1)
    )
    test = compare(normed, bare)
    bare_mean, normed_mean = (sum(side.values()) / len(pairs) for side in (bare, normed))
    every = [pair for found in pairs.values() for pair in found]
    higher = sum(beside > without for beside, without in every)
    measured = (
        f"Rank residual of the last layer before training: {normed_mean:.3g} with LayerNorm, {bare_mean:.3g} without; "
        f"higher with it in {higher} of {len(every)} pairs that differ only in the norm, tested by seed"
    )
    if test is None:
        return Verdict(account, claim, f"{measured}.", _OPEN)
    change = measure("scalar:any").change_text(test.difference, test.half_width)
    verdict = _SUPPORTED if test.difference > 0 else _AGAINST
    return Verdict(account, claim, f"{measured} (difference {change})", verdict, test.p)
