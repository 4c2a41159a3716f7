"""How a rendering compares with the one that was published: whole shards, and the mix of each scene."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sonify import layout
from sonify.config import Config
from sonify.dataset.read import read_shards
from sonify.dataset.render_from import published_folder
from sonify.engine.plan import iter_done
from sonify.io.places import stems
from sonify.io.tables import read_columns, read_tables
from sonify.stages.table import stages_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Counts. A shard of which rows were left out before publishing cannot be compared and does not count."""

    shards_identical: int
    shards_different: int
    shards_absent: int
    scenes_identical: int  # the same samples, whatever their encoding
    scenes_different: int
    scenes_absent: int
    sounds: Mapping[str, int]  # of the scenes that were made: exact, equivalent, repaired


def compare_with_published(config: Config) -> Comparison:
    """Compare a finished rendering with what it was made from.

    Raises:
        InputError: the published folder has changed.
        WorkError: a record or table is damaged.
    """
    shards = _compare_shards(config)
    scenes = _compare_scenes(config)
    return Comparison(
        shards_identical=shards[0],
        shards_different=shards[1],
        shards_absent=shards[2],
        scenes_identical=scenes[0],
        scenes_different=scenes[1],
        scenes_absent=scenes[2],
        sounds=_count_copies(config),
    )


def _compare_shards(config: Config) -> tuple[int, int, int]:
    render = next(stage for stage in stages_of(config) if stage.name == "render")
    made = {file.path: file.sha256 for stored in iter_done(config.run_dir, render) for file in stored.commit.files}
    published = [shard for shard in read_shards(published_folder(config)) if shard.complete]
    found = [(made.get(layout.shard(shard.split, shard.unit)), shard.sha256) for shard in published]
    absent = sum(sha256 is None for sha256, _ in found)
    identical = sum(sha256 == expected for sha256, expected in found)
    return identical, len(found) - identical - absent, absent


def _compare_scenes(config: Config) -> tuple[int, int, int]:
    identical = different = absent = 0
    for unit in stems(config.run_dir / layout.RENDERS):
        expected = _mixes(config, layout.concepts(layout.PUBLISHED, unit))
        made = _mixes(config, layout.renders(unit))
        same = sum(expected.get(scene) == sha256 for scene, sha256 in made.items())
        identical += same
        different += len(made) - same
        absent += len(expected.keys() - made.keys())
    return identical, different, absent


def _count_copies(config: Config) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for _, table in read_tables(config.run_dir / layout.PAIRS, ["sources"]):
        counts.update(table["sources"].combine_chunks().flatten().field("copy").to_pylist())
    return dict(sorted(counts.items()))


def _mixes(config: Config, table: str) -> dict[tuple[str, str], str]:
    columns = read_columns(config.run_dir / table, ["image", "scene", "mix_sha256"])
    images, scenes, hashes = (columns[name].to_pylist() for name in ("image", "scene", "mix_sha256"))
    return dict(zip(zip(images, scenes, strict=True), hashes, strict=True))
