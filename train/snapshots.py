"""Power-function averages on disk while a run trains, and an average of any length made of them afterwards.

TRAINRUN/averages/step-00005000/0.05.safetensors, 0.1.safetensors   the average of each length, in float16
TRAINRUN/averages/step-00005000/state.json                          step, the network, the files' sizes and sha256

A folder is seen whole or not at all, and none is ever removed but those that training makes again: what was taken after
the step from which a run goes on.

Source: EDM2, arXiv 2312.02696, which stores float16 as well.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sonify.errors import InputError, WorkError
from sonify.io.commits import DamagedRecord, damage_of, open_record, seal_record
from sonify.io.write import FileRecord, replacing, sha256_of, sync_folder
from train.averages import Fit, fit
from train.checkpoints import BASE, NETWORK, STATE, Learner, naming_system_errors

FOLDER = "averages"
NAME = re.compile(r"step-\d{8}")
# A length that is had with more of either is no such average: short ones want snapshots that lie closer together.
MOST_MISFIT, MOST_GROWTH = 0.1, 20.0


def save_snapshot(run_dir: Path, step: int, learner: Learner) -> Path:
    """Write the power averages of a step; one of that step that is there is replaced.

    Raises:
        DiskFull: no room is left; the snapshots that are there stay.
    """
    folder = run_dir / FOLDER / f"step-{step:08d}"
    with replacing(folder) as partial, naming_system_errors():
        for length, average in learner.powers.items():
            halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in average.state_dict().items()}
            save_file(halves, partial / f"{length:g}.safetensors")
        records = [
            FileRecord(path=file.name, size_bytes=file.stat().st_size, sha256=sha256_of(file))
            for file in sorted(partial.iterdir())
        ]
        said = {"step": step, NETWORK: learner.settings, BASE: learner.frozen.get(BASE)}
        said["files"] = [asdict(record) for record in records]
        (partial / STATE).write_bytes(seal_record(said))
        for file in partial.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(partial)
    return folder


def forget_snapshots(run_dir: Path, after: int) -> None:
    """Remove those of later steps, which the run makes again."""
    for folder in _folders(run_dir):
        if int(folder.name[5:]) > after:
            shutil.rmtree(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots:
    """All snapshots of a run up to one of their steps, checked; `files` have the step and the length of each.

    `base` is the identity of the model that they are adapters of.
    """

    step: int
    network: Mapping[str, Any]
    base: str | None
    files: Mapping[tuple[int, float], Path]

    def fit(self, length: float) -> Fit:
        """How the average of a length is made of them."""
        return fit(list(self.files), self.step, length)

    def combine(self, fits: Sequence[Fit]) -> list[dict[str, Tensor]]:
        """The averages, in float32; each file is read once for all of them."""
        sums: list[dict[str, Tensor]] = [{} for _ in fits]
        for number, path in enumerate(self.files.values()):
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                    stored = tensors.get_tensor(name).float()
                    for one, total in zip(fits, sums, strict=True):
                        share = stored * float(one.coefficients[number])
                        total[name] = total[name].add_(share) if name in total else share
        return sums


def is_had(found: Fit) -> bool:
    """Whether a length is among those that the snapshots hold."""
    return found.misfit <= MOST_MISFIT and found.growth <= MOST_GROWTH


def open_snapshots(run_dir: Path, step: int | None) -> Snapshots:
    """Find and check them, up to the newest where `step` is None.

    Raises:
        InputError: the run has none, or none of that step.
        WorkError: one is damaged.
    """
    folders = _folders(run_dir)
    steps = [int(folder.name[5:]) for folder in folders]
    if not folders:
        raise InputError(
            f"{run_dir}: no stored averages; a run has them that was trained with lengths, such as"
            " ema.lengths=[0.05,0.10]"
        )
    if step is not None and step not in steps:
        raise InputError(
            f"--step {step}: no averages of it are stored in {run_dir / FOLDER}; there are: {_tell(steps)}"
        )
    last = steps[-1] if step is None else step
    files: dict[tuple[int, float], Path] = {}
    newest: dict[str, Any] = {}
    for at, folder in zip(steps, folders, strict=True):
        if at <= last:
            newest = _check(folder)
            files |= {(at, float(Path(file["path"]).stem)): folder / file["path"] for file in newest["files"]}
    return Snapshots(step=last, network=newest[NETWORK], base=newest.get(BASE), files=files)


def _tell(steps: Sequence[int]) -> str:
    if len(steps) <= 8:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[:3]))} ... {', '.join(map(str, steps[-3:]))}"


def _check(folder: Path) -> dict[str, Any]:
    try:
        record = open_record((folder / STATE).read_bytes())
    except (OSError, DamagedRecord) as error:
        raise _damaged(folder, f"{STATE}: {error}") from error
    if int(folder.name[5:]) != record["step"]:
        raise _damaged(folder, f"{STATE} is that of step {record['step']}")
    for file in (FileRecord(**fields) for fields in record["files"]):
        if what := damage_of(folder / file.path, file):
            raise _damaged(folder, f"{file.path}: {what}")
    return record


def _damaged(folder: Path, what: str) -> WorkError:
    return WorkError(f"{folder}: damaged ({what}); move it away: the others do without it, a little less exactly")


def _folders(run_dir: Path) -> list[Path]:
    return sorted(path for path in (run_dir / FOLDER).glob("step-*") if NAME.fullmatch(path.name) and path.is_dir())
