import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import soundfile
from upath import UPath

from sonify import layout
from sonify.config import make_config
from sonify.dataset.about import Tally
from sonify.dataset.committed import committed_units, finished_stages
from sonify.dataset.format import CHECKSUMS, RECORD, SHARDS, PublishedClip, PublishedPair, PublishedShard
from sonify.dataset.licences import SA1B_LICENCE, allow_only
from sonify.dataset.write import Publication, PublishOptions, publish
from sonify.engine.record import config_of_run
from sonify.errors import InputError, WorkError
from sonify.io.tables import read_rows
from sonify.media.likeness import fingerprint
from sonify.media.mixing import pcm_sha256
from sonify.pool import ClipSamples
from sonify.rows import Clip, Pair, Render
from sonify.running import run
from tests.builders import hash_run, picture, write_photos, write_sounds
from tests.dataset.folders import pair, record, source, statistics
from tests.servers import running_store

ALLOWED = PublishOptions(with_audio=True, only_licences=("BY", "SA"), image_licence="CC BY 4.0")
LICENCES = {
    "dog": "CC0-1.0",
    "cat": "http://creativecommons.org/licenses/by/4.0/",
    "church bell": "CC BY-SA 4.0",
    "rain": "CC-BY-NC-SA-4.0",
    "train": "YouTube (research only, no redistribution)",
    "frog": "our own",
}
SUBJECTS = tuple(LICENCES)


def write_input(root, photos=24):
    """Each photo shows two subjects: dog and cat, cat and church bell, church bell and rain, ..."""
    shown = [(SUBJECTS[n % 6], SUBJECTS[(n + 1) % 6]) for n in range(photos)]
    write_photos(root / "photos", {f"{n:03d}.jpg": f"a {a} and a {b}" for n, (a, b) in enumerate(shown)})
    texts = {f"{n:03d}.flac": SUBJECTS[n % 6] for n in range(30)}
    write_sounds(root / "sounds", texts)
    with (root / "sounds" / "metadata.csv").open("w", newline="") as file:
        rows = [(name, text, LICENCES[text], f"by {name}") for name, text in texts.items()]
        csv.writer(file).writerows([("file", "text", "licence", "attribution"), *rows])


def config_of(root, name="run"):
    return make_config(
        {
            "run_dir": str(root / name),
            "images": {"kind": "folder", "path": str(root / "photos"), "shard_size": 8, "validation": 0.2},
            "audio": {"sources": [{"kind": "folder", "path": str(root / "sounds")}], "validation": 0.4},
            "retrieval": {"draws": 2, "min_cosine": 0.2},
            "engine": {"kind": "local"},
        }
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("publish")
    write_input(root)
    (root / "photos" / "bad.jpg").write_bytes(b"no picture")
    run(config_of(root))
    return root


@pytest.fixture(scope="module")
def published(root):
    publish(root / "run", root / "whole")
    return root / "whole"


def rows_of(folder, row_type):
    return [row for path in sorted(folder.glob("*.parquet")) for row in read_rows(path, row_type)]


def pairs_of(folder):
    return rows_of(folder / "data", PublishedPair)


def record_of(folder):
    return json.loads((folder / RECORD).read_bytes())


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_rendered_scene_is_published_with_what_rendering_did(root, published):
    renders = {(row.image, row.scene): row for row in rows_of(root / "run" / "renders", Render)}
    pairs = {(row.image, row.scene): row for row in rows_of(root / "run" / "pairs", Pair)}
    found = pairs_of(published)
    assert len(found) == len(renders) > 40
    assert {row.split for row in found} == {"train", "validation"}
    for row in found:
        key = row.image, row.scene
        assert (row.mix_gain_db, row.peak_dbfs, row.mix_sha256) == (
            renders[key].mix_gain_db,
            renders[key].peak_dbfs,
            renders[key].mix_sha256,
        )
        assert all(getattr(row, name) == getattr(pairs[key], name) for name in Pair.__slots__)
    for path in (published / "data").iterdir():
        split, _, unit = path.stem.partition("-")
        order = [(row.image, row.scene) for row in read_rows(path, PublishedPair)]
        assert order == [
            (row.image, row.scene)
            for row in read_rows(root / "run" / layout.pairs(unit), Pair)
            if row.split == split and (row.image, row.scene) in renders
        ]


def test_just_the_clips_that_are_heard_are_published_with_their_fingerprints(root, published):
    pool = {row.clip: row for row in rows_of(root / "run" / "pool" / "clips", Clip)}
    store = ClipSamples(root / "run")
    clips = rows_of(published / "clips", PublishedClip)
    assert {clip.clip for clip in clips} == {s.clip for row in pairs_of(published) for s in row.sources}
    for clip in clips:
        assert all(getattr(clip, name) == getattr(pool[clip.clip], name) for name in Clip.__slots__)
        assert clip.fingerprint == fingerprint(store[clip.clip], 16000)


def test_the_archives_are_named_with_their_hashes(root, published):
    committed = {path: sha256 for path, sha256 in hash_run(root / "run").items() if path.startswith("shards/")}
    shards = list(read_rows(published / SHARDS, PublishedShard))
    assert {shard.path: shard.sha256 for shard in shards} == committed
    for shard in shards:
        with tarfile.open(root / "run" / shard.path) as archive:
            assert shard.samples == sum(name.endswith(".jpg") for name in archive.getnames())
        assert shard.size_bytes == (root / "run" / shard.path).stat().st_size
    assert all(shard.complete for shard in shards)


def test_conditions_are_those_of_all_clips_and_of_the_image(root, tmp_path):
    options = PublishOptions(image_licence="CC BY 4.0")
    publish(root / "run", tmp_path / "out", options)
    by_subjects = {frozenset(s.concept for s in row.sources): row for row in pairs_of(tmp_path / "out")}
    assert len(by_subjects) == 6
    found = {
        " ".join(sorted(names)): (row.conditions, row.contradictions, row.redistributable)
        for names, row in by_subjects.items()
    }
    assert sorted(found.values()) == sorted(
        [
            (("BY",), (), True),
            (("BY", "SA"), (), True),
            (("BY", "NC", "SA", "NC-SA"), ("BY-SA with BY-NC-SA",), False),
            (("BY", "NC", "NC-SA", "research only", "no redistribution"), (), False),
            (("BY", "research only", "no redistribution", "unknown"), (), False),
            (("BY", "unknown"), (), False),
        ]
    )
    assert {row.image_licence for row in by_subjects.values()} == {"CC BY 4.0"}


def test_an_image_of_which_nobody_said_the_licence_allows_nothing(published):
    assert not any(row.redistributable for row in pairs_of(published))
    assert all("unknown" in row.conditions for row in pairs_of(published))


def test_the_statistics_are_counts_of_what_is_there(published):
    pairs, clips = pairs_of(published), rows_of(published / "clips", PublishedClip)
    found = record_of(published)["statistics"]
    assert found["scenes"] == dict(sorted(Counter(row.split for row in pairs).items()))
    assert found["images"] == {split: n // 2 for split, n in found["scenes"].items()}
    heard = Counter(source.concept for row in pairs for source in row.sources)
    assert found["concepts"] == heard
    assert list(found["concepts"].values()) == sorted(heard.values(), reverse=True)
    assert found["distinct_concepts"] == len(heard)
    uses = Counter(source.clip for row in pairs for source in row.sources)
    assert found["clip_uses"] == {str(n): k for n, k in sorted(Counter(uses.values()).items())}
    assert found["clips"] == {"folder": len(clips)}
    assert found["recordings"] == {"folder": len({clip.recording for clip in clips})}
    assert found["licences"] == Counter(clip.licence for clip in clips)
    assert sum(found["conditions"].values()) == sum(found["scenes"].values()) == len(pairs)
    assert found["copies"] == {"exact": sum(uses.values())}
    assert sum(found["target_lufs"].values()) == sum(uses.values())
    assert set(found["target_lufs"]) <= {f"{-32 + n / 2:.1f}" for n in range(8)}
    assert found["sources_in_scene"] == {str(n): k for n, k in Counter(len(row.sources) for row in pairs).items()}
    assert found["contradictions"] == Counter(c for row in pairs for c in row.contradictions)
    assert found["redistributable"] == 0
    assert found["left_out"] == {}
    assert (found["lowered"], found["cut_off"]) == (sum(row.mix_gain_db < 0 for row in pairs), 0)


def test_mixes_that_were_lowered_or_cut_off_are_counted():
    tally = Tally()
    peaks = ((0.0, -0.0003), (0.0, 0.0), (0.0, -0.0004), (-2.5, -0.0003), (-0.1, -1.0))
    tally.add_image([replace(pair(n), mix_gain_db=gain, peak_dbfs=peak) for n, (gain, peak) in enumerate(peaks)])
    found = tally.statistics()
    assert (found.lowered, found.cut_off) == (2, 2)


def test_sounds_are_counted_by_what_stands_for_the_published_clip():
    tally = Tally()
    tally.add_image([pair(1, sources=(source(), replace(source(), copy="repaired"))), pair(2)])
    assert tally.statistics().copies == {"exact": 3, "repaired": 1}


def test_the_same_run_gives_the_same_bytes_and_replaces_what_it_published_before(root, published, tmp_path):
    before = files_of(published)
    publish(root / "run", tmp_path / "a folder" / "out")
    assert files_of(tmp_path / "a folder" / "out") == before
    publish(root / "run", published)
    assert files_of(published) == before
    assert sorted(path.name for path in (tmp_path / "a folder").iterdir()) == ["out"]


def test_the_checksums_are_those_of_every_other_file_and_sha256sum_reads_them(published):
    lines = (published / CHECKSUMS).read_text().splitlines()
    assert {line.partition("  ")[2] for line in lines} == files_of(published).keys() - {CHECKSUMS}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS], cwd=published, check=True)


def test_no_place_of_the_machine_is_in_it(root, published):
    assert not [name for name, data in files_of(published).items() if str(root).encode() in data]
    assert not [name for name, data in files_of(published).items() if str(root.parent).encode() in data]


def test_what_is_excluded_leaves_with_its_whole_image(root, published, tmp_path):
    first, *_, last = pairs_of(published)
    lone_clip = first.sources[0].clip
    clips = {clip.clip: clip for clip in rows_of(published / "clips", PublishedClip)}
    (tmp_path / "list").write_text(f"# a takedown\n{last.image_sha256}\n{clips[lone_clip].sha256}\n")
    record = publish(root / "run", tmp_path / "out", PublishOptions(exclude=tmp_path / "list")).record
    # a recording of that name may be of the other split, too: only the clip itself was named
    lost = {last.image} | {row.image for row in pairs_of(published) if lone_clip in {s.clip for s in row.sources}}
    expected = [row for row in pairs_of(published) if row.image not in lost]
    assert pairs_of(tmp_path / "out") == expected
    assert record.statistics.left_out == {"excluded": 2 * len(lost)}
    before = {row.path: row for row in read_rows(published / SHARDS, PublishedShard)}
    after = {row.path: row for row in read_rows(tmp_path / "out" / SHARDS, PublishedShard)}
    expected_names = {path.stem for path in (tmp_path / "out" / "data").iterdir()}
    assert {f"{row.split}-{row.unit}" for row in after.values()} == expected_names
    for path, row in after.items():
        kept = len(list(read_rows(tmp_path / "out" / "data" / f"{row.split}-{row.unit}.parquet", PublishedPair)))
        assert row == replace(before[path], complete=kept == 2 * row.samples)
    assert {row.complete for row in after.values()} == {True, False}
    assert lone_clip not in {clip.clip for clip in rows_of(tmp_path / "out" / "clips", PublishedClip)}


def test_images_and_recordings_are_excluded_by_their_names_and_names_of_nothing_are_told(
    root, published, tmp_path, caplog
):
    whole, bare = sorted({clip.file for clip in rows_of(published / "clips", PublishedClip)})[:2]
    lines = ("000.jpg", "001", f"folder/{whole}", f"folder/{bare.removesuffix('.flac')}", "folder/none", "nobody.jpg")
    (tmp_path / "list").write_text("\n".join(lines))
    publish(root / "run", tmp_path / "out", PublishOptions(exclude=tmp_path / "list"))
    heard_in = {row.image_uri for row in pairs_of(published) if {s.clip.partition("#")[0] for s in row.sources}
                & {f"folder/{whole}", f"folder/{bare}"}}  # fmt: skip
    expected = {row.image_uri for row in pairs_of(published)} - heard_in - {"000.jpg", "001.jpg"}
    assert {row.image_uri for row in pairs_of(tmp_path / "out")} == expected
    assert {whole, bare}.isdisjoint(clip.file for clip in rows_of(tmp_path / "out" / "clips", PublishedClip))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["--exclude: 2 of 6 lines name nothing in this run, such as 'folder/none'"]


def test_the_summary_says_what_was_left_out_and_why_sound_may_not_be_passed_on(tmp_path):
    def said(**fields):
        of = record(statistics=statistics(scenes={"train": 1500, "validation": 4}, **fields))
        return Publication(folder=tmp_path, record=of, files=3, size_bytes=9).summary()

    assert said(conditions={"BY": 1504}, redistributable=1504, left_out={}) == (
        "1,504 scenes; 1,504 may be passed on as sound"
    )
    assert said(conditions={"BY + unknown": 1200, "unknown": 4, "BY": 300}, left_out={"excluded": 0, "licence": 7}) == (
        "1,504 scenes, 7 left out (licence); 0 may be passed on as sound:"
        " 1,204 have an unknown licence; --image-licence says that of the images"
    )


@pytest.mark.parametrize(("chosen", "images"), [(("by", "sa"), 8), (("CC BY 4.0", "our own"), 8)])
def test_only_scenes_whose_licences_are_chosen_go_out(root, tmp_path, chosen, images):
    options = PublishOptions(only_licences=chosen, image_licence="CC0")
    record = publish(root / "run", tmp_path / "out", options).record
    assert sum(record.statistics.images.values()) == images
    assert record.statistics.left_out == {"licence": 48 - 2 * images}


@pytest.mark.parametrize(
    ("chosen", "allowed"),
    [
        ((), {"CC0"}),
        (("CC0",), {"CC0"}),
        (("BY",), {"CC0", "CC BY"}),
        (("nc",), {"CC0"}),
        (("CC-BY-NC-4.0",), {"CC0", "CC BY", "CC BY-NC"}),
        (("BY", "NC", "NC-SA"), {"CC0", "CC BY", "CC BY-NC", "CC BY-NC-SA"}),
        (("our own",), {"CC0", "our own"}),
        (("unknown",), {"CC0", "our own", "unknown"}),
        (("research only", "No Redistribution"), {"CC0", "SA-1B"}),
    ],
)
def test_a_licence_is_allowed_by_its_conditions_or_by_its_name(chosen, allowed):
    in_use = ("CC0", "CC BY", "CC BY-NC", "CC BY-NC-SA", "our own", "unknown", "SA-1B")
    assert {licence for licence in in_use if allow_only(chosen, in_use)(licence)} == allowed


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (PublishOptions(only_licences=("CC BYE",)), "--only-licences CC BYE: expected any of BY, NC"),
        (PublishOptions(licence="Ask Me"), "expected the hub's name of the metadata's licence"),
        (PublishOptions(only_licences=("BY",)), "no scene is left to publish (48 by licence)"),
    ],
)
def test_a_choice_that_fits_nothing_is_refused(root, tmp_path, options, expected):
    with pytest.raises(InputError) as error:
        publish(root / "run", tmp_path / "out", options)
    assert expected in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_sa1b_has_its_own_licence_unless_another_is_given(root, tmp_path):
    write_input(tmp_path, photos=1)
    archive = tmp_path / "photos" / "sa_000000.tar"
    (tmp_path / "sa_1.jpg").write_bytes(picture(1))
    (tmp_path / "sa_1.txt").write_text("a dog")
    with tarfile.open(archive, "w") as tar:
        for name in ("sa_1.jpg", "sa_1.txt"):
            tar.add(tmp_path / name, name)
    (tmp_path / "captions.csv").write_text("file,caption\nsa_1.jpg,a dog\n")
    images = {"kind": "sa1b", "path": str(tmp_path / "photos"), "validation": 0}
    concepts = {"extractors": [{"kind": "captions", "file": str(tmp_path / "captions.csv")}]}
    audio = {"sources": [{"kind": "folder", "path": str(tmp_path / "sounds")}], "validation": 0}
    raw = {"run_dir": str(tmp_path / "run"), "images": images, "audio": audio, "concepts": concepts}
    run(make_config(raw | {"engine": {"kind": "local"}}))
    publish(tmp_path / "run", tmp_path / "out")
    assert {row.image_licence for row in pairs_of(tmp_path / "out")} == {SA1B_LICENCE}
    assert {row.conditions for row in pairs_of(tmp_path / "out")} == {("research only", "no redistribution")}
    publish(tmp_path / "run", tmp_path / "out", PublishOptions(image_licence="CC0"))
    assert {row.image_licence for row in pairs_of(tmp_path / "out")} == {"CC0"}


def test_a_run_in_a_store_gives_the_same_bytes(root, published, tmp_path, monkeypatch):
    with running_store(monkeypatch) as store:
        files = {name: data for name, data in files_of(root / "run").items() if name != layout.LOCK}
        store.put("bucket", {f"run/{name}": data for name, data in files.items()})
        options = PublishOptions(with_audio=True, only_licences=("BY",), image_licence="CC0")
        publish(UPath("s3://bucket/run", use_listings_cache=False), tmp_path / "there", options)
        publish(root / "run", tmp_path / "here", options)
        run_dir = UPath("s3://bucket/run", use_listings_cache=False)
        unit = next(committed_units(run_dir, finished_stages(config_of_run(run_dir))["pool"]))
        before = store.objects_read
        assert list(unit.table(layout.clips(unit.name)).rows(Clip))
        assert store.objects_read == before + 1  # what is hashed is what is read
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


def copy_of(root, tmp_path):
    shutil.copytree(root / "run", tmp_path / "run")
    return tmp_path / "run"


def test_an_unfinished_run_is_refused(root, tmp_path):
    run_dir = copy_of(root, tmp_path)
    next((run_dir / layout.COMMITS / "render").glob("*/000001.json")).unlink()
    with pytest.raises(InputError, match=r"render: 3 of 4 units are done; `.*sonify run --config F` does the rest"):
        publish(run_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["run", "run/tmp/out", "run/pairs/out", ".", "link/out"])
def test_a_place_in_the_run_or_around_it_is_refused(root, tmp_path, place):
    (tmp_path / "run").symlink_to(root / "run")
    (tmp_path / "link").symlink_to(root / "run")
    with pytest.raises(InputError, match=r"expected a folder beside the run .*, neither in it nor around it"):
        publish(tmp_path / "run", (root if place == "." else tmp_path) / place)


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="not a run"):
        publish(tmp_path / "photos", tmp_path / "out")


@pytest.mark.parametrize(
    "path", ["pairs/000001.parquet", "renders/000002.parquet", "pool/clips/000000.parquet", "pool/audio/000000.npy"]
)
def test_damage_is_found_and_nothing_is_written(root, tmp_path, path):
    run_dir = copy_of(root, tmp_path)
    data = bytearray((run_dir / path).read_bytes())
    for position in range(1000, len(data), 2000):
        data[position] ^= 4
    (run_dir / path).write_bytes(data)
    with pytest.raises(WorkError, match="sonify verify"):
        publish(run_dir, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_folder_of_somebody_is_never_replaced(root, published, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"it holds notes\.txt; choose another place"):
        publish(root / "run", tmp_path / "mine")
    shutil.copytree(published, tmp_path / "out")
    (tmp_path / "out" / "data" / "mine.csv").write_text("years of work")
    with pytest.raises(InputError, match=r"it holds data/mine\.csv"):
        publish(root / "run", tmp_path / "out")
    assert (tmp_path / "out" / "data" / "mine.csv").read_text() == "years of work"
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(InputError, match="choose another place"):
        publish(root / "run", tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        publish(root / "run", tmp_path / "file" / "out")
    (tmp_path / "empty").mkdir()
    publish(root / "run", tmp_path / "empty")


def test_killed_in_the_middle_it_leaves_nothing_and_begins_again(root, published, tmp_path):
    begin = "from pathlib import Path; from sonify.dataset.write import publish; import sys"
    # the moment at which the record is written
    kill = "import os; os.kill(os.getpid(), 9)"
    code = f"{begin}\nfrom sonify.dataset import write as p\n"
    code += f"def record_json(record): {kill}\np.record_json = record_json\npublish(*map(Path, sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, root / "run", tmp_path / "out"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.partial").exists()
    publish(root / "run", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(published)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def sounding(root):
    publish(root / "run", root / "sounding", ALLOWED)
    return root / "sounding"


def test_the_sounds_are_those_of_the_published_scenes_row_for_row(sounding):
    tables = sorted((sounding / "audio").iterdir())
    assert [path.name for path in tables] == sorted(path.name for path in (sounding / "data").iterdir())
    heard = 0
    for path in tables:
        scenes = list(read_rows(sounding / "data" / path.name, PublishedPair))
        rows = pq.read_table(path).to_pylist()
        assert [(row["image"], row["scene"]) for row in rows] == [(scene.image, scene.scene) for scene in scenes]
        for row, scene in zip(rows, scenes, strict=True):
            samples, sample_rate_hz = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
            assert sample_rate_hz == 16000
            assert pcm_sha256(samples) == scene.mix_sha256
            heard += 1
    assert heard == 16  # dog and cat, cat and church bell: 8 of 24 images in 2 scenes


def test_datasets_takes_the_column_for_sound_and_decodes_it(sounding, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = {split: str(sounding / "audio" / f"{split}-*.parquet") for split in ("train", "validation")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    assert loaded["train"].features["audio"] == datasets.Audio(sampling_rate=16000)
    decoded = loaded["train"][0]["audio"].get_all_samples()
    assert decoded.sample_rate == 16000
    assert decoded.data.shape == (1, 80000)


def test_sounds_are_the_same_bytes_twice(root, sounding, tmp_path):
    publish(root / "run", tmp_path / "out", ALLOWED)
    assert (tmp_path / "out" / CHECKSUMS).read_bytes() == (sounding / CHECKSUMS).read_bytes()


def test_sounds_that_may_not_be_passed_on_are_refused_with_what_forbids_it_the_most_frequent_first(root, tmp_path):
    with pytest.raises(InputError) as error:
        publish(root / "run", tmp_path / "out", PublishOptions(with_audio=True, image_licence="CC0"))
    assert (
        "--with-audio: not all of the 48 scenes may be passed on: no redistribution (16), research only (16),"
        " unknown (16), BY-SA with BY-NC-SA (8)" in str(error.value)
    )
    assert "--only-licences" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_images_without_a_licence_forbid_it_too(root, tmp_path):
    options = PublishOptions(with_audio=True, only_licences=("BY", "unknown"))
    with pytest.raises(InputError, match=r"unknown \(16\);.*the images' licence is 'unknown', which --image-licence"):
        publish(root / "run", tmp_path / "out", options)


def test_a_damaged_archive_is_found(root, tmp_path):
    shutil.copytree(root / "run", tmp_path / "run")
    path = next((tmp_path / "run" / "shards" / "train").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(WorkError, match="not what was committed"):
        publish(tmp_path / "run", tmp_path / "out", ALLOWED)
    assert not (tmp_path / "out").exists()


FULL = """
import sys
from pathlib import Path
from sonify.errors import DiskFull
from sonify.dataset.write import PublishOptions, publish

options = PublishOptions(with_audio=True, only_licences=("BY", "SA"), image_licence="CC BY 4.0")
try:
    publish(Path(sys.argv[1]), Path(sys.argv[2]), options)
except DiskFull as error:
    print(error)
print(*Path(sys.argv[2]).parent.iterdir())
"""


@pytest.mark.parametrize("size", ["24k", "200k", "700k"])  # in data/, in audio/, and in what follows
def test_a_disk_that_fills_up_is_said_in_one_line_and_nothing_half_is_left(root, tmp_path, size):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no user namespaces on this machine: a small disk cannot be made")
    command = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    arguments = ["unshare", "-rm", "sh", "-c", command, tmp_path, sys.executable, "-c", FULL, root / "run"]
    done = subprocess.run([*arguments, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "free some space" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1:] == [""]
    assert "Traceback" not in done.stderr
