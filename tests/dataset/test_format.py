import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sonify.dataset.format import CHECKSUMS, FORMAT, RECORD, PublishedClip, PublishedPair, new_folder
from sonify.errors import InputError
from sonify.io.tables import schema_of

KILLED = """
import os, signal, sys
from pathlib import Path
from sonify.dataset.format import CHECKSUMS, RECORD, new_folder

def fill(out, text):
    with new_folder(out) as folder:
        (folder / "sonify.json").write_text(text)
        (folder / "data").mkdir()
        (folder / "data" / "one.parquet").write_text(text)

def fill_until(out, moment):
    child = os.fork()
    if not child:
        left = moment
        def count(event, arguments):
            nonlocal left
            if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        fill(out, "new")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def state(out):
    return {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file()} if out.exists() else {}

out = Path(sys.argv[1]) / "out"
fill(out, "new")
new = state(out)
fill(out, "old")
old = state(out)
seen, moment = [], 1
while True:
    fill(out, "old")
    if fill_until(out, moment) == 0:
        break
    assert state(out) in (old, new, {}), (moment, state(out))
    seen.append((old, new, {}).index(state(out)))
    fill(out, "new")
    assert state(out) == new, moment
    assert os.listdir(out.parent) == ["out"], moment
    moment += 1
print(*seen)
"""


def test_the_columns_are_those_of_the_format():
    """Rows of a run are published with more columns: one that the run gets, without a default, makes another format."""
    assert FORMAT == 1
    assert " ".join(schema_of(PublishedPair).names) == (
        "image image_uri image_sha256 width height split scene caption medium check_answer sources refused"
        " mix_gain_db peak_dbfs mix_sha256 image_licence conditions contradictions redistributable"
    )
    assert " ".join(schema_of(PublishedClip).names) == (
        "clip recording corpus file start_sec duration_sec loudness_lufs peak_dbfs text licence attribution split"
        " sha256 conditions fingerprint"
    )
    (sources, refused) = (
        [inner.name for inner in schema_of(PublishedPair).field(name).type.value_type]
        for name in ("sources", "refused")
    )
    assert " ".join(sources) == (
        "concept description clip cosine score threshold num_candidates target_lufs gain_db copy"
        " limit heard_by heard support purity speech onsets_sec active_start_sec active_sec role snr_db"
    )
    assert " ".join(refused) == "concept description presence reason clip cosine heard"


def fill(out, **files):
    with new_folder(out) as folder:
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text)


def test_killed_at_every_moment_it_leaves_the_old_the_new_or_nothing_and_begins_again(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = [int(state) for state in done.stdout.split()]
    assert len(seen) > 15
    assert seen[0] == 0
    assert seen[-1] == 1
    assert seen.count(2) <= 1  # between the two renames


def test_what_was_moved_away_before_a_kill_comes_back(tmp_path):
    fill(tmp_path / "out", sonify_json="old")
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    with new_folder(tmp_path / "out") as folder:
        assert (tmp_path / "out" / RECORD).read_text() == "old"
        (folder / RECORD).write_text("new")
    assert (tmp_path / "out" / RECORD).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def fail(out):
    with new_folder(out) as folder:
        (folder / RECORD).write_text("new")
        raise ZeroDivisionError


def test_a_failure_leaves_what_was_there(tmp_path):
    fill(tmp_path / "out", sonify_json="old")
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "out")
    assert (tmp_path / "out" / RECORD).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_an_upload_keeps_beside_the_files_does_not_count(tmp_path):
    fill(tmp_path / "out", sonify_json="old")
    (tmp_path / "out" / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / "out" / ".cache" / "huggingface" / "state").write_text("half way")
    fill(tmp_path / "out", sonify_json="new")
    assert (tmp_path / "out" / RECORD).read_text() == "new"
    assert ".cache" not in (tmp_path / "out" / CHECKSUMS).read_text()


def test_a_folder_whose_checksums_are_none_is_not_replaced(tmp_path):
    fill(tmp_path / "out", sonify_json="old")
    with (tmp_path / "out" / CHECKSUMS).open("a") as checksums:
        checksums.write("notes of mine\n")
    with pytest.raises(InputError, match="choose another place"):
        fill(tmp_path / "out", sonify_json="new")
    assert (tmp_path / "out" / RECORD).read_text() == "old"


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path):
    fill(tmp_path / "disk" / "out", sonify_json="old")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    fill(tmp_path / "out", sonify_json="new")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "out" / RECORD).read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("/", "expected a folder that can be made, found the root of a disk"),
        ("/proc/x", r"cannot be written \(No such file or directory\)"),
        ("n" * 250, r"cannot be written \(File name too long\)"),
        ("loop", "found a link that leads to itself"),
        ("loop/out", r"cannot be written \(Too many levels of symbolic links\)"),
        (os.fsdecode(b"caf\xe9"), "the name is not UTF-8"),
    ],
)
def test_a_place_where_no_folder_can_be_is_refused_in_one_line(tmp_path, place, expected):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=expected) as error, new_folder(Path(tmp_path / place)):
        pass
    assert str(error.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_a_publication_that_is_replaced_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO, "sonify.dataset.format")
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", sonify_json="old")
    assert caplog.messages == []
    fill(tmp_path / "out", sonify_json="new")
    assert caplog.messages == [f"{tmp_path / 'out'}: replaces the publication that is there"]


def test_a_mounted_disk_is_refused_in_one_line(tmp_path):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no user namespaces on this machine: nothing can be mounted")
    (tmp_path / "out").mkdir()
    begin = "import sys; from pathlib import Path; from sonify.dataset.format import new_folder"
    code = f"{begin}\nwith new_folder(Path(sys.argv[1])) as folder: (folder / 'sonify.json').write_text('x')"
    command = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    out = tmp_path / "out"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, out, sys.executable, "-c", code, out],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"{InputError.__name__}: {out}: cannot be replaced" in done.stderr
