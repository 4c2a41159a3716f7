"""The whole state of training on disk: safetensors only, seen whole or not at all, checked before it is used.

A `Saver` and `restore_training` are the ways from and to the state in memory. Training goes on while a checkpoint is
written: it waits for a copy of the state in the host's memory, which is as large as a checkpoint.

RUN/checkpoints/step-00001000/model.safetensors, ema.safetensors, optimizer.safetensors
RUN/checkpoints/step-00001000/powers.safetensors   only where the run has power-function averages
RUN/checkpoints/step-00001000/state.json     step, what the run is bound to, the files' sizes and sha256
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sonify import layout
from sonify.errors import InputError, WorkError
from sonify.io.commits import DamagedRecord, damage_of, open_record, seal_record
from sonify.io.write import FileRecord, replacing, sha256_of, sync_folder
from train.averages import Average, Exponential, Power, learning
from train.config import AudioTokenConfig, LossWeights, TrainConfig, Training
from train.device import wait_for
from train.scenes import remix_recordings
from train.shards import FeatureData

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
NAME = re.compile(r"step-\d{8}")
STATE = "state.json"
RECORDINGS = "recordings.txt"
PARTIAL = ".partial"
DAMAGED = ".damaged"
RELEASE = "pipeline"
PIPELINE_INDEX = "model_index.json"
NOTICEABLE_SECONDS = 5.0  # of waiting for the checkpoint before, which is then said
FILES = ("model", "ema", "optimizer", "powers")
BASE = "base"  # what a checkpoint of adapters calls the identity of what they were learned on
NETWORK = "transformer"  # what a checkpoint calls the network's configuration, whatever network it is

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a checkpoint says of itself: the settings that a run which goes on from it must have too (`bound`), the
    network's own configuration, and the recordings that it learned from: a takedown asks for them.
    """

    bound: Mapping[str, Any]
    network: Mapping[str, Any]
    recordings: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """The network that learns, as it is without processes around it, with its average and its optimizer.

    `frozen` are identities, by their keys, of what it does not learn and depends on: networks that its loss goes
    through, the base of adapters, what scenes are drawn from; `powers` are further averages by their lengths.
    """

    network: nn.Module
    ema: Average
    optimizer: torch.optim.Optimizer
    frozen: Mapping[str, str] = field(default_factory=dict)
    powers: Mapping[float, Average] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The network's own configuration, as diffusers keeps it, without the place that it was loaded from."""
        return {key: value for key, value in cast(Any, self.network).config.items() if key != "_name_or_path"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """All that training goes on from, after `step` steps."""

    step: int
    model: Tensors
    ema: Tensors
    optimizer: Tensors
    powers: Tensors = field(default_factory=dict)


def save_checkpoint(run_dir: Path, state: TrainingState, facts: Facts, keep: int) -> Path:
    """Write a checkpoint and remove all but the last `keep`.

    Raises:
        DiskFull: no room is left; the checkpoints that are there stay.
    """
    folder = run_dir / FOLDER / _name(state.step)
    with replacing(folder) as partial, naming_system_errors():
        _write(partial, state, facts)
    for old in _folders(run_dir)[:-keep]:
        shutil.rmtree(old)
    return folder


@contextmanager
def naming_system_errors() -> Iterator[None]:
    """Let the system's errors through as such: safetensors has one kind of its own for all, with their number in it."""
    try:
        yield
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise


def restore_checkpoint(run_dir: Path, bound: Mapping[str, Any], check: bool = True) -> TrainingState | None:
    """Read the newest whole checkpoint; damaged ones are named and set aside. None where there is none at all.

    Without `check` the newest is taken as it is: another process has just checked it.

    Raises:
        InputError: it belongs to a run under other settings.
        WorkError: there are checkpoints, and all are damaged.
    """
    for partial in (run_dir / FOLDER).glob(f"*{PARTIAL}"):
        shutil.rmtree(partial)
    folders = _folders(run_dir)
    for folder in reversed(folders):
        try:
            record = _check(folder) if check else _read_state(folder)
        except _Damaged as damage:
            for old in (run_dir / FOLDER).glob(f"*{DAMAGED}"):  # one is kept to be looked into
                shutil.rmtree(old)
            aside = folder.with_name(folder.name + DAMAGED)
            os.replace(folder, aside)
            log.warning("%s: damaged (%s); set aside as %s", folder, damage, aside.name)
            continue
        _check_bound(folder, record["bound"], bound)
        return _read(folder, record["step"])
    if next((run_dir / FOLDER).glob(f"*{DAMAGED}"), None):
        raise WorkError(
            f"{run_dir / FOLDER}: every checkpoint is damaged; remove the folder to start from the beginning"
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """Averaged weights of a step, how they were averaged, and the configuration of the network whose they are.

    `base` is the identity of the model that they are adapters of.
    """

    step: int
    network: Mapping[str, Any]
    weights: Tensors
    rule: Exponential | Power
    base: str | None = None


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint by its name, whole or not; 0 where there is none."""
    return max((int(folder.name[5:]) for folder in _folders(run_dir)), default=0)


def load_averaged(run_dir: Path, step: int | None) -> Averaged:
    """Read the averaged weights of one checkpoint, the newest where `step` is None."""
    folders = _folders(run_dir)
    chosen = [folder for folder in folders if step is None or folder.name == _name(step)]
    if not chosen:
        there = ", ".join(str(int(folder.name[5:])) for folder in folders) or "none"
        raise InputError(f"{run_dir}: no checkpoint of step {'any' if step is None else step}; there are: {there}")
    try:
        record = _check(chosen[-1])
    except _Damaged as damage:
        raise InputError(f"{chosen[-1]}: damaged ({damage}); take another with --step") from damage
    weights = load_file(chosen[-1] / "ema.safetensors")
    return Averaged(
        step=record["step"],
        network=record[NETWORK],
        weights=weights,
        rule=_rule_of(record["bound"]),
        base=record["bound"].get(BASE),
    )


class _Damaged(Exception):
    """A checkpoint that is not what was written."""


def _write(folder: Path, state: TrainingState, facts: Facts) -> None:
    for name in FILES if state.powers else FILES[:-1]:
        tensors = {key: tensor.contiguous() for key, tensor in getattr(state, name).items()}
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / RECORDINGS).write_text("".join(f"{name}\n" for name in facts.recordings), encoding="utf-8")
    records = []
    for file in sorted(folder.iterdir()):
        _sync(file)
        records.append(FileRecord(path=file.name, size_bytes=file.stat().st_size, sha256=sha256_of(file)))
    said = {"step": state.step, "bound": dict(facts.bound), NETWORK: dict(facts.network)}
    (folder / STATE).write_bytes(seal_record(said | {"files": [asdict(record) for record in records]}))
    _sync(folder / STATE)
    sync_folder(folder)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _folders(run_dir: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted(path for path in (run_dir / FOLDER).glob("step-*") if NAME.fullmatch(path.name) and path.is_dir())


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        return open_record((folder / STATE).read_bytes())
    except (OSError, DamagedRecord) as error:
        raise _Damaged(f"{STATE}: {error}") from error


def _check(folder: Path) -> dict[str, Any]:
    record = _read_state(folder)
    if folder.name != _name(record["step"]):
        raise _Damaged(f"{STATE} is that of {_name(record['step'])}")
    for file in (FileRecord(**said) for said in record["files"]):
        if what := damage_of(folder / file.path, file):
            raise _Damaged(f"{file.path}: {what}")
    return record


def _check_bound(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key, was, value in _differences(_completed(before), _completed(now)):
        raise InputError(
            f"{folder}: {key} was {was!r} when this checkpoint was made, and is {value!r} now; go on with the settings"
            " of then, or take another run_dir"
        )


def _completed(bound: Mapping[str, Any]) -> dict[str, Any]:
    """With the keys that came later."""
    complete = dict(bound)
    for (section, key), before in ADDED.items():
        complete[section] = {key: before, **complete.get(section, {})}
    return complete


def _rule_of(bound: Mapping[str, Any]) -> Exponential:
    """How a checkpoint's average was made, as it says itself: a configuration of then has not all keys."""
    optimizer = _completed(bound)["optimizer"]
    return Exponential(decay=optimizer["ema_decay"], warmup=optimizer["ema_warmup"])


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*before, *now}):
        was, value = before.get(key), now.get(key)
        if isinstance(was, Mapping) and isinstance(value, Mapping):
            yield from _differences(was, value, f"{prefix}{key}.")
        elif was != value:
            yield prefix + key, was, value


def _read(folder: Path, step: int) -> TrainingState:
    files = {name: folder / f"{name}.safetensors" for name in FILES}
    tensors = {name: load_file(file) for name, file in files.items() if name != "powers" or file.exists()}
    return TrainingState(step=step, **tensors)


def check_run_dir(config: Training) -> None:
    """Refuse a run_dir where something lies that training would write over, or write among."""
    run_dir = config.run_dir.resolve()
    release = run_dir / RELEASE
    taken = next((folder for folder in (run_dir, *run_dir.parents) if (folder / layout.RUN).exists()), None)
    if run_dir == Path.cwd():
        raise InputError("run_dir: is the current folder; name one of its own, such as runs/mine")
    if taken is not None:
        raise InputError(f"run_dir: {run_dir} lies in {taken}, a run of `sonify`; choose another folder")
    if (run_dir / PIPELINE_INDEX).exists():
        raise InputError(f"run_dir: {run_dir} is a released pipeline; choose another folder")
    if release.exists() and not (release / RECORDINGS).exists():
        raise InputError(f"run_dir: {release} is in the way: it is no release; move it, or choose another folder")


# What a run that resumes must have in common with the one that it goes on from, for the same losses. Where the first
# weights came from no longer matters.
BOUND: Mapping[type[Training], Mapping[str, Any]] = {
    TrainConfig: {
        "include": {
            **dict.fromkeys(("seed", "model", "optimizer", "condition_dropout", "precision"), True),
            **dict.fromkeys(("train", "adapters", "loss", "routing"), True),
            "ema": {"lengths"},
        },
        "exclude": {"model": {"init"}, "routing": {"finish_steps"}},
    },
    AudioTokenConfig: {
        "include": {
            **dict.fromkeys(("seed", "placeholder", "prompt", "upstream_dropout", "loss", "optimizer"), True),
            **dict.fromkeys(("condition_dropout", "precision"), True),
            "ema": {"lengths"},
        },
    },
}
# Keys that came after runs were made, each with the value under which all is as before.
ADDED: Mapping[tuple[str, str], Any] = {
    ("optimizer", "rule"): "sqrt",
    ("optimizer", "ema_warmup"): False,
    ("ema", "lengths"): [],
}
ADDED_WHOLE: Mapping[str, Any] = {"train": "all", "loss": LossWeights().model_dump(), "routing": None}


def bound_settings(config: Training, data: FeatureData, frozen: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint is bound to, as it says so; `frozen` are identities of what the loss goes through."""
    plain = config.model_dump(mode="json", **BOUND[type(config)])
    for (section, key), before in ADDED.items():
        if plain[section][key] == before:
            del plain[section][key]
            if not plain[section]:
                del plain[section]
    read = {"batch.total": config.batch.total, "data": data.digest, "data.split": config.data.split}
    if isinstance(config, TrainConfig):
        if config.train == "all":
            del plain["adapters"]
        kept = {key: value for key, value in plain.items() if key not in ADDED_WHOLE or value != ADDED_WHOLE[key]}
        return kept | read | {"hears": config.ast is not None, **frozen}
    # dropout and the classification term are of a micro-batch, which is the same images for any number of processes
    return plain | read | {"batch.per_device": config.batch.per_device, **frozen}


class Saver:
    """A context in which checkpoints are written by a thread, one at a time; its end waits for the last of them.

    The copy that is written is pinned where the state is on a GPU, and made in the same place each time. `writes` is
    false in all processes but the first.
    """

    def __init__(self, config: Training, data: FeatureData, learner: Learner, *, writes: bool = True) -> None:
        self._config = config
        self._data = data
        self._learner = learner
        self._writes = writes
        self._copies: dict[tuple[str, str], torch.Tensor] = {}
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            log.warning("the last checkpoint was not written: %s", failure)  # and the error goes its way
        finally:
            self._thread.shutdown()

    def save(self, step: int) -> None:
        """Copy the state as it is after a step, and let it be written.

        Raises:
            DiskFull: no room was left for the one before; the checkpoints that are there stay.
        """
        if not self._writes:
            return
        started = time.perf_counter()
        self.wait()
        if (waited := time.perf_counter() - started) > NOTICEABLE_SECONDS:
            log.warning(
                "step %s waited %.0f s for the checkpoint before it to be written: run_dir's disk is slow for"
                " checkpoints.every=%d", f"{step:,}", waited, self._config.checkpoints.every,
            )  # fmt: skip
        state = self._copied(_state_of(step, self._learner))
        bound = bound_settings(self._config, self._data, self._learner.frozen)
        network = self._learner.settings

        def write() -> Path:  # what is counted over the data, at the first time, is counted here too
            facts = Facts(bound=bound, network=network, recordings=learned_from(self._config, self._data))
            return save_checkpoint(self._config.run_dir, state, facts, self._config.checkpoints.keep)

        self._writing = self._thread.submit(write)

    def raise_failure(self) -> None:
        """Raise what kept a checkpoint from being written, as soon as it is known."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what was saved is on the disk, and raise what kept it from there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _copied(self, state: TrainingState) -> TrainingState:
        """The state in this saver's own memory."""
        parts = {part.name: getattr(state, part.name) for part in fields(state) if part.name != "step"}
        copied = {name: {key: self._copy((name, key), tensor) for key, tensor in parts[name].items()} for name in parts}
        wait_for(next(self._learner.network.parameters()).device)
        return TrainingState(step=state.step, **copied)

    def _copy(self, name: tuple[str, str], tensor: torch.Tensor) -> torch.Tensor:
        if name not in self._copies:
            self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return self._copies[name].copy_(tensor.detach(), non_blocking=True)


def _state_of(step: int, learner: Learner) -> TrainingState:
    return TrainingState(
        step=step,
        model=_without_frozen(learner.network),
        ema=learner.ema.state_dict(),
        optimizer=_pack(learner),
        powers={
            f"{length:g}/{name}": tensor
            for length, average in learner.powers.items()
            for name, tensor in average.state_dict().items()
        },
    )


def learned_from(config: Training, data: FeatureData) -> list[str]:
    """The recordings of the training data, those that its scenes may have been drawn anew from, and those of the
    projector that it began with where that one names them."""
    drawn = remix_recordings(config) if isinstance(config, TrainConfig) else set()
    return sorted({*data.recordings(), *drawn, *(projector_recordings(config) or ())})


def projector_recordings(config: Training) -> list[str] | None:
    """What a projector that training began with was learned from, as `train.projector` writes it beside: none where no
    list is there."""
    projector = config.model.init.projector if isinstance(config, TrainConfig) else None
    beside = projector.with_name(RECORDINGS) if isinstance(projector, Path) else None
    if beside is None or not beside.is_file():
        return None
    try:
        return [name for name in beside.read_text(encoding="utf-8").split("\n") if name]
    except (OSError, ValueError) as error:
        raise InputError(f"{beside}: cannot be read as text ({getattr(error, 'strerror', None) or error})") from error


def restore_training(config: Training, data: FeatureData, learner: Learner, *, check: bool) -> int:
    """Load the newest whole checkpoint, if there is any, and return how many steps are done.

    `check` hashes the files and sets damaged ones aside: one process does so before the others load.

    Raises:
        InputError: it belongs to a run under other settings.
        WorkError: there are checkpoints, and all are damaged.
    """
    state = restore_checkpoint(config.run_dir, bound_settings(config, data, learner.frozen), check)
    if state is None:
        return 0
    if state.step > config.max_steps:
        raise InputError(
            f"max_steps: {config.max_steps}, and {config.run_dir} has a checkpoint of step {state.step}; set at least"
            " that, or make a release of an earlier one with `python -m train.release --step`"
        )
    load_learning(learner.network, state.model)
    learner.ema.load_state_dict(state.ema)
    for length, average in learner.powers.items():
        start = f"{length:g}/"
        average.load_state_dict({k.removeprefix(start): v for k, v in state.powers.items() if k.startswith(start)})
    _unpack(learner, state.optimizer)
    return state.step


def _without_frozen(network: nn.Module) -> dict[str, torch.Tensor]:
    frozen = dict(network.named_parameters()).keys() - learning(network)
    return {name: tensor for name, tensor in network.state_dict().items() if name not in frozen}


def load_learning(network: nn.Module, weights: Tensors) -> None:
    """Load what a checkpoint has of a network, which is all of it but what is frozen."""
    assert weights.keys() == _without_frozen(network).keys(), "the checkpoint is of another network"
    network.load_state_dict({**network.state_dict(), **weights})


def _pack(learner: Learner) -> dict[str, torch.Tensor]:
    """The optimizer's tensors under the names of the parameters that they belong to."""
    return {
        f"{name}/{kind}": tensor
        for name, parameter in learning(learner.network).items()
        for kind, tensor in learner.optimizer.state[parameter].items()
    }


def _unpack(learner: Learner, packed: Mapping[str, torch.Tensor]) -> None:
    parameters = dict(learner.network.named_parameters())
    for key, tensor in packed.items():
        name, _, kind = key.rpartition("/")
        learner.optimizer.state[parameters[name]][kind] = tensor.to(parameters[name].device)
