"""A disk that fills up in each stage: a small tmpfs in a user namespace."""

import pytest

from sonify.running import run
from tests.builders import hash_run, small_config, small_input
from tests.processes import run_on_small_disk

SCRIPT = """
import sys
from pathlib import Path
from sonify.engine.record import read_record
from sonify.errors import DiskFull
from sonify.running import run
from tests.builders import hash_run, small_config

root = Path(sys.argv[1])
stages = ["pool", "embeddings", "concepts", "pair", "render"]
stage = sys.argv[2]
before = stages[: stages.index(stage)]
if before:
    run(small_config(root, run="small/run"), stages=before)
filler = root / "small" / "filler"
with filler.open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
    # leave room for what stands before the stage's own files: the record of the run and the listings
    file.truncate(file.tell() - int(sys.argv[3]))
try:
    run(small_config(root, run="small/run"))
except DiskFull as error:
    assert "free some space" in str(error), error
    begun = {key.partition("/")[0] for key in read_record(root / "small/run").stages}
    # the concepts' settings stand from the start, with the listing
    assert begun | {"concepts"} == {"concepts", *stages[: stages.index(stage) + 1]}, begun
else:
    sys.exit("the disk was not full")
filler.unlink()
run(small_config(root, run="small/run"))
for path, sha256 in sorted(hash_run(root / "small/run").items()):
    print(path, sha256)
"""


# Bytes left free, fewer than the stage writes
ROOM = {"pool": 1 << 20, "embeddings": 40 << 10, "concepts": 24 << 10, "pair": 20 << 10, "render": 200 << 10}


@pytest.mark.parametrize("stage", ["pool", "embeddings", "concepts", "pair", "render"])
def test_a_disk_that_fills_up_in_a_stage_is_said_in_one_line_and_the_run_resumes(tmp_path, stage):
    small_input(tmp_path, photos=16, recordings=8)
    done = run_on_small_disk(tmp_path / "small", "12m", SCRIPT, tmp_path, stage, ROOM[stage])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    run(small_config(tmp_path, run="straight"))
    expected = [f"{path} {sha256}" for path, sha256 in sorted(hash_run(tmp_path / "straight").items())]
    assert done.stdout.splitlines() == expected
