"""Images that go out with the metadata: which, where, and where none may. Sounds are in `test_write`."""

import hashlib
import io
import shutil
from pathlib import Path

import datasets
import datasets.config
import mlcroissant
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from sonify.cli import main
from sonify.dataset import carried
from sonify.dataset.format import CHECKSUMS, PublishedPair, read_checksums
from sonify.dataset.write import PublishOptions, publish
from sonify.io.tables import read_rows
from sonify.running import run
from tests.builders import members_of, refused, small_config
from tests.dataset.folders import elsewhere, own_run, shard_hashes

SHOWN = PublishOptions(with_images=True, image_licence="CC BY 4.0")


@pytest.fixture(scope="module")
def shown(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shown") / "set"
    publish(first / "run", out, SHOWN)
    return out


def images_of(folder: Path) -> dict[str, bytes]:
    rows = [row for path in sorted((folder / "images").iterdir()) for row in pq.read_table(path).to_pylist()]
    found = {row["image"]: row["picture"]["bytes"] for row in rows}
    assert len(found) == len(rows)
    return found


def pairs_of(folder: Path) -> list[PublishedPair]:
    return [row for path in sorted((folder / "data").iterdir()) for row in read_rows(path, PublishedPair)]


def test_each_image_is_there_once_as_the_archives_have_it(first, shown):
    found = images_of(shown)
    rendered = {name.removesuffix(".jpg"): data for name, data in members_of(first / "run/shards").items()}
    sha256 = {pair.image: pair.image_sha256 for pair in pairs_of(shown)}
    assert len(found) == len(sha256) == len(pairs_of(shown)) // 2 == 20
    assert found == {image: rendered[image] for image in sha256}
    # photographs that are JPEG already stay as they are
    assert {image: hashlib.sha256(data).hexdigest() for image, data in found.items()} == sha256


def test_the_tables_lie_and_are_sealed_as_the_pairs_are(shown):
    names = [path.name for path in sorted((shown / "images").iterdir())]
    assert names == [path.name for path in sorted((shown / "data").iterdir())]
    for name in names:
        order = [pair.image for pair in read_rows(shown / "data" / name, PublishedPair)][::2]
        assert pq.read_table(shown / "images" / name)["image"].to_pylist() == order
    listed = read_checksums((shown / CHECKSUMS).read_bytes())
    assert {f"images/{name}" for name in names} <= listed.keys()


def test_datasets_takes_the_column_for_pictures_and_decodes_it(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    loaded = datasets.load_dataset(str(shown), "images", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded, datasets.DatasetDict)
    pairs = pairs_of(shown)
    assert {split: len(rows) for split, rows in loaded.items()} == {
        split: sum(pair.split == split for pair in pairs) // 2 for split in ("train", "validation")
    }
    assert loaded["train"].features["picture"] == datasets.Image()
    assert loaded["train"][0]["picture"].size == (48, 32)
    # without the card, from the table alone
    files = str(shown / "images" / "train-*.parquet")
    bare = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "bare"))
    assert isinstance(bare, datasets.Dataset)
    assert bare.features == loaded["train"].features


def test_card_and_croissant_name_the_table_with_its_size(shown):
    card = DatasetCard.load(shown / "README.md")
    info = next(one for one in card.data.to_dict()["dataset_info"] if one["config_name"] == "images")
    files = list((shown / "images").iterdir())
    assert info["download_size"] == sum(file.stat().st_size for file in files)
    assert sum(split["num_bytes"] for split in info["splits"]) >= sum(map(len, images_of(shown).values()))
    assert "| `images` | an image, as JPEG" in card.text
    assert "The images lie in `images`; sounds are not in this folder" in card.text
    assert "Neither images" not in card.text


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated")
@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_croissant_reads_the_pictures(shown):
    described = mlcroissant.Dataset(jsonld=str(shown / "croissant.json"))
    assert described.metadata.ctx.issues.errors == set()
    rows = list(described.records("images"))
    assert {row["images/image"].decode() for row in rows} == images_of(shown).keys()
    assert all(row["images/picture"].size == (48, 32) for row in rows)


def test_what_is_excluded_leaves_no_image(first, shown, tmp_path):
    gone = pairs_of(shown)[0]
    (tmp_path / "list").write_text(f"{gone.image}\n")
    publish(
        first / "run",
        tmp_path / "set",
        PublishOptions(with_images=True, image_licence="CC0", exclude=tmp_path / "list"),
    )
    assert images_of(tmp_path / "set").keys() == images_of(shown).keys() - {gone.image}


def test_sounds_and_images_go_out_together(first, shown, tmp_path):
    both = PublishOptions(with_images=True, with_audio=True, image_licence="CC BY 4.0")
    publish(first / "run", tmp_path / "both", both)
    before = (tmp_path / "both" / CHECKSUMS).read_bytes()
    assert images_of(tmp_path / "both") == images_of(shown)
    assert len(list((tmp_path / "both" / "audio").iterdir())) == len(list((shown / "images").iterdir()))
    assert "lie in `audio`, the images in `images`." in (tmp_path / "both" / "README.md").read_text()
    publish(first / "run", tmp_path / "both", both)
    assert (tmp_path / "both" / CHECKSUMS).read_bytes() == before


def test_a_folder_with_images_is_rendered_from_like_any_other(first, copy, shown):
    shutil.rmtree(copy / "published")
    shutil.copytree(shown, copy / "published")
    run(elsewhere(copy))
    assert shard_hashes(copy / "run") == shard_hashes(first / "run")


@pytest.mark.parametrize(
    ("licence", "forbidding"),
    [
        ("unknown", "unknown"),
        ("SA-1B Dataset Research License", "research only, no redistribution"),
        ("all rights reserved", "no redistribution"),
        ("ask me", "unknown"),
    ],
)
def test_images_that_may_not_be_passed_on_are_refused_before_anything_is_written(first, tmp_path, licence, forbidding):
    with refused(rf"^--with-images: the images' licence is '{licence}', .*\({forbidding}\); leave it out, or name"):
        publish(first / "run", tmp_path / "set", PublishOptions(with_images=True, image_licence=licence))
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_so_in_one_line(first, tmp_path, capsys):
    command = ["publish", str(first / "run"), "--out", str(tmp_path / "set"), "--with-images"]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "--with-images: the images' licence is 'unknown'" in said.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "--image-licence", "CC0-1.0"]) == 0
    assert (tmp_path / "set" / "images").is_dir()


def test_images_without_derivatives_go_out_as_they_are_and_in_no_other_size(first, tmp_path):
    options = PublishOptions(with_images=True, image_licence="CC BY-ND 4.0")
    publish(first / "run", tmp_path / "set", options)
    assert (tmp_path / "set" / "images").is_dir()
    smaller = small_config(tmp_path, **own_run(first), render={"image": 16})
    run(smaller)
    with refused(r"\(ND, of another size\)"):
        publish(smaller.run_dir, tmp_path / "small", options)
    publish(smaller.run_dir, tmp_path / "small", SHOWN)
    assert {Image.open(io.BytesIO(data)).size for data in images_of(tmp_path / "small").values()} == {(24, 16)}


def test_no_more_images_than_some_megabytes_are_held_at_once(first, tmp_path, monkeypatch):
    monkeypatch.setattr(carried, "GROUP_BYTES", 2000)
    publish(first / "run", tmp_path / "set", SHOWN)
    for path in (tmp_path / "set" / "images").iterdir():
        file = pq.ParquetFile(path)
        sizes = [len(row["picture"]["bytes"]) for row in file.read().to_pylist()]
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        assert sum(groups) == len(sizes)
        if sum(sizes) > 4000:
            assert len(groups) > 1
