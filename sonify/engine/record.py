"""RUN/run.json: under which configuration, libraries and models the run was made, and how long its stages took."""

import dataclasses
import json
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sonify import layout
from sonify.config import Config, make_config, with_keys_of_before
from sonify.engine.job import Resources, Stage
from sonify.engine.worker import Outcome
from sonify.errors import InputError, WorkError
from sonify.installed import spell, spell_again
from sonify.io.commits import DamagedRecord, digest_of, is_digest, open_record, seal_record
from sonify.io.places import read_own
from sonify.io.write import write_atomically
from sonify.sources.captions import TEXTS, identify_texts_before
from sonify.stores import Place

LIBRARIES = (
    "sonify",
    "av",
    "faiss-cpu",
    "faiss-gpu",
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
# Keys that say where input lies, as settings name them. What lies there is known by its names and its content, so that
# a run whose input was moved is the same run; versions before this one recorded them among a stage's settings.
PLACES = frozenset({"images.path", *(f"audio.sources.{key}" for key in ("path", "segments", "labels", "table"))})
# Files that settings know by their content; who only looks at a run needs none of them.
CONTENTS = frozenset({"images.exclude", "audio.exclude", "concepts.extractors.file"})
CONTENTS |= {"retrieval.limit.calibration", "retrieval.confirm.labels"}
GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What `rows` of a stage took of workers that hold so many CPUs and GPUs each, loading it apart.

    `seconds` are those of all workers together, and of units that were done whole: neither idle workers nor units that
    were given up are in them. `loads` workers took `load_seconds` in all before their first unit.
    """

    cpus: float
    gpus: float
    units: int = 0
    rows: int = 0
    seconds: float = 0.0
    loads: int = 0
    load_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """The settings that a stage's commits stand under; `seconds` and `rows` of work since it was last redone.

    `seconds` are the driver's clock. `measured` is what workers took; None before a unit of it was measured.
    `trouble` is why the last work on it stopped or left units undone, and empty where it went well.
    """

    digest: str
    version: int
    settings: Mapping[str, Any]
    seconds: float = 0.0
    rows: int = 0
    trouble: str = ""
    measured: Measured | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The whole file."""

    config: Mapping[str, Any]
    config_digest: str
    seed: int
    versions: Mapping[str, str]
    models: Mapping[str, str] = field(default_factory=dict)  # what each is: a commit, or a digest of its files
    stages: Mapping[str, StageRecord] = field(default_factory=dict)
    acted: Mapping[str, Any] = field(default_factory=dict)  # `ActedRules` of the last draw; empty where none was


def read_record(run_dir: Place) -> RunRecord | None:
    """Read RUN/run.json; None where there is none yet."""
    path = run_dir / layout.RUN
    try:
        raw = open_run_record(read_own(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except DamagedRecord as error:
        raise WorkError(f"{path}: damaged ({error}); `{spell('verify', run_dir, '--repair')}` withdraws it") from error
    stages = {key: _stage_record(stage) for key, stage in raw.pop("stages").items()}
    return RunRecord(**raw, stages=stages)


def _stage_record(raw: Mapping[str, Any]) -> StageRecord:
    measured = raw.get("measured")
    return StageRecord(**{**raw, "measured": Measured(**measured) if measured else None})


def open_run_record(data: bytes) -> dict[str, Any]:
    """Read the sealed record of a run, whose digests are names of folders.

    Raises:
        DamagedRecord: it is not what was written.
    """
    raw = open_record(data)
    stages = raw.get("stages")
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise DamagedRecord("its stages are none")
    wrong = next((key for key, stage in stages.items() if not is_digest(stage.get("digest"))), None)
    if wrong is not None:
        raise DamagedRecord(f"the digest of its stage {wrong[:100]!r} is none")
    return raw


def require_record(run_dir: Place) -> RunRecord:
    """Read the record of a run that must exist."""
    record = read_record(run_dir)
    if record is None:
        raise InputError(f"{run_dir}: not a run: expected {layout.RUN} in it; `{spell_again()}` makes one")
    return record


def config_of_run(run_dir: Place) -> Config:
    """The configuration that a run was last worked on with."""
    recorded = with_keys_of_before(require_record(run_dir).config)
    return make_config({**recorded, "run_dir": str(run_dir)}, str(run_dir), check_paths=False)


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
        acted=before.acted if before else {},
    )


def with_stage(record: RunRecord, stage: Stage) -> RunRecord:
    """Note the settings of a stage that is about to work; its times go on where the settings are the same."""
    known = record.stages.get(stage.key)
    if known and known.digest == stage.digest:
        return record
    entry = StageRecord(digest=stage.digest, version=stage.version, settings=dict(stage.settings))
    return replace(record, stages={**record.stages, stage.key: entry})


def with_time(record: RunRecord, stage: Stage, seconds: float, rows: int) -> RunRecord:
    """Add a stage's time and rows, for the rate that `status` shows."""
    known = record.stages[stage.key]
    entry = replace(known, seconds=round(known.seconds + seconds, 3), rows=known.rows + rows)
    return replace(record, stages={**record.stages, stage.key: entry})


def with_unit(record: RunRecord, stage: Stage, held: Resources, outcome: Outcome) -> RunRecord:
    """Add what a unit took; workers that hold something else are measured from the beginning."""
    assert outcome.commit is not None, outcome
    known = record.stages[stage.key]
    before = known.measured
    if before is None or (before.cpus, before.gpus) != (held.cpus, held.gpus):
        before = Measured(cpus=held.cpus, gpus=held.gpus)
    measured = replace(
        before,
        units=before.units + 1,
        rows=before.rows + outcome.commit.rows.rows_in,
        seconds=round(before.seconds + outcome.seconds, 6),
        loads=before.loads + (outcome.load_seconds > 0),
        load_seconds=round(before.load_seconds + outcome.load_seconds, 6),
    )
    return replace(record, stages={**record.stages, stage.key: replace(known, measured=measured)})


def pruned(value: Any, drops: Callable[[str, Any], bool], key: str = "") -> Any:
    """Settings without the keys that are dropped, anywhere inside; those of a list's items have the list's name."""
    if isinstance(value, list):
        return [pruned(item, drops, key) for item in value]
    if not isinstance(value, Mapping):
        return value
    named = {name: f"{key}.{name}" if key else name for name in value}
    return {name: pruned(inner, drops, named[name]) for name, inner in value.items() if not drops(named[name], inner)}


def without_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without what says where input lies."""
    return pruned(settings, lambda key, _: key in PLACES)


def as_recorded(stage: Stage, record: RunRecord | None) -> Stage:
    """The stage under the settings of its record, where those differ only by where input and models lay then.

    The digest that its commits stand under is then met, wherever the run, its input and its models are now.
    """
    before = record.stages.get(stage.key) if record else None
    if record is None or before is None:
        return stage

    def is_same(key: str, now: str, then: str) -> bool:
        if key in CONTENTS:
            return now == GONE or (now == TEXTS and then in texts_before)
        return _is_same_model(stage, record, now, then)

    files = (extractor.get("file") for extractor in record.config["concepts"]["extractors"])
    texts_before = {identify_texts_before(file) for file in files if file}
    return replace(stage, settings=_taken_back(stage.settings, before.settings, is_same))


def is_recorded(stage: Stage, record: RunRecord) -> bool:
    """Whether a stage is the same as in a record, wherever input and models lay for the two."""
    plain = replace(stage, settings=without_places(stage.settings))
    return as_recorded(plain, record).digest == record.stages[stage.key].digest


def _taken_back(now: Any, then: Any, is_same: Callable[[str, str, str], bool], key: str = "") -> Any:
    """Today's settings with the recorded places, and the recorded texts where they mean the same."""
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        named = {name: f"{key}.{name}" if key else name for name in (*then, *now)}
        places = {name: value for name, value in then.items() if named[name] in PLACES}
        taken = {name: _taken_back(now[name], then.get(name), is_same, named[name]) for name in now}
        return taken | places
    if isinstance(now, list) and isinstance(then, list):
        pairs = zip(now, then, strict=False)
        return [_taken_back(*pair, is_same, key) for pair in pairs] + now[len(then) :]
    if isinstance(now, str) and isinstance(then, str) and now != then and then and is_same(key, now, then):
        return then
    return now


def _is_same_model(stage: Stage, record: RunRecord, now: str, then: str) -> bool:
    """Whether two folders hold the same model, by what it is: the older one need not be there any more."""
    are_folders = Path(now).is_absolute() and Path(then).is_absolute()
    if not are_folders or now not in stage.models or then not in record.models:
        return False
    if now in record.models:
        return record.models[now] == record.models[then]
    try:
        return stage.fetch().get(now) == record.models[then]
    except InputError:  # who needs the model says what is wrong with it
        return False


def with_trouble(record: RunRecord, stage: Stage, trouble: str) -> RunRecord:
    """Note why a stage stopped, for `status`."""
    entry = replace(record.stages[stage.key], trouble=" ".join(trouble.split())[:MAX_TROUBLE_CHARS])
    return replace(record, stages={**record.stages, stage.key: entry})


def same_input(stage: Stage, before: StageRecord) -> bool:
    """Whether a stage reads input by the same rules as before, whatever else of it has changed."""

    def of_input(settings: Mapping[str, Any]) -> dict[str, Any]:
        plain = without_places(settings)
        return {key: value for key, value in plain.items() if key.startswith("images.") or key == "seed"}

    return of_input(stage.settings) == of_input(before.settings)


def _spelt(value: Any) -> str:
    """A value as it is written in a configuration."""
    return repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def describe_difference(stage: Stage, before: StageRecord) -> str:
    """Name the first setting that differs."""
    if stage.version != before.version:
        return f"stage version {before.version} then, {stage.version} now"
    now, then = without_places(stage.settings), without_places(before.settings)
    # of null and a key that is left out, only the second is as it was before the key was there
    differing = [key for key in sorted({*now, *then}) if (key in now, now.get(key)) != (key in then, then.get(key))]
    if "published.digest" in differing:
        return "one of the two renders a published dataset, or another one"
    if not differing:  # places of input cannot be compared where the number of sources differs
        return "its input lay elsewhere"
    key = differing[0]
    if key in CONTENTS:
        if now.get(key) and then.get(key):
            return f"{key} has another content now than then"
        return f"{key} was set then, and is not now" if then.get(key) else f"{key} was not set then, and is now"
    was, is_now = (_spelt(settings[key]) if key in settings else "not set" for settings in (then, now))
    return f"{key} was {was} then, is {is_now} now"
