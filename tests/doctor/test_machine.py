import json
import os
from pathlib import Path

import pytest
from upath import UPath

from sonify.doctor import machine
from sonify.doctor.findings import Finding, Outcome
from sonify.doctor.machine import (
    Need,
    examine_disks,
    examine_fit,
    examine_run_dir,
    examine_shared_memory,
    judge_disks,
    loader_bytes,
)
from sonify.running import run
from sonify.stores import to_run_dir
from tests.builders import small_config, small_input, vlm_at
from tests.processes import run_on_small_disk
from tests.servers import running_store


@pytest.fixture
def config(tmp_path):
    small_input(tmp_path, photos=12)
    return small_config(tmp_path)


# --- where a run writes


def test_a_folder_that_will_be_made_is_probed_in_the_nearest_one_and_left_as_it_was(tmp_path):
    (tmp_path / "here").mkdir()
    finding = examine_run_dir(tmp_path / "here" / "deep" / "run")
    assert finding.outcome is Outcome.OK, finding
    assert f"will be made in {tmp_path}/here" in finding.found
    assert "is there and can be written" in examine_run_dir(tmp_path / "here").found
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_a_place_where_nothing_can_be_written_is_a_fault(tmp_path, place):
    (tmp_path / "file").write_text("no folder")
    finding = examine_run_dir(tmp_path / place)
    assert finding.outcome is Outcome.FAULT
    assert "fsGroup" in finding.todo
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_disk_without_room_is_a_fault_of_the_run_directory(tmp_path):
    code = """
import sys
from pathlib import Path
from sonify.doctor.machine import examine_run_dir
folder = Path(sys.argv[1])
with open(folder / "full", "wb") as file:
    try:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    except OSError:
        pass
finding = examine_run_dir(folder / "run")
print(finding.outcome, finding.found, sorted(path.name for path in folder.iterdir()))
"""
    done = run_on_small_disk(tmp_path / "small", "1m", code, tmp_path / "small")
    assert done.stdout.startswith("fault"), done
    assert "no space left" in done.stdout.lower()
    assert done.stdout.rstrip().endswith("['full']")


@pytest.fixture
def store(monkeypatch):
    with running_store(monkeypatch) as started:
        started.put("bucket", {})
        yield started


def objects(store) -> list[str]:
    root = UPath("s3://bucket")
    root.fs.invalidate_cache()
    return sorted(root.fs.find("bucket"))


def test_a_store_that_refuses_the_second_creation_is_ok_and_left_as_it_was(store):
    finding = examine_run_dir(to_run_dir("s3://bucket/runs/one"))
    assert finding.outcome is Outcome.OK, finding
    assert finding.facts == {"created": True, "created_again": False, "kept": True, "replaced": True}
    assert store.objects_written >= 3
    assert objects(store) == []


def test_a_store_that_takes_no_notice_of_the_condition_is_a_fault(store):
    store.before_write = lambda environ: environ.pop("HTTP_IF_NONE_MATCH", None) and False
    finding = examine_run_dir(to_run_dir("s3://bucket/run"))
    assert finding.outcome is Outcome.FAULT
    assert "created an object over one that was there" in finding.found
    assert objects(store) == []


def test_a_store_that_keeps_nothing_of_a_second_write_is_a_fault(store):
    def swallow(environ):
        if "HTTP_IF_NONE_MATCH" not in environ:
            for name in ("PATH_INFO", "REQUEST_URI", "RAW_URI"):
                environ[name] += "-elsewhere"

    store.before_write = swallow
    finding = examine_run_dir(to_run_dir("s3://bucket/run"))
    assert finding.outcome is Outcome.FAULT
    assert "does not give what was written" in finding.found


@pytest.mark.parametrize("breakage", ["no bucket", "refused writes", "away"])
def test_a_store_that_cannot_be_written_is_a_fault(store, breakage):
    if breakage == "refused writes":
        store.before_write = lambda _environ: True
    elif breakage == "away":
        store.stop()
    finding = examine_run_dir(to_run_dir("s3://nobodys/run" if breakage == "no bucket" else "s3://bucket/run"))
    assert finding.outcome is Outcome.FAULT
    assert "credentials" in finding.todo


# --- disks


def test_disks_are_compared_with_the_estimate(config):
    estimate, disk = examine_disks(config)
    assert (estimate.about, estimate.outcome) == ("estimate", Outcome.OK)
    assert (estimate.facts["images"], estimate.facts["recordings"]) == (12, 16)
    assert disk.about.startswith(f"disk of run_dir {config.run_dir}")
    assert disk.facts["needed_bytes"] == estimate.facts["bytes_to_write"] > 1_000_000
    assert not Path(config.run_dir).exists()
    run(config)
    assert next(examine_disks(config)).facts["bytes_to_write"] == 0


def test_what_is_missing_leaves_the_estimate_untried_and_the_disks_looked_at(tmp_path, config):
    (tmp_path / "photos").rename(tmp_path / "moved")
    estimate, disk = examine_disks(config)
    assert estimate.outcome is Outcome.NOT_TRIED
    assert "images.path is not there" in estimate.found
    assert disk.about.startswith("disk of run_dir")


def test_an_estimate_that_cannot_be_made_is_a_fault(tmp_path, config):
    for path in (tmp_path / "sounds").iterdir():
        if path.suffix != ".csv":
            path.write_bytes(b"no sound")
    estimate, _disk = examine_disks(config)
    assert estimate.outcome is Outcome.FAULT
    assert "none of the recordings looked at can be read" in estimate.found


def test_needs_on_one_disk_are_added_up(tmp_path):
    free = judge_one(tmp_path, 0).facts["free_bytes"]
    assert judge_one(tmp_path, 0).outcome is Outcome.OK
    assert judge_one(tmp_path, free - (1 << 29)).outcome is Outcome.NOTE
    assert judge_one(tmp_path, 2 * free).outcome is Outcome.FAULT
    half = [Need(name=name, folder=tmp_path / name, needed_bytes=free * 2 // 3) for name in ("run_dir", "TMPDIR")]
    (both,) = judge_disks(half)
    assert (both.outcome, both.about) == (
        Outcome.FAULT,
        f"disk of run_dir {tmp_path}/run_dir, TMPDIR {tmp_path}/TMPDIR",
    )
    assert len(list(judge_disks([half[0], Need(name="shm", folder=Path("/dev/shm"), needed_bytes=0)]))) == 2


def judge_one(folder: Path, needed: int) -> Finding:
    (finding,) = judge_disks([Need(name="run_dir", folder=folder, needed_bytes=needed)])
    return finding


def test_what_is_fetched_takes_room_where_the_hub_keeps_it(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    row = {"about": "clap", "outcome": Outcome.NOTE, "found": "not here"}
    assert not list(examine_fit(config, [Finding(**row, facts={"model": "a/b", "here": True, "size_bytes": 5})]))
    (disk,) = examine_fit(config, [Finding(**row, facts={"model": "a/b", "size_bytes": 9, "missing_bytes": 10**18})])
    assert (disk.outcome, disk.about) == (Outcome.FAULT, f"disk of HF_HOME {tmp_path}/hf/hub")


def test_what_a_worker_takes_is_compared_with_the_gpus_that_were_found(config):
    search = config.retrieval.search.model_copy(update={"device": "cuda", "memory_gib": 30.0})
    config = config.model_copy(update={"retrieval": config.retrieval.model_copy(update={"search": search})})
    gpus = {"found": [{"name": "NVIDIA A10G", "memory_bytes": 24 * 10**9, "free_bytes": 0}]}
    seen = Finding(about="gpu", outcome=Outcome.OK, found="", facts=gpus)
    (memory,) = examine_fit(config, [seen])
    assert (memory.about, memory.outcome) == ("gpu memory, the search", Outcome.FAULT)
    assert memory.facts == {"needed_bytes": 30 << 30, "share_bytes": 24 * 10**9}
    assert not list(examine_fit(config, []))


def test_what_goes_to_a_store_is_made_in_a_temporary_folder_first(config, store):
    config = config.model_copy(update={"run_dir": to_run_dir("s3://bucket/run")})
    estimate, disk = examine_disks(config)
    assert disk.about.startswith("disk of TMPDIR")
    assert 0 < disk.facts["needed_bytes"] <= estimate.facts["bytes_to_write"] * (os.cpu_count() or 1)
    alone = config.model_copy(update={"engine": config.engine.model_copy(update={"workers": 3})})
    assert list(examine_disks(alone))[1].facts["needed_bytes"] % 3 == 0
    assert objects(store) == []


# --- limits


def test_a_containers_small_shared_memory_is_told():
    code = """
import json, sys
from dataclasses import asdict
from sonify.doctor.machine import examine_shared_memory
print(json.dumps([asdict(examine_shared_memory(several_gpus=several)) for several in (False, True)]))
"""
    done = run_on_small_disk(Path("/dev/shm"), "64m", code)
    one, several = json.loads(done.stdout)
    assert one["outcome"] == several["outcome"] == "note"
    assert one["facts"]["total_bytes"] == 64 << 20
    assert "--shm-size" in one["todo"]
    assert "several GPUs" in several["todo"]


def test_shared_memory_is_enough_for_ray_sooner_than_for_several_gpus(monkeypatch):
    assert examine_shared_memory(several_gpus=False).outcome is Outcome.OK
    monkeypatch.setattr(machine, "SHARED_BYTES", 10**18)
    assert examine_shared_memory(several_gpus=False).outcome is Outcome.OK
    assert examine_shared_memory(several_gpus=True).outcome is Outcome.NOTE


def test_a_trainings_batches_under_way_are_those_of_all_its_loader_processes():
    """Two of each: the latents, noise of their shape, and the condition, in 32 bits."""
    needed = loader_bytes(workers=3, images=5, latent_shape=(4, 8, 16), condition_shape=(49, 7), processes=11)
    assert needed == 2 * 3 * 11 * 5 * (2 * 4 * 8 * 16 + 49 * 7) * 4


# --- the whole


def test_a_whole_machine_is_examined_without_writing_into_the_run(tmp_path, monkeypatch):
    small_input(tmp_path, photos=2)
    config = small_config(tmp_path, concepts={"extractors": [vlm_at("http://127.0.0.1:1/v1")]})
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    findings = {finding.about.partition(" /")[0]: finding for finding in machine.examine_machine(config)}
    assert [*findings][:3] == ["gpu", "faiss", "run_dir"]
    assert [*findings][-2:] == ["shared memory", "ray"]
    assert findings["ray"].found == "not used: engine.kind is local"
    assert not [each for each in findings.values() if each.outcome is Outcome.FAULT], findings
    assert sorted(path.name for path in tmp_path.iterdir()) == before
