import zlib

import pytest

from sonify import layout
from sonify.engine.job import StoredReject
from sonify.io.tables import read_rows
from sonify.rows import ImageConcepts, Reason
from sonify.running import run
from tests.builders import archives_in, picture, small_config, small_input, stored, write_photos, write_tar


def concepts_of(config):
    run(config, stages=["concepts"])
    kept = stored(config.run_dir / "concepts/captions", ImageConcepts)
    rejects = sorted((config.run_dir / layout.REJECTS / "concepts").glob("*"))
    return kept, [row for path in rejects for row in read_rows(path, StoredReject)]


@pytest.mark.parametrize(
    ("data", "caption", "reason"),
    [
        (picture()[:-200], b"a dog", Reason.UNREADABLE),
        (b"", b"a dog", Reason.UNREADABLE),
        (b"just text", b"a dog", Reason.UNREADABLE),
        (b"8BPS" + bytes(50), b"a dog", Reason.UNSUPPORTED),
        (picture(), b"", Reason.NO_CAPTION),
        (picture(), b" \n ", Reason.NO_CAPTION),
        (picture(), b"a dog \xff\xfe", Reason.BAD_CAPTION),
        (picture(), b"a dog " * 200_000, Reason.BAD_CAPTION),
        (picture(), "a dog ä".encode() * 2_000, Reason.BAD_CAPTION),
        (picture(), b"a grey wall", Reason.NO_CONCEPTS),
    ],
)  # fmt: skip
def test_each_bad_image_or_caption_has_its_reason_and_nothing_else_is_lost(tmp_path, data, caption, reason):
    small_input(tmp_path, photos=3)
    (tmp_path / "photos" / "bad.jpg").write_bytes(data)
    (tmp_path / "photos" / "bad.txt").write_bytes(caption)
    kept, rejected = concepts_of(small_config(tmp_path))
    assert len(kept) == 3
    assert [(row.key, row.reason, row.stage) for row in rejected] == [("bad_2ejpg", reason, "concepts")]


def test_a_bomb_is_refused_from_its_header(tmp_path):
    small_input(tmp_path, photos=3)
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    chunk = len(header[4:]).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    (tmp_path / "photos" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x01\x00\x00IDAT" + bytes(100))
    (tmp_path / "photos" / "bomb.txt").write_text("a dog")
    kept, rejected = concepts_of(small_config(tmp_path))
    assert len(kept) == 3
    assert [row.reason for row in rejected] == [Reason.TOO_LARGE]


def test_archives_give_their_images_and_name_what_is_wrong_with_them(tmp_path):
    small_input(tmp_path, photos=1)
    members = {f"{n}.jpg": picture(n) for n in range(4)} | {f"{n}.txt": b"a dog barks" for n in range(4)}
    write_tar(tmp_path / "tars" / "good.tar", members)
    cut = write_tar(tmp_path / "tars" / "cut.tar", members)
    cut.write_bytes(cut.read_bytes()[:-10240])
    kept, rejected = concepts_of(small_config(tmp_path, images=archives_in(tmp_path / "tars")))
    assert [row.image_uri for row in kept] == [f"{name}.tar/{n}.jpg" for name in ("cut", "good") for n in range(4)]
    assert [(row.key, row.reason) for row in rejected] == [("cut_2etar", Reason.DAMAGED_ARCHIVE)]


def test_at_most_max_concepts_in_the_captions_order(tmp_path):
    small_input(tmp_path, photos=0)
    write_photos(tmp_path / "photos", {"a.jpg": "a dog, a cat, a cow, a pig, a frog and a sheep"})
    kept, _ = concepts_of(small_config(tmp_path, concepts={"max_concepts": 2}))
    assert [concept.concept for concept in kept[0].concepts] == ["dog barking", "cat meowing"]


def test_captions_of_another_table_make_another_scene(tmp_path):
    small_input(tmp_path, photos=2)
    (tmp_path / "other.csv").write_text("file,caption\n000.jpg,thunder and rain\n001.jpg,thunder\n")
    extractors = [{"kind": "captions"}, {"kind": "captions", "name": "other", "file": str(tmp_path / "other.csv")}]
    config = small_config(tmp_path, concepts={"extractors": extractors})
    run(config, stages=["concepts"])
    (row, _) = read_rows(config.run_dir / layout.concepts("other", "000000"), ImageConcepts)
    assert row.caption == "thunder and rain"
