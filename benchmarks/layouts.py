"""Every layout of many devices held against one process: losses, weights and validation, and how far they differ.

    python -m benchmarks.layouts [--short] [--devices 1 2 4] [--only WORDS ...]

Real processes meet over gloo and train small models under Lightning as ``lightning-gpt fit`` does, with the rows of an
optimizer step held. One process trains each model alone for reference. Each line names a layout, a model and a proof,
with the largest differences of the losses, the weights and the validation loss. The last column says whether all are
within the proof's bound: 1e-10 in float64, where only the order of sums differs; in fp32 AdamW amplifies that rounding
to 1e-5 within ten steps, which would hide a mistake.

Lines with an arrow are of checkpoints: one layout has saved, and another one has loaded that and trained five steps
more, as :mod:`benchmarks.layout_checkpoints` describes.

The exit status is 1 if a line fails.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.layout_cases import PROOFS, SHORT, LayoutCase, Proof, all_cases
from benchmarks.layout_checkpoints import all_pairs, results_of_pairs, short_pairs
from benchmarks.layout_training import LayoutResult, Trained, differences, quieten, results_of, train


@dataclass(frozen=True)
class _Referred:
    """A case with what one process alone has trained."""

    case: LayoutCase
    references: Mapping[tuple[str, str], Trained]
    steps: int

    @property
    def proved(self) -> Proof:
        return self.case.proved

    def described(self) -> str:
        return self.case.described()

    def differ(self, is_first: bool) -> list[float]:
        trained = train(self.case.model, self.proved, self.steps, self.case.made())
        return differences(trained, self.references[self.case.model, self.case.proof]) if is_first else []


def run(cases: Sequence[LayoutCase], steps: int) -> list[LayoutResult]:
    """Train cases of one number of devices in launches; returns their results."""
    needed = dict.fromkeys((case.model, case.proof) for case in cases)
    references = {each: train(each[0], PROOFS[each[1]], steps, None) for each in needed}
    return results_of([_Referred(case, references, steps) for case in cases], cases[0].made().devices)


def main(args: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the cases of the test suite, three steps each")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes")
    parser.add_argument("--only", nargs="+", default=[], help="cases whose line has all these words")
    parser.add_argument("--steps", type=int, help="optimizer steps; 10, or 3 with --short")
    options = parser.parse_args(args)

    def is_asked(described: str) -> bool:
        return all(word in described for word in options.only)

    cases = [case for case in (SHORT if options.short else all_cases()) if is_asked(case.described())]
    pairs = [pair for pair in (short_pairs() if options.short else all_pairs()) if is_asked(pair.described())]
    steps = options.steps or (3 if options.short else 10)
    quieten()
    print(f"layout | model | proof | losses | weights | validation (largest differences after {steps} steps)")
    results: list[LayoutResult] = []
    for devices in options.devices:
        of_size = [case for case in cases if case.made().devices == devices]
        results += run(of_size, steps) if of_size else []
    results += results_of_pairs(pairs, options.devices)
    failed = [result for result in results if not result.holds]
    print(f"{len(results) - len(failed)} of {len(results)} hold")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
