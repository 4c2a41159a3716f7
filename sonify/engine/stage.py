"""What a stage is to the engine: its name, its settings, what it depends on, and with what resources it runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sonify.config.sections import Place
from sonify.engine.commits import Done, digest_of
from sonify.engine.job import Job


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """One stage of one run.

    `listing` names the frozen listing that its units follow. `upstream` are stages whose commit of the same unit it
    reads, `upstream_whole` those of which it reads every unit. `part` tells a stage's extractors apart. `check` raises
    `InputError` where the stage must not start; `rows_expected` says how many rows the upstream commits of a unit hold.
    """

    name: str
    version: int
    listing: str
    settings: Mapping[str, Any]
    load: Callable[[], Job]
    part: str = ""
    upstream: tuple[str, ...] = ()
    upstream_whole: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None
    rows_expected: Callable[[Sequence[Done]], int | None] = lambda _upstream: None
    num_cpus: float = 1
    num_gpus: float = 0
    gpu_optional: bool = False  # runs on CPUs where the cluster has no GPU
    models: tuple[str, ...] = ()  # the names under which run.json records them
    fetch: Callable[[], Mapping[str, str]] = dict  # gets them before any work: names and what exactly they are
    # Of some units, those whose answers are kept: they may need no model.
    units_answered: Callable[[Place, Iterable[str]], Iterable[str]] = lambda _run_dir, _units: ()

    @property
    def key(self) -> str:
        """The stage's name in messages and in `run.json`."""
        return f"{self.name}/{self.part}" if self.part else self.name

    @property
    def digest(self) -> str:
        """What the stage's commits stand under."""
        identity = {"stage": self.key, "version": self.version, "settings": dict(self.settings)}
        return digest_of(identity)[:16]
