import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlcroissant
import pytest

from sonify.dataset.croissant import CROISSANT, write_croissant
from sonify.dataset.format import PublishedClip
from tests.dataset.folders import clip, pair, record, small_folder, write_tables

pytestmark = [
    pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated"),  # mlcroissant's own use of its libraries
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
]


def opened(out: Path) -> mlcroissant.Dataset:
    write_croissant(out, record(), "cc-by-4.0")
    return mlcroissant.Dataset(jsonld=str(out / CROISSANT))


def read(dataset: mlcroissant.Dataset, name: str) -> list[dict[str, Any]]:
    """A record set's rows with plain names and text: the library gives ids, and bytes for text."""
    return [plain(row) for row in dataset.records(name)]


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name.rpartition("/")[2]: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value.decode() if isinstance(value, bytes) else value


def test_it_is_valid(tmp_path):
    dataset = opened(small_folder(tmp_path))
    assert dataset.metadata.ctx.issues.errors == set()
    assert dataset.metadata.ctx.conforms_to.value == "http://mlcommons.org/croissant/1.0"
    # what nobody knows before the upload; anything else would be forgotten
    missing = ("citeAs", "datePublished", "version")
    warnings = dataset.metadata.ctx.issues.warnings
    assert len(warnings) == len(missing)
    assert all(any(word in warning for word in missing) for warning in warnings)


def test_sounds_are_described_where_there_are_any(tmp_path):
    sets = [one.name for one in opened(small_folder(tmp_path / "none")).metadata.record_sets]
    out = small_folder(tmp_path / "some")
    (out / "audio").mkdir()
    dataset = opened(out)
    assert [one.name for one in dataset.metadata.record_sets] == [*sets, "audio"]
    assert dataset.metadata.ctx.issues.errors == set()


def test_pairs_are_read_through_it_with_their_sources(tmp_path):
    rows = read(opened(small_folder(tmp_path)), "pairs")
    assert [row["image"] for row in rows] == ["photo-000_jpg", "photo-001_jpg", "photo-002_jpg", "photo-003_jpg"]
    expected = pair(3, "validation")
    assert [source["concept"] for source in rows[3]["sources"]] == ["dog", "rain", "dog"]
    first = rows[3]["sources"][0]
    values = {name: getattr(expected.sources[0], name) for name in first}
    assert values | {"onsets_sec": list(values["onsets_sec"])} == first
    assert set(first) == set(type(expected.sources[0]).__slots__)
    assert rows[3]["conditions"] == ["BY", "NC"]
    assert (rows[3]["width"], rows[3]["peak_dbfs"], rows[3]["redistributable"]) == (48, -12.5, False)


def test_clips_are_read_through_it_all_but_the_fingerprint(tmp_path):
    rows = read(opened(small_folder(tmp_path)), "clips")
    assert [row["clip"] for row in rows] == ["esc50-1-0", "esc50-2-0"]
    assert set(rows[0]) == {field.name for field in fields(PublishedClip)} - {"fingerprint"}
    assert (rows[0]["loudness_lufs"], rows[0]["licence"]) == (-28.0, "CC-BY-NC-3.0")


def test_a_file_that_changed_is_noticed(tmp_path):
    out = small_folder(tmp_path)
    assert read(opened(out), "shards")[0]["complete"] is True
    described = json.loads((out / CROISSANT).read_text())
    shards = next(one for one in described["distribution"] if one["@type"] == "cr:FileObject")
    assert shards["sha256"] == hashlib.sha256((out / "shards/shards.parquet").read_bytes()).hexdigest()


@pytest.mark.parametrize("conditions", [(), ("BY",), ("BY", "NC", "unknown")])
def test_lists_of_any_length_come_back(tmp_path, conditions: Sequence[str]):
    out = write_tables(tmp_path, [pair(1, conditions=tuple(conditions))], [clip(conditions=tuple(conditions))])
    assert [read(opened(out), name)[0]["conditions"] for name in ("pairs", "clips")] == [list(conditions)] * 2


def test_the_same_folder_gives_the_same_description(tmp_path):
    for name in ("a", "b"):
        opened(small_folder(tmp_path / name))
    assert (tmp_path / "a" / CROISSANT).read_bytes() == (tmp_path / "b" / CROISSANT).read_bytes()
