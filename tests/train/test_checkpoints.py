import json
import shutil
from pathlib import Path

import pytest
import torch

from sonify.errors import InputError, WorkError
from tests.processes import run_on_small_disk, run_python
from tests.tiny_networks import edit_json
from tests.train.runs import BOUND, FACTS, state
from train.checkpoints import load_averaged, restore_checkpoint, save_checkpoint


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
