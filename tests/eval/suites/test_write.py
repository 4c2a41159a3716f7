"""Suites on the disk: whole or not at all, the same bytes however they are made, and every entry accounted for."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from eval.prepare import prepare, tell
from eval.suites.config import KINDS, load_suite_config, without_places
from eval.suites.entries import Entry, Selection, select
from eval.suites.suite import list_bytes, read_suite
from eval.suites.write import write_suite
from sonify.errors import InputError
from sonify.io.write import sha256_of
from tests.builders import SUBJECTS, picture, refused, tone, write_csv, write_sound
from tests.eval.suites_built import folder_config, make_entries, make_suite
from train.generate import read_list


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(folder: Path, entries: list[Entry], per_class: int | None = None, workers: int = 1, **keys):
    config = folder_config(folder / "media", **keys)
    return write_suite(config, select(entries, "small", per_class=per_class), folder / "suite", workers)


def ids(things) -> list[str]:
    return [thing.id for thing in things]


def test_a_suite_is_read_as_it_was_written(tmp_path):
    suite = make_suite(tmp_path, sounds=6, others=2)
    assert read_suite(tmp_path / "suite") == suite
    assert ids(suite.items) == [f"s{n:03d}" for n in range(6)]
    assert suite.pool == tuple(ids(suite.items))
    assert len(suite.others) == 2
    first = suite.items[0]
    assert (first.recording, first.labels, first.ids) == (
        "r000", ("dog",), ("youtube:recordin000", f"sha256:{sha256_of(tmp_path / 'media/s000.flac')}")
    )  # fmt: skip
    assert (first.seconds, first.sample_rate_hz, first.window_start_sec) == (6.0, 16_000, 0.5)
    for stored in (first.sound, first.window, *first.references, *suite.others):
        assert stored is not None
        assert sha256_of(suite.folder / stored.file) == stored.sha256


def test_the_lists_name_what_models_hear(tmp_path):
    suite = make_suite(tmp_path, sounds=3)
    for name, part, seconds in (("sounds.csv", "windows", "5.0"), ("sounds_whole.csv", "sounds", "6.0")):
        rows = rows_of(suite.folder / name)
        assert [row["id"] for row in rows] == ids(suite.items)
        for row in rows:
            assert row["sound"] == str(tmp_path / "suite" / part / f"{row['id']}.flac")
            assert (row["seconds"], row["sample_rate_hz"]) == (seconds, "16000")
            assert sha256_of(Path(row["sound"])) == row["sha256"]
        assert read_list(suite.folder / name) == [Path(row["sound"]) for row in rows]
    assert rows_of(suite.folder / "pool.csv") == [{"id": i.id, "sha256": i.sound.sha256} for i in suite.items]


def test_a_suite_that_was_moved_gives_lists_of_where_it_lies(tmp_path):
    suite = make_suite(tmp_path, sounds=2)
    shutil.move(tmp_path / "suite", tmp_path / "there")
    moved = read_suite(tmp_path / "there")
    assert moved.digest == suite.digest
    for whole, name in ((False, "sounds.csv"), (True, "sounds_whole.csv")):
        here = (tmp_path / "there" / name).read_bytes()
        assert list_bytes(moved, whole) == here.replace(str(tmp_path / "suite").encode(), str(moved.folder).encode())
        assert all(Path(line.split(",")[1]).is_file() for line in list_bytes(moved, whole).decode().splitlines()[1:])


@pytest.mark.parametrize("windows", ["frame", "all"])
def test_the_length_in_the_list_is_that_of_the_file(tmp_path, windows):
    suite = make_suite(tmp_path, sounds=2, seconds=3.3, heard={"windows": windows, "seconds": 2.25})
    import soundfile  # noqa: PLC0415 - for this one

    for row in rows_of(suite.folder / "sounds.csv"):
        assert soundfile.info(row["sound"]).duration == pytest.approx(float(row["seconds"]), abs=1e-6)
        assert float(row["seconds"]) == pytest.approx(3.3 if windows == "all" else 2.25)


# --- link rot


def lose(entries: list[Entry], lost: range) -> None:
    for n in lost:
        entries[n].audio.unlink()


def test_what_is_lost_is_counted_and_changes_nothing_else(tmp_path):
    entries = make_entries(tmp_path / "media", 40, seconds=1.0)
    whole = write(tmp_path, entries, per_class=5, others=2)
    assert (whole.wanted, len(whole.items), whole.missing) == (20, 20, {})
    wanted = ids(whole.items)
    by_id = {entry.id: entry for entry in entries}
    lost = [wanted[3], wanted[11]]
    for name in lost:
        by_id[name].audio.unlink()
    write_sound(by_id[wanted[15]].audio, np.zeros(16_000))
    by_id[wanted[16]].image.write_bytes(picture(0, (300, 200))[:3000])  # pyright: ignore[reportOptionalMemberAccess]
    rotten = write(tmp_path, entries, per_class=5, others=2)
    assert ids(rotten.items) == [name for name in wanted if name not in (*lost, wanted[15], wanted[16])]
    assert (rotten.wanted, rotten.replaced) == (20, 0)
    assert rotten.missing == {"missing": 2, "silent": 1, "unreadable": 1}
    assert rotten.items == tuple(item for item in whole.items if item.id in ids(rotten.items))
    assert rotten.digest != whole.digest
    assert rotten.others == whole.others
    assert [(row["id"], row["reason"]) for row in rows_of(rotten.folder / "missing.csv")] == [
        (lost[0], "missing"), (lost[1], "missing"), (wanted[15], "silent"), (wanted[16], "unreadable"),
    ]  # fmt: skip
    told = tell(rotten).splitlines()
    assert told[0].endswith("16 items of 20 wanted")
    assert told[1] == "4 of 20 missing: 2 missing, 1 silent, 1 unreadable (see missing.csv)"


def test_what_is_lost_is_replaced_by_the_next_of_its_class_where_that_is_asked_for(tmp_path):
    entries = make_entries(tmp_path / "media", 40, seconds=1.0)
    selection = select(entries, "small", per_class=5)
    dogs = [entry for entry in selection.wanted if entry.labels == ("dog",)]
    more = [entry for entry in selection.rest if entry.labels == ("dog",)]
    cats = [entry for entry in selection.rest if entry.labels == ("cat",)]
    for entry in (dogs[1], dogs[3], more[0]):
        entry.audio.unlink()
    suite = write(tmp_path, entries, per_class=5, replace_missing=True)
    found = [item.id for item in suite.items if item.labels == ("dog",)]
    # both ask at once, the first finds its one missing, and asks again
    assert found == [dogs[0].id, more[2].id, dogs[2].id, more[1].id, dogs[4].id]
    assert (suite.wanted, len(suite.items), suite.replaced, suite.missing) == (20, 20, 2, {"missing": 2})
    assert [row["id"] for row in rows_of(suite.folder / "missing.csv")] == ids([dogs[1], dogs[3], more[0]])
    assert "2 of these replaced by the next of their class" in tell(suite)
    assert not {item.id for item in suite.items} & set(ids(cats))
    for entry in more[1:]:
        entry.audio.unlink()
    suite = write(tmp_path, entries, per_class=5, replace_missing=True)
    assert (len(suite.items), suite.replaced) == (18, 0)


def test_nothing_found_at_all_names_the_first_path(tmp_path):
    entries = make_entries(tmp_path / "media", 4)
    lose(entries, range(4))
    for keys in ({}, {"replace_missing": True}):
        with refused(r"small: none of 2 entries can be used; the first is s\d+ \(missing: .*flac: no such file\)"):
            write_suite(
                folder_config(tmp_path / "media", **keys),
                Selection(wanted=tuple(entries[:2]), rest=tuple(entries[2:])),
                tmp_path / "suite",
            )
    assert not (tmp_path / "suite").exists()


def test_silent_windows_are_told_and_no_model_is_asked_for_them(tmp_path):
    entries = make_entries(tmp_path / "media", 3)
    write_sound(entries[1].audio, np.concatenate([tone(0, 1.0), np.zeros(16_000 * 9)]))
    suite = write(tmp_path, entries)
    silent = next(item for item in suite.items if item.id == "s001")
    assert (silent.window, silent.window_start_sec) == (None, 2.5)
    assert "s001" not in [row["id"] for row in rows_of(suite.folder / "sounds.csv")]
    assert "s001" in [row["id"] for row in rows_of(suite.folder / "sounds_whole.csv")]
    assert not (suite.folder / "windows/s001.flac").exists()
    assert "1 of 3 windows silent" in tell(suite)
    assert read_suite(suite.folder) == suite


# --- other pictures


def test_others_are_further_pictures_class_by_class_of_other_recordings(tmp_path):
    entries = make_entries(tmp_path / "media", 16, SUBJECTS[:2], per_recording=2)
    wanted, rest = [entries[0], entries[3]], [*entries[1:3], *entries[4:]]  # s001 and s002 are of their recordings
    rest[5] = replace(rest[5], image=rest[3].image)  # two entries of one picture: s007 and s005
    rest[4].image.unlink()  # pyright: ignore[reportOptionalMemberAccess]
    rest.sort(key=lambda entry: entry.labels)  # all of one class first
    selection = Selection(wanted=tuple(wanted), rest=tuple(rest))
    suite = write_suite(folder_config(tmp_path / "media"), selection, tmp_path / "suite")
    names = [Path(other.file).stem for other in suite.others]
    usable = [entry for entry in rest if entry.id not in ("s001", "s002", "s006", "s007")]
    assert len(names) == 2  # as many as items
    assert set(names) <= set(ids(usable))
    assert {entry.labels[0] for entry in usable if entry.id in names} == set(SUBJECTS[:2])
    few = write_suite(folder_config(tmp_path / "media", others=100), selection, tmp_path / "suite")
    assert len(few.others) == len(usable)
    none = write_suite(folder_config(tmp_path / "media", others=0), selection, tmp_path / "suite")
    assert none.others == ()
    assert list((none.folder / "others").iterdir()) == []


def test_others_have_the_items_shares_of_the_classes_and_may_be_of_another_list(tmp_path):
    entries = make_entries(tmp_path / "media", 24, ("cat", "dog"), seconds=1.0)
    cats, dogs = entries[::2], entries[1::2]
    selection = Selection(wanted=tuple(cats[:2] + dogs[:4]), rest=(), others=tuple(cats[2:] + dogs[4:]))
    config = folder_config(tmp_path / "media", replace_missing=True)
    cats[0].audio.unlink()
    suite = write_suite(config, selection, tmp_path / "suite")
    assert (len(suite.items), suite.replaced) == (5, 0)  # another list's entry takes nobody's place
    suite = write_suite(config.model_copy(update={"others": 6}), selection, tmp_path / "suite")
    labels = {each.id: each.label for each in selection.others}
    assert Counter(labels[Path(other.file).stem] for other in suite.others) == {"dog": 4, "cat": 2}


def test_further_references_and_ids_that_end_in_numbers_do_not_meet(tmp_path):
    one, two = make_entries(tmp_path / "media", 2)
    assert one.image is not None
    assert two.image is not None
    both = [replace(one, id="a", more_images=(two.image,)), replace(two, id="a-2")]
    suite = write(tmp_path, both)
    files = [stored.file for item in suite.items for stored in item.references]
    assert sorted(files) == ["images/a+2.png", "images/a-2.png", "images/a.png"]


@pytest.mark.parametrize("bad", ["a/b", "../a", "", ".", "a b", "ä", "a\n", "x" * 201])
def test_an_id_that_is_no_name_for_a_file_is_refused(tmp_path, bad):
    (entry,) = make_entries(tmp_path / "media", 1)
    with refused("expected letters, digits"):
        write(tmp_path, [replace(entry, id=bad)])


# --- the same bytes, whole or not at all


def test_the_same_bytes_again_and_for_any_number_of_workers(tmp_path):
    entries = make_entries(tmp_path / "media", 12)
    lose(entries, range(2, 4))
    seen = []
    for workers in (1, 2, 1):
        suite = write(tmp_path, entries, per_class=2, workers=workers, replace_missing=True)
        seen.append(
            {str(path.relative_to(suite.folder)): sha256_of(path) for path in suite.folder.rglob("*") if path.is_file()}
        )
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) > 20


def prepare_apart(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "eval.prepare", "--config", folder / "c.yaml", "--out", folder / "suite", *words]
    # a group of its own, as a shell gives it, that Ctrl+C is sent to
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=Path.cwd(), start_new_session=True)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def slow_suite(tmp_path) -> Path:
    """A configuration whose suite takes some seconds to prepare."""
    make_entries(tmp_path / "media", 2, seconds=20.0)
    rows = [(f"i{n:03d}", f"media/s00{n % 2}.flac", f"media/s00{n % 2}.jpg") for n in range(20)]
    write_csv(tmp_path / "mine.csv", ("id", "sound", "image"), rows)
    raw = {"kind": "folder", "name": "mine", "path": str(tmp_path / "mine.csv"), "image": {"side": 64}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path


def begun(folder: Path) -> bool:
    return len(list(folder.glob(".suite.partial/windows/*.flac"))) >= 2


@pytest.mark.parametrize("killed", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_kill_leaves_nothing_half_written_and_no_process(slow_suite, killed):
    with prepare_apart(slow_suite, "--workers", "2") as process:
        wait_for(lambda: begun(slow_suite), process)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        process.send_signal(killed)
        assert process.wait(30) == (130 if killed == signal.SIGTERM else -9)
    assert not (slow_suite / "suite").exists()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    assert (slow_suite / ".suite.partial").exists() == (killed == signal.SIGKILL)
    if killed == signal.SIGKILL:
        prepare(load_suite_config(slow_suite / "c.yaml"), slow_suite / "suite")
        assert len(read_suite(slow_suite / "suite").items) == 20
        assert not (slow_suite / ".suite.partial").exists()


def test_ctrl_c_while_workers_start_is_one_line(slow_suite):
    with prepare_apart(slow_suite, "--workers", "2") as process:
        wait_for(lambda: len(psutil.Process(process.pid).children()) >= 2, process)  # who tracks resources, and one
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "eval.prepare: interrupted; the same command goes on from here\n"


def test_a_worker_that_dies_costs_no_item(slow_suite):
    with prepare_apart(slow_suite, "--workers", "2") as process:
        wait_for(lambda: begun(slow_suite), process)
        worker = next(
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        )
        os.kill(worker.pid, signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "20 items of 20 wanted" in out
    assert "missing" not in out
    assert len(read_suite(slow_suite / "suite").items) == 20


def test_what_is_there_and_is_no_suite_stays(tmp_path):
    entries = make_entries(tmp_path / "media", 2)
    (tmp_path / "suite").write_text("mine")
    with refused("suite: expected a folder for the suite, found a file"):
        write(tmp_path, entries)
    assert (tmp_path / "suite").read_text() == "mine"
    (tmp_path / "suite").unlink()
    (tmp_path / "suite").mkdir()
    write(tmp_path, entries)  # an empty folder is nobody's
    (tmp_path / "suite/suite.json").unlink()
    with refused("holds something else than a suite; choose another place"):
        write(tmp_path, entries)
    assert (tmp_path / "suite/items.jsonl").is_file()


@pytest.mark.parametrize("held", [b"{}", b"[]", b"", b"[" * 100_000, b'{"version": 2, "name": "small"}', b"\xff"])
def test_a_folder_with_another_suite_json_stays(tmp_path, held):
    entries = make_entries(tmp_path / "media", 2)
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite/suite.json").write_bytes(held)
    (tmp_path / "suite/thesis.tex").write_text("mine")
    with refused("holds something else than a suite; choose another place"):
        write(tmp_path, entries)
    assert (tmp_path / "suite/thesis.tex").read_text() == "mine"


def test_what_was_put_into_a_suite_is_not_lost(tmp_path):
    suite = make_suite(tmp_path, sounds=2)
    (suite.folder / "rep").mkdir()
    with refused("suite: holds 'rep' beside its suite, which would be lost; move it, or choose another place"):
        make_suite(tmp_path, sounds=2)
    (suite.folder / "a.tex").write_text("mine")
    with refused("holds 'a.tex' and 1 more beside its suite"):
        make_suite(tmp_path, sounds=2)
    assert (suite.folder / "rep").is_dir()
    assert read_suite(suite.folder) == suite


@pytest.mark.parametrize("damage", ["version", "items", "gone"])
def test_a_suite_that_is_old_or_damaged_is_made_again(tmp_path, damage):
    suite = make_suite(tmp_path, sounds=2)
    match damage:
        case "version":
            change(suite.folder, "version", 1)
        case "items":
            (suite.folder / "items.jsonl").write_text("x")
        case _:
            shutil.rmtree(suite.folder / "images")
    assert make_suite(tmp_path, sounds=2) == suite == read_suite(suite.folder)


def test_a_place_that_no_list_can_name_is_refused_before_any_work(tmp_path):
    entries = make_entries(tmp_path / "media", 2)
    with refused(r"o\\udcff': expected a path in UTF-8; choose another place"):
        write_suite(folder_config(tmp_path / "media"), select(entries, "small"), tmp_path / "o\udcff")


def test_a_suite_takes_the_place_of_another_and_leaves_nothing_of_it(tmp_path):
    make_suite(tmp_path, sounds=6)
    suite = make_suite(tmp_path, sounds=2, others=0)
    assert len(list(suite.folder.glob("sounds/*"))) == 2
    assert read_suite(suite.folder) == suite


def test_a_suite_of_one_is_a_suite(tmp_path):
    suite = make_suite(tmp_path, sounds=1, others=0)
    assert (len(suite.items), suite.pool, suite.others) == (1, ("s000",), ())
    assert read_suite(suite.folder) == suite


@pytest.mark.parametrize("name", ["items.jsonl", "pool.csv", "suite.json"])
def test_a_suite_that_was_changed_is_refused(tmp_path, name):
    suite = make_suite(tmp_path, sounds=2)
    path = suite.folder / name
    known = suite.others[0] if name == "suite.json" else suite.items[0].sound
    assert known.sha256 in path.read_text()
    path.write_text(path.read_text().replace(known.sha256, "0" * 64))
    with pytest.raises(InputError, match="is not as it was prepared"):
        read_suite(suite.folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "another"),
        ("wanted", 3),
        ("missing", {"silent": 1}),
        ("replaced", 1),
        ("settings.pool.kind", "other_labels"),
        ("settings.heard.seconds", 2.0),
        ("settings.seconds", 5.0),
        ("settings.image.side", 64),
        ("settings.kind", "itw"),
        ("settings.kind", ["folder"]),
        ("settings.more", "x"),
    ],
)
def test_a_setting_that_a_score_depends_on_was_not_changed(tmp_path, key, value):
    suite = make_suite(tmp_path, sounds=2)
    change(suite.folder, key, value)
    with pytest.raises(InputError, match="is not as it was prepared"):
        read_suite(suite.folder)


def change(folder: Path, key: str, value: object) -> None:
    """A key of `suite.json`, as somebody's editor does it."""
    record = json.loads((folder / "suite.json").read_text())
    *path, last = key.split(".")
    inner = record
    for part in path:
        inner = inner[part]
    inner[last] = value
    (folder / "suite.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("key", "value"),
    [("settings.path", "/else/where"), ("settings.metrics", ["fid"]), ("settings.towers", {})],
)
def test_who_judges_and_where_the_corpus_lay_may_change(tmp_path, key, value):
    suite = make_suite(tmp_path, sounds=2)
    change(suite.folder, key, value)
    assert read_suite(suite.folder).digest == suite.digest


def test_a_suite_of_an_older_version_says_so(tmp_path):
    suite = make_suite(tmp_path, sounds=2)
    change(suite.folder, "version", 1)
    with refused("expected version 2, found 1; prepare the suite again"):
        read_suite(suite.folder)


def test_one_corpus_in_two_places_gives_one_digest(tmp_path):
    make_entries(tmp_path / "here/media", 3)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (prepare(folder_config(tmp_path / at / "media"), tmp_path / at / "suite") for at in ("here", "there"))
    assert here.settings["path"] != there.settings["path"]
    assert here.digest == there.digest
    louder = prepare(folder_config(tmp_path / "here/media", heard={"seconds": 2.0}), tmp_path / "suite")
    assert louder.digest != here.digest


def test_no_kind_of_suite_has_a_path_in_what_is_digested():
    confirmed = {"vggsounder": "/here/table.csv", "modality": "A"}
    settings = {
        "kind": "vggsound", "name": "a", "test_csv": "/here/test.csv", "classes": "/here/classes.txt", "per_class": 3,
        "media": {"dir": "/here/video", "pattern": "{ytid}.mp4"}, "top1": None, "confirmed": confirmed, "towers": {},
    }  # fmt: skip
    assert without_places(settings) == {
        "kind": "vggsound", "name": "a", "per_class": 3, "confirmed": {"modality": "A"}
    }  # fmt: skip
    for kind, section in KINDS.items():
        paths = {name: "/here" for name in section.model_fields if name in ("path", "landscapes", "itw", "labels")}
        assert without_places({"kind": kind, "name": "a", **paths, "table": "/here"}).keys() <= {
            "kind",
            "name",
            "table",
        }


def test_twin_references_are_counted_and_told(tmp_path):
    entries = make_entries(tmp_path / "media", 6, per_recording=2)  # recordings r000, r001, r002 of two each
    pictures = [entries[n].image for n in (0, 0, 2, 3, 4, 2)]  # of one recording twice; of two; and three alone
    suite = write(tmp_path, [replace(each, image=image) for each, image in zip(entries, pictures, strict=True)])
    assert suite.twin_references == 2
    assert json.loads((suite.folder / "suite.json").read_text())["twin_references"] == 2
    assert "2 of 6 items have a reference picture that another recording has too" in tell(suite)
    assert "reference picture" not in tell(make_suite(tmp_path / "more", sounds=2))


def test_a_full_list_of_entries_that_are_twice_is_refused(tmp_path):
    write_sound(tmp_path / "a.wav", tone(0))
    write_csv(tmp_path / "mine.csv", ("id", "sound"), [("one", "a.wav"), ("two", "a.wav"), ("one", "a.wav")])
    with refused(r"small: its list names the id 'one' 2 times \(.*a\.wav, .*a\.wav\); an id is given once"):
        prepare(folder_config(tmp_path / "mine.csv"), tmp_path / "suite")
