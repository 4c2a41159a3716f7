"""How far a score is to be trusted: recordings are the units, never images.

R  recordings, G  groups of them
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A score with its interval of 95 %; None where the data do not allow one, and `note` says why.

    `replicates` are the values of a distance without each group of recordings, in the groups' order.
    """

    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    method: str = ""  # `bootstrap` | `jackknife` | ""
    note: str = ""
    replicates: tuple[float, ...] = ()
