"""What the dashboard of a Ray cluster shows of a run: counted by the driver, tagged by stage."""

from ray.util.metrics import Counter, Gauge, Histogram

from sonify.engine.worker import Outcome

SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]  # bounds of the histogram


class StageMetrics:
    """Counts what a stage does in this run of the command."""

    def __init__(self, stage: str, num_units: int) -> None:
        self._stage = {"stage": stage}
        tags = ("stage",)
        self._to_do = Gauge("sonify_units_to_do", "Units that the stage has still to do.", tags)
        self._done = Counter("sonify_units_done", "Units that were committed.", tags)
        self._given_up = Counter("sonify_units_given_up", "Units that stay undone.", tags)
        self._seconds = Histogram("sonify_unit_seconds", "From a unit's start to its end.", SECONDS, tags)
        self._rows_in = Counter("sonify_rows_in", "Rows that were read.", tags)
        self._rows_out = Counter("sonify_rows_out", "Rows that were written.", tags)
        self._rejected = Counter("sonify_rows_rejected", "Rows that left, by reason.", (*tags, "reason"))
        self._left = num_units
        self._to_do.set(num_units, self._stage)

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Count a unit that ended."""
        self._left -= 1
        self._to_do.set(self._left, self._stage)
        self._seconds.observe(seconds, self._stage)
        if outcome.commit is None:
            self._given_up.inc(1, self._stage)
            return
        self._done.inc(1, self._stage)
        rows = outcome.commit.rows
        for counter, number in ((self._rows_in, rows.rows_in), (self._rows_out, rows.rows_out)):
            if number:  # Ray counts no nothing
                counter.inc(number, self._stage)
        for reason, number in rows.rejected.items():
            self._rejected.inc(number, {**self._stage, "reason": reason})
