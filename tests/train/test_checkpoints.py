import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sonify.errors import InputError, WorkError
from tests.processes import run_on_small_disk, run_python
from tests.tiny_networks import edit_json
from tests.train.runs import BOUND, FACTS, state, tiny_lesson, training_input
from train import checkpoints, shards
from train.checkpoints import Facts, Saver, bound_settings, load_averaged, restore_checkpoint, save_checkpoint


def folders(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    save_checkpoint(tmp_path, state(5), FACTS, keep=2)
    restored = restore_checkpoint(tmp_path, BOUND)
    assert restored is not None
    assert restored.step == 5
    for name in ("model", "ema", "optimizer"):
        expected = getattr(state(5), name)
        assert set(getattr(restored, name)) == set(expected)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in getattr(restored, name).items())


def test_a_new_run_has_nothing_to_restore(tmp_path):
    assert restore_checkpoint(tmp_path, BOUND) is None


def test_the_last_ones_are_kept(tmp_path):
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, state(step), FACTS, keep=2)
    assert folders(tmp_path) == ["step-00000003", "step-00000010"]


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def flip(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (cut, "bytes, found"),
        (flip, "sha256"),
        (lambda folder: (folder / "ema.safetensors").unlink(), "missing"),
        (lambda folder: edit_json(folder / "state.json", lambda record: record.update(step=99)), "state.json"),
    ],
    ids=["cut", "flipped", "lost", "edited"],
)
def test_a_damaged_newest_one_is_named_and_the_one_before_it_used(tmp_path, caplog, damage, named):
    save_checkpoint(tmp_path, state(1), FACTS, keep=3)
    damage(save_checkpoint(tmp_path, state(2), FACTS, keep=3))
    restored = restore_checkpoint(tmp_path, BOUND)
    assert restored is not None
    assert restored.step == 1
    assert "step-00000002" in caplog.text
    assert named in caplog.text
    assert folders(tmp_path) == ["step-00000001", "step-00000002.damaged"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew_in_silence(tmp_path):
    cut(save_checkpoint(tmp_path, state(1), FACTS, keep=3))
    with pytest.raises(WorkError, match="every checkpoint is damaged"):
        restore_checkpoint(tmp_path, BOUND)
    with pytest.raises(WorkError, match="every checkpoint is damaged"):  # nor the second time
        restore_checkpoint(tmp_path, BOUND)


def test_another_model_is_refused_with_the_setting_that_differs(tmp_path):
    save_checkpoint(tmp_path, state(1), FACTS, keep=3)
    with pytest.raises(InputError, match=r"model\.layers was 2 .* is 4 now"):
        restore_checkpoint(tmp_path, {"seed": 0, "model": {"layers": 4}})


def test_the_averaged_weights_are_read_by_step(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step), FACTS, keep=3)
    assert load_averaged(tmp_path, None).step == 2
    averaged = load_averaged(tmp_path, 1)
    assert (averaged.step, averaged.network) == (1, {"num_layers": 2})
    assert torch.equal(averaged.weights["a.weight"], state(1).ema["a.weight"])
    with pytest.raises(InputError, match="no checkpoint of step 7; there are: 1, 2"):
        load_averaged(tmp_path, 7)
    with pytest.raises(InputError, match="there are: none"):
        load_averaged(tmp_path / "nowhere", None)


def test_what_only_looks_like_a_checkpoint_is_let_be(tmp_path):
    save_checkpoint(tmp_path, state(1), FACTS, keep=1)
    (tmp_path / "checkpoints" / "step-notes.txt").write_text("mine")
    (tmp_path / "checkpoints" / "step-00000007.bak").mkdir()
    copied = save_checkpoint(tmp_path, state(2), FACTS, keep=1)
    shutil.copytree(copied, copied.with_name("step-00000099"))
    restored = restore_checkpoint(tmp_path, BOUND)
    assert restored is not None
    assert restored.step == 2
    expected = ["step-00000002", "step-00000007.bak", "step-00000099.damaged", "step-notes.txt"]
    assert folders(tmp_path) == expected


KILLED = """
import sys
from itertools import count
from pathlib import Path
from tests.processes import fork
from tests.train.runs import BOUND, FACTS, state
from train.checkpoints import restore_checkpoint, save_checkpoint
steps = []
for at in count(1):
    run_dir = Path(sys.argv[1]) / str(at)
    save_checkpoint(run_dir, state(1), FACTS, keep=1)
    ended = fork(lambda: save_checkpoint(run_dir, state(2), FACTS, keep=1), kill_at=at)
    steps.append(restore_checkpoint(run_dir, BOUND).step)
    assert not list((run_dir / "checkpoints").glob("*.partial"))
    if ended == 0:
        break
    assert ended == -9, ended
print(steps)
"""


def test_killed_anywhere_while_saving_a_whole_checkpoint_is_left(tmp_path):
    steps = json.loads(run_python(KILLED, tmp_path).stdout)
    assert len(steps) > 8
    assert sorted(set(steps)) == [1, 2]
    assert steps == sorted(steps)  # once the new one is there it stays


FULL = """
import sys
from pathlib import Path
import torch
from sonify.errors import DiskFull
from tests.train.runs import BOUND, FACTS, state
from train.checkpoints import TrainingState, restore_checkpoint, save_checkpoint
run_dir = Path(sys.argv[1]) / "small"
save_checkpoint(run_dir, state(1), FACTS, keep=1)
large = TrainingState(step=2, model={"a": torch.zeros(2**20)}, ema={"a": torch.zeros(2**20)}, optimizer={})
try:
    save_checkpoint(run_dir, large, FACTS, keep=1)
except DiskFull as full:
    assert restore_checkpoint(run_dir, BOUND).step == 1
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000001"]
    print(full)
"""


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    done = run_on_small_disk(tmp_path / "small", "5m", FULL, tmp_path)
    assert "no space left on the disk" in done.stdout, done.stderr


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saving")
    training_input(folder)
    return folder


def files_of(run_dir: Path, step: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_dir / "checkpoints" / f"step-{step:08d}").iterdir()}


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """What a thread that writes a checkpoint waits for."""
    opened, save = threading.Event(), save_checkpoint

    def save_later(*arguments: Any) -> Path:
        assert opened.wait(30)
        return save(*arguments)

    monkeypatch.setattr(checkpoints, "save_checkpoint", save_later)
    return opened


def change(learner: checkpoints.Learner) -> None:
    with torch.no_grad():
        for tensors in (learner.network.state_dict(), learner.ema.state_dict()):
            for tensor in tensors.values():
                tensor.add_(1)


def test_a_thread_writes_the_bytes_of_the_step_at_which_it_was_asked(root, gate, tmp_path):
    config, data, learner = tiny_lesson(root, tmp_path / "run")
    network, ema = learner.network.state_dict(), learner.ema.state_dict()
    now = checkpoints.TrainingState(
        step=1,
        model={name: tensor.clone() for name, tensor in network.items()},
        ema={name: tensor.clone() for name, tensor in ema.items()},
        optimizer={name: tensor.clone() for name, tensor in checkpoints._pack(learner).items()},
    )
    facts = Facts(bound=bound_settings(config, data, {}), network=learner.settings, recordings=data.recordings())
    save_checkpoint(tmp_path / "at-once", now, facts, keep=1)
    with Saver(config, data, learner) as saver:
        saver.save(1)
        change(learner)  # training goes on
        assert not (config.run_dir / "checkpoints" / "step-00000001").exists()
        gate.set()
    assert files_of(config.run_dir, 1) == files_of(tmp_path / "at-once", 1)


def test_a_checkpoint_waits_for_the_one_before_it_and_the_copy_is_made_in_the_same_place(root, tmp_path, monkeypatch):
    config, data, learner = tiny_lesson(root, tmp_path / "run")
    at_work, places, save = threading.Semaphore(1), set(), save_checkpoint

    def save_alone(run_dir: Path, saved: checkpoints.TrainingState, *arguments: Any) -> Path:
        assert at_work.acquire(blocking=False)
        places.add(tuple(tensor.data_ptr() for tensor in saved.model.values()))
        threading.Event().wait(0.05)
        folder = save(run_dir, saved, *arguments)
        at_work.release()
        return folder

    monkeypatch.setattr(checkpoints, "save_checkpoint", save_alone)
    values = {}
    with Saver(config, data, learner) as saver:
        for step in (1, 2, 3):
            change(learner)
            values[step] = learner.ema.state_dict()["weight"].clone()
            saver.save(step)
    assert len(places) == 1
    for step in (2, 3):  # two are kept
        assert torch.equal(load_averaged(config.run_dir, step).weights["weight"], values[step])


def test_only_the_first_of_several_processes_writes(root, tmp_path):
    config, data, learner = tiny_lesson(root, tmp_path / "run")
    with Saver(config, data, learner, writes=False) as saver:
        saver.save(1)
        saver.raise_failure()
    assert not config.run_dir.exists()


def test_the_recordings_are_counted_at_the_first_checkpoint_only(root, tmp_path, monkeypatch):
    config, data, learner = tiny_lesson(root, tmp_path / "run")
    read, tables = shards.read_columns, []
    monkeypatch.setattr(shards, "read_columns", lambda *arguments: tables.append(1) or read(*arguments))
    with Saver(config, data, learner) as saver:
        for step in (1, 2, 3):
            saver.save(step)
    assert len(tables) == len(data.shards)
    assert files_of(config.run_dir, 2)["recordings.txt"] == files_of(config.run_dir, 3)["recordings.txt"] != b""


LATER: dict[str, Callable[[Saver], None]] = {
    "the next step": lambda saver: saver.raise_failure(),
    "the next checkpoint": lambda saver: saver.save(2),
    "the end": lambda saver: saver.__exit__(None, None, None),
}


@pytest.mark.parametrize("when", LATER)
def test_what_keeps_a_checkpoint_from_being_written_is_raised(root, tmp_path, when):
    config, data, learner = tiny_lesson(root, tmp_path / "run")
    config.run_dir.mkdir()
    (config.run_dir / "checkpoints").write_text("in the way")
    saver = Saver(config, data, learner)
    saver.save(1)
    while saver._writing is not None and not saver._writing.done():
        threading.Event().wait(0.01)
    with pytest.raises(InputError, match="cannot be written"):
        LATER[when](saver)
    saver.__exit__(None, None, None)  # it is said once


def test_an_error_of_training_is_not_hidden_by_one_of_saving(root, tmp_path, caplog):
    config, data, learner = tiny_lesson(root, tmp_path / "run")
    config.run_dir.mkdir()
    (config.run_dir / "checkpoints").write_text("in the way")
    saver = Saver(config, data, learner)
    saver.save(1)
    saver.__exit__(WorkError, WorkError("the loss is not finite"), None)
    assert "the last checkpoint was not written" in caplog.text


KILLED_WRITING = """
import sys
from itertools import count
from pathlib import Path
from tests.processes import fork
from tests.train.runs import tiny_lesson
from train.checkpoints import Saver, bound_settings, restore_checkpoint
root, steps = Path(sys.argv[1]), []
for at in count(1):
    config, data, learner = tiny_lesson(root, Path(sys.argv[2]) / str(at))
    def save(step):
        with Saver(config, data, learner) as saver:
            saver.save(step)
    assert fork(lambda: save(1)) == 0
    ended = fork(lambda: save(2), kill_at=at)
    steps.append(restore_checkpoint(config.run_dir, bound_settings(config, data, {})).step)
    if ended == 0:
        break
    assert ended == -9, ended
print(steps)
"""


def test_killed_while_the_thread_writes_a_whole_checkpoint_is_left(root, tmp_path):
    steps = json.loads(run_python(KILLED_WRITING, root, tmp_path).stdout)
    assert len(steps) > 6
    assert sorted(set(steps)) == [1, 2]
    assert steps == sorted(steps)


FULL_LATER = """
import sys
from pathlib import Path
import torch
from sonify.errors import DiskFull
from tests.train.runs import tiny_lesson
from train.checkpoints import Saver, bound_settings, restore_checkpoint
config, data, learner = tiny_lesson(Path(sys.argv[1]), Path(sys.argv[2]) / "small")
with Saver(config, data, learner) as saver:
    saver.save(1)
config, data, large = tiny_lesson(Path(sys.argv[1]), Path(sys.argv[2]) / "small", width=1000)
try:
    with Saver(config, data, large) as saver:
        saver.save(2)
except DiskFull as full:
    assert [path.name for path in (config.run_dir / "checkpoints").iterdir()] == ["step-00000001"]
    print(full)
"""


def test_a_disk_that_is_full_for_the_thread_is_one_line_too(root, tmp_path):
    done = run_on_small_disk(tmp_path / "small", "5m", FULL_LATER, root, tmp_path)
    assert "no space left on the disk" in done.stdout, done.stderr
