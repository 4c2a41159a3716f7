import os
import stat

import pytest

from sonify.errors import InputError
from sonify.io.write import write_whole


def test_a_file_is_replaced_and_its_folder_made(tmp_path):
    place = tmp_path / "a/b/c.json"
    write_whole(place, b"one")
    write_whole(place, b"two")
    assert place.read_bytes() == b"two"
    assert os.listdir(place.parent) == ["c.json"]


def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path):
    (tmp_path / "there").mkdir()
    for name, target in (("old", tmp_path / "there/old"), ("new", "there/new"), ("twice", tmp_path / "old")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "there/old").write_bytes(b"before")
    for name in ("old", "new", "twice"):
        write_whole(tmp_path / name, name.encode())
        assert (tmp_path / name).is_symlink()
    assert sorted(os.listdir(tmp_path / "there")) == ["new", "old"]
    assert (tmp_path / "there/old").read_bytes() == b"twice"
    assert (tmp_path / "there/new").read_bytes() == b"new"


@pytest.mark.parametrize("by_link", [False, True])
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_is_no_regular_file_stays_as_it_is(tmp_path, kind, by_link):
    place = tmp_path / kind
    if kind == "device":
        try:
            os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 7))
        except PermissionError:
            pytest.skip("only root makes device nodes")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    before = place.lstat()
    named = tmp_path / "link" if by_link else place
    if by_link:
        named.symlink_to(place)
    with pytest.raises(
        InputError, match=r"cannot be written \(is a (folder|device, a pipe or a socket)\); name a file"
    ):
        write_whole(named, b"data")
    after = place.lstat()
    assert (before.st_ino, before.st_mode, before.st_rdev) == (after.st_ino, after.st_mode, after.st_rdev)
    assert set(os.listdir(tmp_path)) <= {kind, "link"}


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="cannot be written"):
        write_whole(tmp_path / "a", b"data")
    assert (tmp_path / "a").is_symlink()
