"""What a walk below a folder finds, and that nothing in it goes without a number."""

import logging
import os
from pathlib import Path

import pytest
from upath import UPath

from sonify.io import listing as listing_room
from sonify.io.listing import is_junk, iter_inputs, list_files, say_passed_over
from tests.builders import refused

JUNK = (
    *(
        "._a.jpg",
        ".hidden.jpg",
        ".DS_Store",
        "x/Thumbs.db",
        "x/desktop.ini",
        ".git/a.jpg",
        "x/.ipynb_checkpoints/a.jpg",
    ),
    *("__MACOSX/x/a.jpg", "x/@eaDir/a.jpg", ".thumbnails/a.jpg", ".Trash-1000/files/a.jpg", "lost+found/a.jpg"),
)


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def on_disk(root: Path) -> int:
    return sum(os.path.isfile(os.path.join(at, name)) for at, _, names in os.walk(root) for name in names)


@pytest.mark.parametrize("name", [*JUNK, "./._a.jpg", "a/THUMBS.DB"])
def test_what_systems_leave_is_junk(name: str) -> None:
    assert is_junk(name)


@pytest.mark.parametrize(
    "name", ["a.jpg", "./a.jpg", "a..jpg", "x/_a.jpg", "eaDir/a.jpg", "trash/a.jpg", "..a/../b.jpg"]
)
def test_what_people_name_is_none(name: str) -> None:
    assert is_junk(name) is name.startswith("..a")


@pytest.mark.parametrize("store", [False, True])
def test_every_file_is_counted_once(tmp_path: Path, store: bool) -> None:
    # the folder itself may lie below one that begins with a dot
    root = write(tmp_path / ".cache" / "set", "a.jpg", "x/B.JPG", "x/y/c.png", "a.heic", "README", "x/a.txt", *JUNK)
    place = UPath("memory://walked/.cache/set") if store else root
    if isinstance(place, UPath) and store:
        for at in root.rglob("*"):
            if at.is_file():
                (place / at.relative_to(root).as_posix()).write_bytes(b"x")
    listing = list_files(place, (".jpg", ".png"))
    assert listing.files == ["a.jpg", "x/B.JPG", "x/y/c.png"]
    assert listing.others == ["README", "a.heic", "x/a.txt"]
    assert listing.junk == len(JUNK)
    assert len(listing.files) + len(listing.others) + listing.junk == on_disk(root)


def test_a_name_that_no_table_holds_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a.jpg", os.fsdecode(b"caf\xe9.jpg"))
    assert (list_files(tmp_path, (".jpg",)).files, list_files(tmp_path, (".jpg",)).unnameable) == (["a.jpg"], 1)
    assert "'caf\\udce9.jpg'" in caplog.text


def said(caplog: pytest.LogCaptureFixture, root: Path, aside: set[str], **options: str) -> str:
    caplog.set_level(logging.INFO)
    caplog.clear()
    say_passed_over(root, list_files(root, (".jpg",)), aside, **options)
    return caplog.text


def test_one_line_says_what_was_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [
        *(f"{n}.heic" for n in range(12)),
        "b.WMA",
        "c.wma",
        "d.wma",
        "e.xcf",
        "noending",
        "odd. name",
        "\x1b[31m.\x1b",
    ]
    write(tmp_path, "a.jpg", "t.csv", "._a.jpg", *names)
    line = said(caplog, tmp_path, {"t.csv"}, hint=" (hint)")
    assert (
        f"{tmp_path}: 1 files are input, 1 read beside them; ignored: 12 .heic, 3 (no ending), 3 .wma, 1 .xcf (hint);"
        in line
    )
    assert "; 1 of no use (._*" in line
    assert line.count("\n") == 1
    assert "\x1b" not in line
    write(tmp_path, *(f"a.{letter}{letter}" for letter in "abcdefghijklmno"))
    assert "7 of other endings" in said(caplog, tmp_path, {"t.csv"})


def test_where_nothing_was_passed_over_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, write(tmp_path, "a.jpg", "captions.csv"), {"captions.csv"}) == ""


# --- links


def test_links_are_followed_and_a_folder_linked_twice_is_there_twice(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "real/a.jpg").parent / "root"
    write(tmp_path / "elsewhere", "b.jpg", "x/c.jpg", "d.txt")
    (root / "one").symlink_to(tmp_path / "elsewhere")
    (root / "two").symlink_to(tmp_path / "elsewhere")
    (root / "file.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    (root / "inner").symlink_to("real")
    listing = list_files(root, (".jpg",))
    twice = [f"{name}/{file}" for name in ("one", "two") for file in ("b.jpg", "x/c.jpg")]
    assert listing.files == ["file.jpg", "inner/a.jpg", *twice[:2], "real/a.jpg", *twice[2:]]
    assert listing.others == ["one/d.txt", "two/d.txt"]
    assert listing.linked == ("inner/", "one/", "two/")
    assert listing.astray == 0


def test_whoever_only_looks_sees_the_files_that_are_listed(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "a.jpg", "x/b.txt", *JUNK)
    write(tmp_path / "elsewhere", "c.jpg", "y/d.txt", "._d.txt")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "x/back").symlink_to("..")
    listing = list_files(root, (".jpg",))
    assert sorted(iter_inputs(root)) == sorted([*listing.files, *listing.others])
    assert "linked/y/d.txt" in set(iter_inputs(root))
    assert list(iter_inputs(tmp_path / "no" / "such")) == []


def test_links_that_lead_nowhere_or_back_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "x/y/a.jpg")
    root = tmp_path / "root"
    for name, target in {
        "nowhere.jpg": "gone.jpg",
        "itself.jpg": "itself.jpg",
        "x/up": "..",
        "x/y/here": ".",
        "above": tmp_path,
        "top": "/",
    }.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe.jpg")
    listing = list_files(root, (".jpg",))
    assert (listing.files, listing.astray) == (["x/y/a.jpg"], 7)


def test_two_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    write(tmp_path, "a/a.jpg", "b/b.jpg")
    (tmp_path / "a/b").symlink_to("../b")
    (tmp_path / "b/a").symlink_to("../a")
    listing = list_files(tmp_path, (".jpg",))
    assert listing.files == ["a/a.jpg", "a/b/b.jpg", "b/a/a.jpg", "b/b.jpg"]
    assert listing.astray == 2


def test_folders_that_all_link_to_each_other_are_refused(tmp_path: Path) -> None:
    for n in range(12):
        write(tmp_path, f"{n}/a.jpg")
        for other in range(12):
            (tmp_path / f"{n}/to{other}").symlink_to(f"../{other}")
    with refused("by over 100 names"):
        list_files(tmp_path, (".jpg",))


def test_a_link_that_is_junk_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "a.jpg")
    root = write(tmp_path / "root", "b.jpg")
    (root / ".snapshot").symlink_to(tmp_path / "elsewhere")
    listing = list_files(root, (".jpg",))
    assert (listing.files, listing.junk, listing.astray) == (["b.jpg"], 0, 1)


# --- folders that cannot be listed


def closed_folder(monkeypatch: pytest.MonkeyPatch, name: str, error: type[OSError]) -> None:
    """A folder that the system does not let us list: root may list every one."""
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == name:
            raise error(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(listing_room.os, "scandir", refuse)


def test_a_folder_without_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.jpg", "shut/b.jpg")
    closed_folder(monkeypatch, "shut", PermissionError)
    with refused(f"{tmp_path}/shut: cannot be listed: Permission denied"):
        list_files(tmp_path, (".jpg",))


@pytest.mark.parametrize("name", ["lost+found", ".Trash"])
def test_somebody_else_s_bin_may_stay_shut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(tmp_path, "a.jpg", f"{name}/b.jpg")
    closed_folder(monkeypatch, name, PermissionError)
    assert list_files(tmp_path, (".jpg",)).files == ["a.jpg"]


def test_a_folder_that_goes_meanwhile_takes_nothing_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a/a.jpg", "gone/b.jpg", "z/z.jpg")
    closed_folder(monkeypatch, "gone", FileNotFoundError)
    assert list_files(tmp_path, (".jpg",)).files == ["a/a.jpg", "z/z.jpg"]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert list_files(tmp_path / "no" / "such", (".jpg",)).files == []
