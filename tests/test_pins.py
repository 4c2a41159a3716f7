"""What must not change by accident: the settings digests of the shipped configurations, and a small run's bytes.

A run made by an earlier version goes on only while its stages' digests stay. Where a change means to move one, the
row of `pins/settings.csv` gets the new digest, and beside it the key that moved it and the reason.
`pins/run.json` has the bytes under today's defaults, `pins/before.json` those of the run of before, whose keys `BEFORE`
names: its pairs lacked columns that came since, which a run under those keys writes with what says nothing.
`pins/run-before-rules.tar.xz` is a run of the version in which the rules of `RULES` had no keys.
The input is made here and lies in memory, under the same names on every machine: a stage's settings hold them.
"""

import csv
import io
import json
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image
from upath import UPath

from sonify.config import make_config
from sonify.engine.record import require_record
from sonify.errors import InputError
from sonify.running import run
from sonify.stages.table import stages_of

PINS = Path(__file__).parent / "pins"
CONFIGS = Path(__file__).parents[1] / "configs" / "sonify"
INPUT = "memory://pinned"
SUBJECTS = ("dog", "cat", "rain", "train")
FOLDERS = ("pool", "pairs", "renders", "shards")
RULES = (
    ("audio.min_tail_sec", 0, "pool"),
    ("audio.remove_dc", False, "pool"),
    ("audio.downmix", "mean", "pool"),
    ("concepts.discard_caption", "captions", "pair"),
    ("retrieval.hears", "clip", "pair"),
    ("retrieval.top_k_share", None, "pair"),
    ("retrieval.clips_per_recording", None, "pair"),
    ("retrieval.repeat_recordings", True, "pair"),
    ("retrieval.min_cosine", -1, "pair"),
    ("mix.max_gain_db", None, "pair"),
    ("mix.peak_dbfs", None, "render"),
)
BEFORE = {"encoder": {"kind": "text", "matching": "words"}, "limit": None, "merge_names": False}


def test_the_settings_of_the_shipped_configurations_have_the_pinned_digests():
    with (PINS / "settings.csv").open(newline="") as file:
        pinned = {(row["config"], row["stage"]): row["digest"] for row in csv.DictReader(file)}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} <= {config for config, _ in pinned}
    assert settings_digests() == pinned


@pytest.mark.parametrize("said", [{}, {"audio": {"min_tail_sec": 1.0}, "retrieval": {"top_k_share": 0.02}}])
def test_a_run_of_rules_without_keys_resumes_and_nothing_is_made_again(tmp_path, said):
    unpack("run-before-rules", tmp_path)
    before = made_at(tmp_path / "run")
    done = run(small_run(tmp_path / "run", added=said))
    assert done["render"].rows_out == 8
    assert made_at(tmp_path / "run") == before
    assert hashes(tmp_path / "run") == pinned("run")


def test_a_run_of_rules_without_keys_draws_for_new_images_by_the_rules_that_it_had(tmp_path):
    unpack("run-before-rules", tmp_path)
    assert run(small_run(tmp_path / "run", images=9))["pair"].rows_out == 9
    assert hashes(tmp_path / "run").items() >= pinned("run").items()
    (split,) = require_record(tmp_path / "run").acted["splits"]
    assert (split["clips"], split["top_k"], split["clips_per_recording"]) == (16, 8, 3)


@pytest.mark.parametrize(("key", "value", "stage"), RULES)
def test_a_run_of_rules_without_keys_is_not_gone_on_with_by_other_rules(tmp_path, key, value, stage):
    unpack("run-before-rules", tmp_path)
    section, name = key.split(".")
    with pytest.raises(InputError, match=rf"{stage} was made under another configuration: {key} was ") as raised:
        run(small_run(tmp_path / "run", added={section: {name: value}}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("encoder", ["text", "clap"])
def test_what_is_heard_makes_other_embeddings_only_where_something_hears(encoder):
    def digest(**retrieval):
        config = small_run("/nowhere", retrieval={"encoder": {"kind": encoder}, **retrieval})
        return next(stage.digest for stage in stages_of(config) if stage.name == "embeddings")

    assert digest(hears="recording") == digest()
    assert (digest(hears="clip") != digest()) == (encoder == "clap")


def test_a_small_run_has_the_pinned_bytes(tmp_path):
    run(small_run(tmp_path / "run"))
    assert hashes(tmp_path / "run") == pinned("run")


def test_the_keys_of_before_give_the_bytes_of_before(tmp_path):
    run(small_run(tmp_path / "run", retrieval=BEFORE))
    assert but_pairs(hashes(tmp_path / "run")) == but_pairs(pinned("before"))


def test_a_run_of_before_says_which_keys_it_goes_on_with(tmp_path):
    unpack("run", tmp_path)
    wanted = (
        r"embeddings was made under another configuration: .*; set retrieval\.encoder\.matching=words"
        r" retrieval\.limit=null retrieval\.merge_names=false to go on as before, "
    )
    with pytest.raises(InputError, match=wanted) as raised:
        run(small_run(tmp_path / "run"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("place", [INPUT, "memory://pinned/elsewhere"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_of_an_earlier_version_resumes(tmp_path, place, recorded):
    """`pins/run.tar.xz` was made by the version before the settings were pinned; the input grew, and moved, since."""
    unpack("run", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "commits").rglob("*.json")}
    if not recorded:
        (tmp_path / "run" / "run.json").unlink()  # as `verify --repair` does with a damaged one
    if not recorded and place != INPUT:
        with pytest.raises(InputError, match="its commits stand under"):  # nothing says where its input lay
            run(small_run(tmp_path / "run", images=9, place=place, retrieval=BEFORE))
        return
    done = run(small_run(tmp_path / "run", images=9, place=place, retrieval=BEFORE))
    assert done["render"].rows_out == 9
    assert before.keys() < set((tmp_path / "run" / "commits").rglob("*.json"))
    assert all(path.stat().st_mtime_ns == made for path, made in before.items())
    assert hashes(tmp_path / "run").items() >= pinned("before").items()
    run(small_run(tmp_path / "run", images=9, place=place, retrieval=BEFORE), redo="pool")
    stages = require_record(tmp_path / "run").stages
    assert "path" not in str(stages["pool"].settings)  # what is made again is of today's settings
    assert stages["concepts/captions"].settings["images.path"] == f"{INPUT}/photos"
    assert hashes(tmp_path / "run").items() >= but_pairs(pinned("before")).items()


def unpack(name, folder):
    with tarfile.open(PINS / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")


def made_at(run_dir):
    """When each file was written that a stage writes."""
    files = {path for path in run_dir.rglob("*") if path.is_file()} - {run_dir / "lock", run_dir / "run.json"}
    return {path: path.stat().st_mtime_ns for path in files}


def pinned(name):
    return json.loads((PINS / f"{name}.json").read_text())


def but_pairs(files):
    return {name: digest for name, digest in files.items() if not name.startswith("pairs/")}


def settings_digests():
    """The digest of each stage of each shipped configuration, over places that are the same everywhere."""
    return {
        (path.stem, stage.key): stage.digest
        for path in sorted(CONFIGS.glob("*.yaml"))
        for stage in stages_of(make_config(on_no_machine(path), check_paths=False))
    }


def on_no_machine(path):
    raw = yaml.safe_load(path.read_text())
    raw["run_dir"] = "/nowhere"  # what a run has is told by its record
    raw["images"]["path"] = "/images"
    raw["audio"]["sources"] = [source | {"path": f"/{source['kind']}"} for source in raw["audio"]["sources"]]
    if "features" in raw:  # a folder of that name would be made absolute
        raw["features"] |= {"vae": "a/vae", "ast": "an/ast"}
    return raw


def small_run(run_dir, images=8, place=INPUT, retrieval=None, added=None):
    """A run over images and recordings that are made here; `added` are keys of its sections."""
    place = UPath(place)
    captions = [("file", "caption")]
    for n in range(images):
        (place / "photos" / f"{n}.jpg").write_bytes(photo(n))
        captions.append((f"{n}.jpg", f"a {SUBJECTS[n % 4]} and a {SUBJECTS[(n + 1) % 4]}"))
    (place / "photos" / "captions.csv").write_text("\n".join(",".join(row) for row in captions))
    for n in range(8):
        (place / "sounds" / f"{n}.flac").write_bytes(recording(n))
    texts = [f"{n}.flac,{SUBJECTS[n % 4]},CC0-1.0" for n in range(8)]
    (place / "sounds" / "metadata.csv").write_text("\n".join(["file,text,licence", *texts]))
    raw: dict[str, Any] = {
        "run_dir": str(run_dir),
        "images": {"kind": "folder", "path": f"{place}/photos", "shard_size": 4, "validation": 0},
        "audio": {
            "sources": [{"kind": "folder", "path": f"{place}/sounds"}],
            "clip_seconds": 1.0,
            "sample_rate": 8000,
            "validation": 0,
        },
        "retrieval": retrieval or {},
        "engine": {"kind": "local"},
    }
    return make_config(raw | {name: {**raw.get(name, {}), **keys} for name, keys in (added or {}).items()})


def photo(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((48, 32), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def recording(seed):
    rng = np.random.default_rng(100 + seed)
    steps = rng.integers(-3000, 3000, 2 * 800, dtype=np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.repeat(steps, 10), 8000, format="FLAC")
    return buffer.getvalue()


def hashes(run_dir):
    files = (path for folder in FOLDERS for path in (run_dir / folder).rglob("*") if path.is_file())
    return {path.relative_to(run_dir).as_posix(): sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


@pytest.fixture(autouse=True)
def _empty_memory():
    yield
    if UPath(INPUT).exists():
        UPath(INPUT).fs.rm(UPath(INPUT).path, recursive=True)
