"""The tables of a publication, unit by unit: which scenes go out, and under what conditions."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sonify import layout
from sonify.errors import InputError
from sonify.io.tables import read_tables, write_rows
from sonify.publish.committed import CommittedUnit, Scene
from sonify.publish.licences import CONDITIONS, UNKNOWN, conditions_of, contradictions, in_order, redistributable
from sonify.publish.pool import Pool, conditions
from sonify.publish.rows import CLIPS, DATA, SHARDS, PublishedClip, PublishedPair, PublishedShard
from sonify.publish.statistics import Tally
from sonify.rows import Pair, Render
from sonify.sources.userfiles import exclusion_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What goes out: nothing that is excluded, and where `allows` is given only what it allows of licences."""

    pool: Pool
    excluded: frozenset[str]
    image_licence: str
    allows: Callable[[str], bool] | None

    def why_left_out(self, scenes: Sequence[Scene]) -> str | None:
        """Why an image stays here with all its scenes, if it does."""
        first = scenes[0][0]
        clips = {source.clip for pair, _ in scenes for source in pair.sources}
        named = self.excluded & exclusion_names(first.image, first.image_uri, first.image_sha256)
        self.pool.named.update(named)
        if named or any(self.pool.is_excluded(clip) for clip in clips):
            return "excluded"
        licences = {self.image_licence, *(self.pool.licence_of(clip) for clip in clips)}
        return "licence" if self.allows and not all(self.allows(licence) for licence in licences) else None


def allow_only(chosen: Sequence[str], in_use: Collection[str]) -> Callable[[str], bool]:
    """What `--only-licences` allows: licences by their conditions, and those that it names as the corpora write them.

    Raises:
        InputError: a word is neither a condition nor a licence that is known or in use.
    """
    known = {condition.lower(): condition for condition in CONDITIONS}
    allowed: set[str] = set()
    for word in chosen:
        if word.lower() in known:
            allowed.add(known[word.lower()])
        elif UNKNOWN not in conditions_of(word):
            allowed |= conditions_of(word)
        elif word not in in_use:
            raise InputError(
                f"--only-licences {word}: expected any of {', '.join(CONDITIONS)}, a Creative Commons licence or one"
                f" that is in use here ({', '.join(sorted(in_use))[:300]})"
            )
    return lambda licence: licence in chosen or conditions(licence) <= allowed


def write_unit(
    folder: Path, rules: Rules, rendered: CommittedUnit, images: Iterable[tuple[Scene, ...]], tally: Tally
) -> list[PublishedShard]:
    """Write those of a unit's images that go out, and return the archives that they are in."""
    samples: Counter[str] = Counter()
    kept: dict[str, list[PublishedPair]] = {}
    images_kept: Counter[str] = Counter()
    for scenes in images:
        split = scenes[0][0].split
        samples[split] += 1
        if reason := rules.why_left_out(scenes):
            tally.left_out[reason] += len(scenes)
            continue
        pairs = [_published(rules, *scene) for scene in scenes]
        images_kept[split] += 1
        kept.setdefault(split, []).extend(pairs)
        tally.add_image(pairs)
        for pair in pairs:
            rules.pool.hear(source.clip for source in pair.sources)
    for split, pairs in kept.items():
        write_table(folder / f"{DATA}/{split}-{rendered.name}.parquet", PublishedPair, pairs)
    return [_shard(rendered, split, samples[split], images_kept[split]) for split in sorted(kept)]


def _published(rules: Rules, pair: Pair, render: Render) -> PublishedPair:
    licences = {rules.image_licence, *(rules.pool.licence_of(source.clip) for source in pair.sources)}
    found = frozenset[str]().union(*(conditions(licence) for licence in licences))
    return PublishedPair(
        **{field.name: getattr(pair, field.name) for field in fields(pair)},
        mix_gain_db=render.mix_gain_db,
        peak_dbfs=render.peak_dbfs,
        mix_sha256=render.mix_sha256,
        image_licence=rules.image_licence,
        conditions=in_order(found),
        contradictions=contradictions(found),
        redistributable=redistributable(found),
    )


def _shard(rendered: CommittedUnit, split: str, samples: int, kept: int) -> PublishedShard:
    file = rendered.files[layout.shard(split, rendered.name)]
    return PublishedShard(
        path=file.path,
        split=split,
        unit=rendered.name,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        samples=samples,
        complete=kept == samples,
    )


def write_clips(folder: Path, pool: Pool, sample_rate_hz: int, tally: Tally) -> None:
    """Write the clips that are heard."""
    for unit, clips in pool.heard(sample_rate_hz):
        write_table(folder / f"{CLIPS}/{unit}.parquet", PublishedClip, clips)
        for clip in clips:
            tally.add_clip(clip, pool.uses(clip.clip))


def write_shards(folder: Path, shards: Sequence[PublishedShard]) -> None:
    """Write what is known of the archives, in the order of their paths."""
    write_table(folder / SHARDS, PublishedShard, sorted(shards, key=lambda shard: shard.path))


def credits_of(folder: Path) -> Iterator[tuple[str, str, str, str, str, str]]:
    """What `ATTRIBUTION.md` is made from, of every clip that was written."""
    columns = ("corpus", "recording", "file", "text", "licence", "attribution")
    for _, table in read_tables(folder / CLIPS, columns):
        yield from zip(*(table[name].to_pylist() for name in columns), strict=True)


def write_table(path: Path, row_type: type, rows: Sequence[Any]) -> None:
    """Write a table of a new folder, which nobody sees before it is whole."""
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        write_rows(file, row_type, rows)
