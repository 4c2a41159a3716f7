"""What a run costs: GPU hours, CPU hours, energy and money, from its own units and from prices that the user gives.

Hours are those that workers were at units, times the CPUs and GPUs that each holds (`Measured`). Nothing is assumed: no
price comes along, and what is not known is said so, with what would make it known.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sonify.config import Config, EndpointVlm
from sonify.config.inputs import Section
from sonify.config.loader import make_settings
from sonify.config.models import Listener
from sonify.config.text import read_text
from sonify.engine.job import Stage
from sonify.engine.plan import Plan
from sonify.engine.record import Measured, read_record
from sonify.errors import InputError
from sonify.installed import spell_again
from sonify.report.estimate import Estimate

MILLION = 1_000_000
NOT_KNOWN = "not known"
HOW_TO_PRICE = "gpu_hour=..., cpu_hour=..., gpu_watts=..., cpu_watts=..., currency=..."
COLUMN = 11  # characters of a figure in a table
OF_IMAGES = "concepts"  # the listing whose units are images; what follows another is paid once, whatever their number

NotNegative = Annotated[float, Field(ge=0)]


class Prices(Section):
    """What hours cost and draw; what is left out is not known.

    `gpu_hour` and `cpu_hour` are money for one GPU and one CPU: where a GPU's price has its machine's CPUs in it, that
    of a CPU is 0. `gpu_watts` and `cpu_watts` are what each draws at work. `device_tflops`, the peak of a GPU in the
    precision that is trained in, and `mfu`, the share of it that is reached, speak of training alone.
    """

    gpu_hour: NotNegative | None = None
    cpu_hour: NotNegative | None = None
    gpu_watts: NotNegative | None = None
    cpu_watts: NotNegative | None = None
    currency: str = Field(default="money", pattern=r"^[^\s,\p{C}]{1,12}$")
    device_tflops: float | None = Field(default=None, gt=0)
    mfu: float | None = Field(default=None, gt=0, le=1)

    @property
    def name_money(self) -> bool:
        """Whether anything is said of money."""
        return self.gpu_hour is not None or self.cpu_hour is not None

    @property
    def name_energy(self) -> bool:
        """Whether anything is said of what is drawn."""
        return self.gpu_watts is not None or self.cpu_watts is not None


def read_prices(text: str) -> Prices:
    """Read what `--prices` takes: `gpu_hour=2.1,cpu_hour=0.04`, or the name of a YAML file of such keys.

    Raises:
        InputError: a key is unknown, a value no number of that kind, or the file is not there.
    """
    if "=" not in text:
        if not os.path.isfile(text):
            raise InputError(f"--prices: expected {HOW_TO_PRICE} or a YAML file of such keys, found {text!r}")
        found = read_text(Path(text))
        return make_settings(found.values, Prices, f"--prices {text}", lines=found.lines)
    values: dict[str, str | float] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key and equals and value):
            raise InputError(f"--prices: expected key=value between commas ({HOW_TO_PRICE}), found {part.strip()!r}")
        if key in values:
            raise InputError(f"--prices: {key} is given twice")
        values[key] = value if key == "currency" else _number(value)
    return make_settings(values, Prices, "--prices")


def _number(text: str) -> float | str:
    """A number, or the text, which then is refused by the name of its key."""
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Hours of GPUs and CPUs, and what they come to; None where a price that it takes was not given."""

    gpu_hours: float
    cpu_hours: float
    kwh: float | None
    money: float | None


def cost_of(gpu_hours: float, cpu_hours: float, prices: Prices) -> Cost:
    """Price some hours."""
    watt_hours = _weighed((gpu_hours, prices.gpu_watts), (cpu_hours, prices.cpu_watts))
    return Cost(
        gpu_hours=gpu_hours,
        cpu_hours=cpu_hours,
        kwh=None if watt_hours is None else watt_hours / 1000,
        money=_weighed((gpu_hours, prices.gpu_hour), (cpu_hours, prices.cpu_hour)),
    )


def _weighed(*parts: tuple[float, float | None]) -> float | None:
    """The sum of hours times what one takes; of no hours nothing need be known."""
    if any(hours and each is None for hours, each in parts):
        return None
    return sum(hours * (each or 0.0) for hours, each in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What a stage costs for a million images, for the whole job, and for what is left of it.

    `million` is None where the stage is of the sounds and paid once. All three are None where no unit was measured;
    `unknown` then says why, and what would make it known. `asks_server`: a server elsewhere does the work, and what it
    costs is in none of them.
    """

    stage: str
    once: bool
    measured: Measured | None
    million: Cost | None
    job: Cost | None
    left: Cost | None
    unknown: str
    asks_server: bool


def cost_stages(config: Config, plans: Sequence[Plan], expected: Estimate, prices: Prices) -> list[StageCost]:
    """What each stage of a run costs, at the rate of its own units so far."""
    record = read_record(config.run_dir)
    known = record.stages if record else {}
    return [
        _cost_stage(config, plan, expected, prices, known[key].measured if (key := plan.stage.key) in known else None)
        for plan in plans
    ]


def _cost_stage(config: Config, plan: Plan, expected: Estimate, prices: Prices, measured: Measured | None) -> StageCost:
    stage = plan.stage
    once = stage.listing != OF_IMAGES

    def priced(rows: float) -> Cost | None:
        if measured is None or not measured.rows:
            return None
        worker_hours = measured.seconds / measured.rows * rows / 3600
        return cost_of(worker_hours * measured.gpus, worker_hours * measured.cpus, prices)

    rows = expected.rows[stage.key]
    return StageCost(
        stage=stage.key,
        once=once,
        measured=measured,
        million=None if once or not expected.images else priced(MILLION * rows / expected.images),
        job=priced(rows),
        left=priced(expected.rows_left[stage.key]),
        unknown="" if measured and measured.rows else _why_unknown(plan, measured),
        asks_server=_asks_server(config, stage),
    )


def _why_unknown(plan: Plan, measured: Measured | None) -> str:
    again = spell_again("--probe")
    if plan.done and not plan.tasks and not plan.waiting:
        return "done without being measured, by an earlier version or from answers that were kept; new units will be"
    if measured is not None:
        return f"what was measured held no row; `{again}` does another unit"
    return f"no unit was measured; `{again}` does one of each"


def _asks_server(config: Config, stage: Stage) -> bool:
    """Whether a stage's worker only waits for a server that runs already."""
    if stage.name == "listen":
        return isinstance(config.retrieval.confirm, Listener)
    named = next((each for each in config.concepts.extractors if each.name == stage.part), None)
    asked = config.concepts.checker or named if stage.name == "checks" else named
    return stage.name in ("concepts", "checks") and isinstance(asked, EndpointVlm)


def add_up(costs: Sequence[Cost | None], prices: Prices) -> Cost:
    """The sum of those that are known."""
    there = [cost for cost in costs if cost is not None]
    return cost_of(sum(cost.gpu_hours for cost in there), sum(cost.cpu_hours for cost in there), prices)


def tell_costs(costs: Sequence[StageCost], images: int, prices: Prices) -> Iterator[str]:
    """A table of costs, one of what they rest on, and what is not known."""
    heads = ["GPU h", "CPU h", *["kWh"] * prices.name_energy, *[prices.currency] * prices.name_money]
    width = COLUMN * len(heads)
    head = "".join(f"{head:>{COLUMN}}" for head in heads)
    yield "cost, from this run's own units: a worker's seconds in them times the CPUs and GPUs that it holds"
    yield f"{'':20}{'of a million images':>{width}} |{f'of this job, {images:,} images':>{width}}"
    yield f"{'':20}{head} |{head}"
    for cost in costs:
        million = f"{'paid once':>{width}}" if cost.once else _tell_cost(cost.million, prices)
        yield f"{cost.stage:20}{million} |{_tell_cost(cost.job, prices)}"
    unknown = [cost for cost in costs if cost.unknown]
    million, job, left = (
        add_up([getattr(cost, part) for cost in costs], prices) for part in ("million", "job", "left")
    )
    yield f"{'what is known' if unknown else 'all':20}{_tell_cost(million, prices)} |{_tell_cost(job, prices)}"
    yield f"{'of it left to do':20}{'':{width}} |{_tell_cost(left, prices)}"
    for reason in dict.fromkeys(cost.unknown for cost in unknown):
        yield f"{NOT_KNOWN}: {', '.join(cost.stage for cost in unknown if cost.unknown == reason)}: {reason}"
    yield from tell_lacking(job, prices)
    yield "measured (loading, once for each worker, is in no figure):"
    for cost in costs:
        yield f"{cost.stage:20}{_tell_measured(cost)}"


def _tell_cost(cost: Cost | None, prices: Prices) -> str:
    if cost is None:
        return f"{NOT_KNOWN:>{COLUMN * (2 + prices.name_energy + prices.name_money)}}"
    values = [cost.gpu_hours, cost.cpu_hours]
    values += [cost.kwh] * prices.name_energy + [cost.money] * prices.name_money
    return "".join(f"{tell_amount(value):>{COLUMN}}" for value in values)


def tell_amount(value: float | None) -> str:
    """A number to three digits or so, without exponents."""
    if value is None:
        return NOT_KNOWN
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else "< 0.001"


def _tell_measured(cost: StageCost) -> str:
    """What a rate rests on, and what is not in it."""
    found = cost.measured
    if found is None or not found.units:
        return "nothing yet"
    rows = f"{_count(found.rows, 'row')} in {_count(found.units, 'unit')}, {found.seconds:,.2f} s"
    loading = f"{found.load_seconds / found.loads:,.1f} s of loading" if found.loads else "no loading"
    held = f"{_count(found.cpus, 'CPU')} and {_count(found.gpus, 'GPU')}" if found.gpus else _count(found.cpus, "CPU")
    server = "; the server that it asks is not in it" if cost.asks_server else ""
    return f"{rows}, {loading}, a worker holds {held}{server}"


def _count(number: float, noun: str) -> str:
    said = f"{number:,}" if number == round(number) else f"{number:g}"
    return f"{said} {noun}{'s' * (number != 1)}"


def tell_lacking(cost: Cost, prices: Prices) -> Iterator[str]:
    """Which prices the user would have to say for what some hours come to."""
    hours = {"gpu": cost.gpu_hours, "cpu": cost.cpu_hours}
    used = [device for device in hours if hours[device]] or list(hours)
    for what, of in (("money", "hour"), ("kWh", "watts")):
        if wanted := [key for device in used if getattr(prices, key := f"{device}_{of}") is None]:
            yield f"{what}: {NOT_KNOWN}: say --prices {','.join(f'{key}=...' for key in wanted)}"
