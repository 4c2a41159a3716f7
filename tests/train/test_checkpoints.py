import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sonify.errors import InputError, WorkError
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


def lose(folder: Path) -> None:
    (folder / "ema.safetensors").unlink()


def edit(folder: Path) -> None:
    record = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(record | {"step": 99}))


@pytest.mark.parametrize(
    ("damage", "named"), [(cut, "bytes, found"), (flip, "sha256"), (lose, "missing"), (edit, "state.json")]
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
    assert (averaged.step, averaged.transformer) == (1, {"num_layers": 2})
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
import os, sys
from pathlib import Path
from tests.train.runs import BOUND, FACTS, state
import train.checkpoints as checkpoints
calls = 0
def dying(function):
    def call(*arguments, **named):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
        return function(*arguments, **named)
    return call
for name in ("_sync", "sync_folder"):
    setattr(checkpoints, name, dying(getattr(checkpoints, name)))
checkpoints.os.replace = dying(os.replace)
checkpoints.save_checkpoint(Path(sys.argv[1]), state(2), FACTS, keep=1)
"""


@pytest.mark.parametrize("at", range(1, 9))
def test_killed_anywhere_while_saving_a_whole_checkpoint_is_left(tmp_path, at):
    save_checkpoint(tmp_path, state(1), FACTS, keep=1)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(at)], cwd=os.getcwd(), check=False)
    assert killed.returncode == -9
    restored = restore_checkpoint(tmp_path, BOUND)
    assert restored is not None
    assert restored.step == (2 if at == 8 else 1)  # the eighth is the sync behind the rename
    assert not any(name.endswith(".partial") for name in folders(tmp_path))


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
    (tmp_path / "small").mkdir()
    command = f'mount -t tmpfs -o size=5m tmpfs "{tmp_path}/small" && exec "$0" -c "$1" "{tmp_path}"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command, sys.executable, FULL],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no small file system may be mounted here")
    assert "no space left on the disk" in done.stdout, done.stderr
