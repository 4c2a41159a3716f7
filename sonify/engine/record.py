"""RUN/run.json: under which configuration, libraries and models the run was made, and how long its stages took."""

import dataclasses
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sonify import layout
from sonify.config import Config, make_config
from sonify.engine.job import Stage
from sonify.errors import InputError, WorkError
from sonify.installed import spell, spell_again
from sonify.io.commits import DamagedRecord, digest_of, open_record, seal_record
from sonify.io.places import read_whole
from sonify.io.write import write_atomically
from sonify.stores import Place

LIBRARIES = (
    "sonify",
    "av",
    "faiss-cpu",
    "numpy",
    "pillow",
    "pyarrow",
    "pyloudnorm",
    "ray",
    "soundfile",
    "soxr",
    "torch",
    "transformers",
    "diffusers",
    "laion-clap",
)
MAX_TROUBLE_CHARS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """The settings that a stage's commits stand under; `seconds` and `rows` of work since it was last redone.

    `trouble` is why the last work on it stopped or left units undone, and empty where it went well.
    """

    digest: str
    version: int
    settings: Mapping[str, Any]
    seconds: float = 0.0
    rows: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The whole file."""

    config: Mapping[str, Any]
    config_digest: str
    seed: int
    versions: Mapping[str, str]
    models: Mapping[str, str] = field(default_factory=dict)  # what each is: a commit, or a digest of its files
    stages: Mapping[str, StageRecord] = field(default_factory=dict)


def read_record(run_dir: Place) -> RunRecord | None:
    """Read RUN/run.json; None where there is none yet."""
    path = run_dir / layout.RUN
    try:
        raw = open_record(read_whole(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedRecord as error:
        raise WorkError(f"{path}: damaged ({error}); `{spell('verify', run_dir, '--repair')}` withdraws it") from error
    stages = {key: StageRecord(**stage) for key, stage in raw.pop("stages").items()}
    return RunRecord(**raw, stages=stages)


def require_record(run_dir: Place) -> RunRecord:
    """Read the record of a run that must exist."""
    record = read_record(run_dir)
    if record is None:
        raise InputError(f"{run_dir}: not a run: expected {layout.RUN} in it; `{spell_again()}` makes one")
    return record


def config_of_run(run_dir: Place) -> Config:
    """The configuration that a run was last worked on with."""
    return make_config({**require_record(run_dir).config, "run_dir": str(run_dir)}, str(run_dir), check_paths=False)


def write_record(run_dir: Place, record: RunRecord) -> None:
    """Replace RUN/run.json."""
    write_atomically(run_dir, layout.RUN, seal_record(dataclasses.asdict(record)))


def _installed_versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):  # extras, which this run may not need
            found[name] = version(name)
    return found


def start_record(config: Config, before: RunRecord | None) -> RunRecord:
    """The record of a run that begins, or goes on, under this configuration."""
    plain = config.model_dump(mode="json")
    return RunRecord(
        config=plain,
        config_digest=digest_of(plain),
        seed=config.seed,
        versions=_installed_versions() | {"python": platform.python_version()},
        models=before.models if before else {},
        stages=before.stages if before else {},
    )


def with_stage(record: RunRecord, stage: Stage) -> RunRecord:
    """Note the settings of a stage that is about to work; its times go on where the settings are the same."""
    known = record.stages.get(stage.key)
    if known and known.digest == stage.digest:
        return record
    entry = StageRecord(digest=stage.digest, version=stage.version, settings=dict(stage.settings))
    return dataclasses.replace(record, stages={**record.stages, stage.key: entry})


def with_time(record: RunRecord, stage: Stage, seconds: float, rows: int) -> RunRecord:
    """Add a stage's time and rows, for the rate that `status` shows."""
    known = record.stages[stage.key]
    entry = dataclasses.replace(known, seconds=round(known.seconds + seconds, 3), rows=known.rows + rows)
    return dataclasses.replace(record, stages={**record.stages, stage.key: entry})


def with_trouble(record: RunRecord, stage: Stage, trouble: str) -> RunRecord:
    """Note why a stage stopped, for `status`."""
    entry = dataclasses.replace(record.stages[stage.key], trouble=" ".join(trouble.split())[:MAX_TROUBLE_CHARS])
    return dataclasses.replace(record, stages={**record.stages, stage.key: entry})


def same_input(stage: Stage, before: StageRecord) -> bool:
    """Whether a stage reads the same images or sounds as before, whatever else of it has changed."""

    def of_input(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if key.startswith("images.") or key == "seed"}

    return of_input(stage.settings) == of_input(before.settings)


def describe_difference(stage: Stage, before: StageRecord) -> str:
    """Name the first setting that differs."""
    if stage.version != before.version:
        return f"stage version {before.version} then, {stage.version} now"
    keys = sorted({*stage.settings, *before.settings})
    differing = [key for key in keys if stage.settings.get(key) != before.settings.get(key)]
    if "published.digest" in differing:
        return "one of the two renders a published dataset, or another one"
    key = differing[0]
    return f"{key} was {before.settings.get(key)!r} then, is {stage.settings.get(key)!r} now"
