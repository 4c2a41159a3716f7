"""What was expected before any model was trained, and whether it came true."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.learning.statistics import Estimate

CHANCE = 1 / 6
# Written down before the first run. The eye and the ear are the ceiling: a result below says something only where they
# see and hear. `LOSS_OF_SONIFY` is how much balanced accuracy pairs made from captions may cost at the worst.
EYE_AT_LEAST = 0.85
EAR_AT_LEAST = 0.80
LOSS_OF_SONIFY = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A threshold, the figure it is held against, and the outcome."""

    expected: str
    found: str
    passed: bool


def verdicts(eye: float, ear: float, results: Mapping[str, Estimate]) -> list[Verdict]:
    """Hold the figures against the thresholds.

    Args:
        eye: balanced accuracy on the photographs through the autoencoder.
        ear: balanced accuracy of the nearest class on held-out conditions.
        results: balanced accuracies `a`, `b`, `c` and paired differences `a - zeroed`, `b - zeroed`, `a - c`, `b - a`.
    """
    instruments = [
        Verdict(
            expected=f"the {name} is right at least {100 * least:.0f} %",
            found=f"{100 * value:.1f} %",
            passed=value >= least,
        )
        for name, value, least in (("eye", eye, EYE_AT_LEAST), ("ear", ear, EAR_AT_LEAST))
    ]
    bounds = [
        ("(a) true class: above chance", "a", CHANCE),
        ("(a) above itself with the audio zeroed", "a - zeroed", 0.0),
        ("(a) above (c), shuffled", "a - c", 0.0),
        ("(b) by sonify: above chance", "b", CHANCE),
        ("(b) above itself with the audio zeroed", "b - zeroed", 0.0),
    ]
    learned = [
        Verdict(
            expected=f"{text}: lower end > {100 * bound:.1f} %",
            found=str(results[key]),
            passed=results[key].low > bound,
        )
        for text, key, bound in bounds
    ]
    # two models that learned nothing do not differ either
    compared = Verdict(
        expected=f"(b) at most {100 * LOSS_OF_SONIFY:.0f} points below an (a) that learned: lower end > the loss",
        found=str(results["b - a"]),
        passed=results["b - a"].low > -LOSS_OF_SONIFY and results["a"].low > CHANCE,
    )
    shuffled = Verdict(
        expected=f"(c) not above chance: lower end <= {100 * CHANCE:.1f} %",
        found=str(results["c"]),
        passed=results["c"].low <= CHANCE,
    )
    return [*instruments, *learned, compared, shuffled]
