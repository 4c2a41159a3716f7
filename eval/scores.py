"""One number of a report, with everything that it takes to say what it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from eval.statistics import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A metric over a suite.

    `estimate` is None where there is none, and `reason` says why. `on` is `all` items, or `out` where those are left
    out that the model may have met. `towers` are the hashes of the weights by name. `beside` are figures to read it
    with: `floor`, `ceiling`, `mean_over_images`, `seed_sd`, `ties`, and parts of it (`kid_subsets`).
    """

    metric: str
    definition: str
    better: str  # `higher` | `lower`
    estimate: Estimate | None
    reason: str = ""
    on: str = "all"
    images: int
    items: int
    recordings: int
    seeds: int
    towers: Mapping[str, str]
    preprocessing: tuple[str, ...] = ()
    sample_rate_hz: int | None = None
    pool_sha256: str | None = None
    beside: Mapping[str, float] = field(default_factory=dict)
