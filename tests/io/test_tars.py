import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.compat import WebDataset

from sonify.io.tars import BLOCK, MAX_EXTENSION_BYTES, Member, TarWriter, index_tar, read_member
from sonify.keys import escape_key, unescape_key
from sonify.rows import Reason, Rejected
from tests.processes import run_python

FILES = {"a.jpg": b"x" * 700, "a.txt": b"a dog", "b.jpg": b"", "b.txt": b"y" * 512}
LONG = "k" * 300 + ".jpg"


def tar_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    writer = TarWriter(file)
    for name, data in files.items():
        writer.add(name, data)
    writer.close()
    return file.getvalue()


def made_by_tarfile(*infos: tarfile.TarInfo, kind: int = tarfile.GNU_FORMAT, data: bytes = b"") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        for info in infos:
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def header(name: str = "a", kind: bytes = tarfile.REGTYPE, size: bytes | int = 0, spare: bytes = b"") -> bytes:
    """One header block with a right checksum. A `size` in bytes is the raw field of 12."""
    info = special(name, kind)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = b"%011o\0" % size if isinstance(size, int) else size
    block[482 : 482 + len(spare)] = spare
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def pax(*records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    body = b"".join(records)
    return header("pax", kind, len(body)) + padded(body)


def record(keyword: bytes, value: bytes) -> bytes:
    length = len(keyword) + len(value) + 3
    while len(str(length)) + len(keyword) + len(value) + 3 != length:
        length = len(str(length)) + len(keyword) + len(value) + 3
    return b"%d %s=%s\n" % (length, keyword, value)


END = bytes(2 * BLOCK)


def index(tmp_path: Path, data: bytes) -> tuple[list[Member], list[Rejected]]:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    return index_tar(path, "sub/x.tar")


def contents(tmp_path: Path, data: bytes) -> dict[str, bytes]:
    members, _ = index(tmp_path, data)
    return {member.name: read_member(io.BytesIO(data), member) for member in members}


def test_every_file_comes_back(tmp_path: Path) -> None:
    data = tar_of(FILES)
    assert contents(tmp_path, data) == FILES
    assert index(tmp_path, data)[1] == []


def test_every_cut_is_reported_and_nothing_complete_is_lost(tmp_path: Path) -> None:
    data = tar_of(FILES)
    ends = {member.name: member.offset + member.size_bytes for member in index(tmp_path, data)[0]}
    marker = len(data) - len(END)
    cuts = {*range(0, marker + BLOCK, BLOCK), *range(0, marker + BLOCK, 97), marker + BLOCK - 1}
    for cut in sorted(cuts):
        members, rejected = index(tmp_path, data[:cut])
        assert [member.name for member in members] == [name for name, end in ends.items() if end <= cut]
        [row] = rejected
        assert (row.key, row.reason) == (escape_key("sub/x.tar"), Reason.DAMAGED_ARCHIVE)
    assert index(tmp_path, data[: marker + BLOCK])[1] == []


@pytest.mark.parametrize(
    "name",
    [
        "a b.jpg",
        "a.b.c.jpg",
        "../../etc/passwd",
        "/etc/passwd",
        "ünïcode-名.jpg",
        "caf\udce9.jpg",
        LONG,
        "d/" * 60 + "a.jpg",
        "x" * 100,
        "x" * 101,
        "é" * 60,
        "model.pkl",
        "code.pyd",
        "line\nbreak.txt",
    ],
)
def test_any_name_is_only_a_name(name: str, tmp_path: Path) -> None:
    data = tar_of({name: b"data", "z": b"end"})
    assert contents(tmp_path, data) == {name: b"data", "z": b"end"}
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8") as archive:
        assert archive.getnames() == [name, "z"]
    assert unescape_key(escape_key(name)) == name


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", [LONG, "ünïcode.jpg", "caf\udce9.jpg", "d/" * 60 + "a.jpg"])
def test_names_written_by_other_programs_are_read(name: str, kind: int, tmp_path: Path) -> None:
    data = made_by_tarfile(tarfile.TarInfo(name), kind=kind, data=b"data")
    assert contents(tmp_path, data) == {name: b"data"}


def test_an_old_ustar_prefix_is_part_of_the_name(tmp_path: Path) -> None:
    name = "d" * 90 + "/" + "f" * 90
    data = made_by_tarfile(tarfile.TarInfo(name), kind=tarfile.USTAR_FORMAT, data=b"data")
    assert contents(tmp_path, data) == {name: b"data"}


def test_the_same_members_give_the_same_bytes_and_no_metadata(tmp_path: Path) -> None:
    files = {**FILES, LONG: b"long"}
    assert tar_of(files) == tar_of(files)
    with tarfile.open(fileobj=io.BytesIO(tar_of(files))) as archive:
        for info in archive:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
            assert (info.mode, info.type) == (0o644, tarfile.REGTYPE)


def test_webdataset_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of({"k" * 300 + ".jpg": b"jpeg", "k" * 300 + ".json": b"{}", "l.jpg": b"2"}))
    samples = list(WebDataset(str(path), shardshuffle=False))
    assert [(sample["__key__"], sample["jpg"]) for sample in samples] == [("k" * 300, b"jpeg"), ("l", b"2")]
    assert samples[0]["json"] == b"{}"


def test_what_is_no_file_is_rejected_by_name(tmp_path: Path) -> None:
    data = made_by_tarfile(
        special("folder", tarfile.DIRTYPE),
        tarfile.TarInfo("a"),
        special("soft", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard", tarfile.LNKTYPE, "a"),
        special("pipe", tarfile.FIFOTYPE),
        special("tty", tarfile.CHRTYPE),
        special("disk", tarfile.BLKTYPE),
        special("odd", b"Q"),
        tarfile.TarInfo("z"),
    )
    members, rejected = index(tmp_path, data)
    assert [member.name for member in members] == ["a", "z"]
    assert {row.reason for row in rejected} == {Reason.UNSUPPORTED}
    assert [(unescape_key(row.key), row.detail) for row in rejected] == [
        ("sub/x.tar/soft", "a symbolic link"),
        ("sub/x.tar/hard", "a hard link"),
        ("sub/x.tar/pipe", "a named pipe"),
        ("sub/x.tar/tty", "a character device"),
        ("sub/x.tar/disk", "a block device"),
        ("sub/x.tar/odd", "a member of type b'Q'"),
    ]


def test_the_first_of_a_name_wins(tmp_path: Path) -> None:
    data = tar_of({"a": b"1"})[: -len(END)] + tar_of({"a": b"2", "b": b"3"})
    assert contents(tmp_path, data) == {"a": b"1", "b": b"3"}
    [row] = index(tmp_path, data)[1]
    assert (unescape_key(row.key), row.reason) == ("sub/x.tar/a", Reason.DUPLICATE_KEY)


def test_a_damaged_header_ends_the_list(tmp_path: Path) -> None:
    data = bytearray(tar_of(FILES))
    second = data.index(b"a.txt")
    data[second + 10] ^= 1
    members, [row] = index(tmp_path, bytes(data))
    assert [member.name for member in members] == ["a.jpg"]
    assert row.reason == Reason.DAMAGED_ARCHIVE
    assert str(second) in row.detail


@pytest.mark.parametrize("hole", [BLOCK, 3 * BLOCK])
def test_a_hole_is_no_end_marker(hole: int, tmp_path: Path) -> None:
    data = tar_of(FILES)
    start = data.index(b"a.txt")
    members, [row] = index(tmp_path, data[:start] + bytes(hole) + data[start + hole :])
    assert [member.name for member in members] == ["a.jpg"]
    assert row.reason == Reason.DAMAGED_ARCHIVE


def test_padding_after_the_end_marker_is_no_damage(tmp_path: Path) -> None:
    assert index(tmp_path, tar_of(FILES) + bytes(20 * BLOCK))[1] == []


SPARSE_MAP = header("s", tarfile.GNUTYPE_SPARSE, 512, b"\1") + bytes(504) + b"\1" + bytes(7 + 512)


@pytest.mark.parametrize(
    "sparse",
    [
        SPARSE_MAP + bytes(512),
        pax(record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.minor", b"0")) + header("s", size=0),
    ],
)
def test_sparse_files_are_rejected_and_passed_over(sparse: bytes, tmp_path: Path) -> None:
    members, [row] = index(tmp_path, sparse + header("a") + END)
    assert [member.name for member in members] == ["a"]
    assert (unescape_key(row.key), row.reason) == ("sub/x.tar/s", Reason.UNSUPPORTED)


def test_pax_headers_speak_of_the_next_member_or_of_all(tmp_path: Path) -> None:
    data = (
        pax(record(b"comment", b"of git"), kind=tarfile.XGLTYPE)
        + pax(record(b"path", b"renamed"), record(b"size", b"3"), record(b"mtime", b"1.5"))
        + header("a", size=99)
        + padded(b"abc")
        + header("b", size=1)
        + padded(b"d")
        + END
    )
    assert contents(tmp_path, data) == {"renamed": b"abc", "b": b"d"}


DAMAGED = {
    "empty": b"",
    "not a tar": b"hello" * 200,
    "compressed": gzip.compress(tar_of(FILES)) + bytes(BLOCK),
    "negative size": header("a", size=b"\xff" * 12) + END,
    "negative octal size": header("a", size=b"-0000000001\0") + END,
    "size is no number": header("a", size=b"twelve bytes") + END,
    "base-256 size of 2^87": header("a", size=b"\x80\x80" + bytes(10)) + END,
    "size of 8 GB": header("a", size=b"77777777777\0") + END,
    "pax size of 4,000 digits": pax(record(b"size", b"9" * 4000)) + header("a") + END,
    "pax size below zero": pax(record(b"size", b"-512")) + header("a") + END,
    "pax header beyond the file": header("pax", tarfile.XHDTYPE, 2**33 - 1) + END,
    "pax header too long": pax(record(b"path", b"n" * 2 * MAX_EXTENSION_BYTES)) + header("a") + END,
    "pax record of length 0": pax(b"0 path=x\n") + header("a") + END,
    "pax record too long": pax(b"99 path=x\n") + header("a") + END,
    "pax record without a value": pax(b"8 path_\n") + header("a") + END,
    "pax record of endless digits": pax(b"1" * 100_000) + header("a") + END,
    "long name beyond the file": header("@", tarfile.GNUTYPE_LONGNAME, 2**33 - 1) + END,
    "long name too long": header("@", tarfile.GNUTYPE_LONGNAME, 2 * MAX_EXTENSION_BYTES)
    + padded(b"n" * 2 * MAX_EXTENSION_BYTES)
    + header("a")
    + END,
    "sparse map without end": header("s", tarfile.GNUTYPE_SPARSE, 0, b"\1") + b"\1" * 5000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_hostile_headers_are_damage(name: str, tmp_path: Path) -> None:
    members, [row] = index(tmp_path, DAMAGED[name])
    assert members == []
    assert row.reason == Reason.DAMAGED_ARCHIVE


@pytest.mark.parametrize(
    "bomb",
    [
        pax(record(b"path", b"n" * 900_000)) + header("a"),
        header("@", tarfile.GNUTYPE_LONGNAME, 900_000) + padded(b"n" * 900_000) + header("a"),
    ],
)
def test_a_name_of_a_megabyte_is_rejected_under_its_beginning(bomb: bytes, tmp_path: Path) -> None:
    members, [row] = index(tmp_path, bomb + header("b") + END)
    assert [member.name for member in members] == ["b"]
    assert row.reason == Reason.UNSUPPORTED
    assert len(row.key) < 5000


INDEX_AND_MEASURE = """
import sys
from pathlib import Path
from sonify.io.tars import index_tar
from tests.processes import peak_kib
before = peak_kib()
members, rejected = index_tar(Path(sys.argv[1]), "x")
print(len(members), len(rejected), (peak_kib() - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["x", "g", "L", "records", "zeros"])
def test_endless_headers_take_little_memory_and_time(kind: str, tmp_path: Path) -> None:
    one = {
        "x": pax(record(b"path", b"n" * 1_000_000)),
        "g": pax(record(b"note", b"n" * 1_000_000), kind=tarfile.XGLTYPE),
        "L": header("@", tarfile.GNUTYPE_LONGNAME, 1_000_000) + padded(b"n" * 1_000_000),
        "records": pax(b"5 a=\n" * 200_000),
        "zeros": bytes(1_000_000),
    }[kind]
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        for _ in range(50 if kind != "records" else 5):
            file.write(one)
    members, rejected, grown_mib = map(int, run_python(INDEX_AND_MEASURE, path, timeout=30).stdout.split())
    assert (members, rejected) == (0, 0 if kind == "zeros" else 1)
    assert grown_mib < 12


def test_ten_thousand_chained_headers_are_no_recursion(tmp_path: Path) -> None:
    chain = header("@", tarfile.GNUTYPE_LONGLINK, 0) * 10_000
    assert contents(tmp_path, chain + header("a") + END) == {"a": b""}


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 8 * BLOCK), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_bytes_changed_give_whole_members_or_damage(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(tar_of({**FILES, LONG: b"z"}))
    for position, value in changes:
        data[position] = value
    path = tmp_path_factory.getbasetemp() / "changed.tar"
    path.write_bytes(data)
    members, rejected = index_tar(path, "x")
    for member in members:
        assert len(read_member(io.BytesIO(data), member)) == member.size_bytes
        escape_key(member.name)
    assert sum(row.reason == Reason.DAMAGED_ARCHIVE for row in rejected) <= 1


def test_a_shortened_archive_is_not_read_as_if_whole(tmp_path: Path) -> None:
    data = tar_of(FILES)
    members, _ = index(tmp_path, data)
    with pytest.raises(OSError, match=r"a\.jpg: 188 of 700 bytes"):
        read_member(io.BytesIO(data[:700]), members[0])
