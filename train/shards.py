"""The training shards of one or more runs: opened against their commits, and read by shard and row.

Each sample is checked against its index, and decoded by an allow-list.

C H W  channels, height and width of the latents; T D  times and width of a feature vector.
"""

import hashlib
import io
import json
import logging
import math
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sonify import layout
from sonify.engine.record import RunRecord, require_record
from sonify.errors import InputError, WorkError
from sonify.installed import spell
from sonify.io.commits import DamagedRecord, commit_files, digest_of, read_commit
from sonify.io.tables import count_rows, read_columns, rows_of
from sonify.io.tars import index_members
from sonify.io.write import FileRecord, sha256_of
from sonify.keys import split_member
from sonify.models.fetch import named
from sonify.rows import FeatureEntry
from sonify.stores import Place
from train.config import Data, TrainConfig
from train.pair_list import is_of_pairs

log = logging.getLogger(__name__)

CHECKING_THREADS = 8
AUDIOTOKEN_LAYERS = (4, 8, 12)  # of BEATs
STAGE = "features"
RECORD = "json"
LATENT = re.compile(r"latent(_flip)?(_std)?\.npy")
# What numpy writes for a float16 array of two to four dimensions; its own reader evaluates the header as Python.
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..{'descr': '<f2', 'fortran_order': False, 'shape': \((\d{1,9}(?:, \d{1,9}){1,3})\), } *\n",
    re.DOTALL,
)
AUDIO = re.compile(r"([A-Za-z0-9_-]+)\.audio\.npy")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """What lies in an archive under one key. `members` have the key's part of their names taken off."""

    key: str
    archive: Path
    members: Mapping[str, bytes]

    @property
    def scenes(self) -> tuple[str, ...]:
        """The scenes whose audio features are there, sorted."""
        return tuple(sorted(match[1] for name in self.members if (match := AUDIO.fullmatch(name))))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of an array."""
        return self._open(name).shape

    def decode(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array as float32: `latent.npy` and its like (C, H, W), `<scene>.audio.npy` (T, D).

        Raises:
            WorkError: it is missing, no float16 array of that shape, or not finite.
        """
        half = self._open(name)
        if half.shape != shape:
            raise self.damage(f"{name} has the shape {half.shape}, expected {shape}")
        array = torch.from_numpy(half.copy()).float().numpy()  # twenty times as fast as numpy's own conversion
        if not np.isfinite(array).all():
            raise self.damage(
                f"{name} holds values that are not finite; make the features again with features.dtype=float32, or name"
                " the image in images.exclude"
            )
        return array

    def record(self) -> dict[str, Any]:
        """What the sample's JSON says: captions, and the sources of its scenes."""
        try:
            record = json.loads(self.members[RECORD])
        except (KeyError, ValueError, RecursionError) as error:
            raise self.damage(f"{RECORD} is missing or not JSON") from error
        if not isinstance(record, dict) or record.get("key") != self.key:
            raise self.damage(f"{RECORD} is not this sample's record")
        return record

    def label_of(self, scene: str) -> str:
        """What is heard in a scene: of each source the recording's label, or else the concept that it is there for.

        Raises:
            WorkError: one has neither.
        """
        sources = next(one["sources"] for one in self.record()["scenes"] if one["scene"] == scene)
        said = [[source.get(key) for key in ("label", "concept")] for source in sources]
        texts = [[text.strip() for text in one if isinstance(text, str) and text.strip()] for one in said]
        labels = [one[0] if one else "" for one in texts]
        if not labels or not all(labels):
            raise self.damage(
                f"scene {scene} has a source without a label or a concept: loss.classification needs one of each"
            )
        return ", ".join(labels)

    def damage(self, what: str) -> WorkError:
        """An error that names archive and sample."""
        return WorkError(f"{self.archive}: sample {self.key}: {what}")

    def _open(self, name: str) -> np.ndarray:
        """An array as it lies in the member: nothing is allocated or evaluated because a header says so."""
        if name not in self.members:
            raise self.damage(f"{name} is missing")
        data = self.members[name]
        header = NPY_HEADER.match(data)
        shape = tuple(int(side) for side in header[1].split(b",")) if header else ()
        if not header or len(data) - header.end() != 2 * math.prod(shape):
            raise self.damage(f"{name} is not a float16 array file as numpy writes it, or was cut short")
        return np.frombuffer(data, np.float16, offset=header.end()).reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A committed archive of training samples, and its index."""

    run_dir: Path
    archive: FileRecord
    index: FileRecord
    num_samples: int

    def read_index(self) -> pa.Table:
        """Where its samples lie."""
        return read_columns(self.run_dir / self.index.path, [field.name for field in fields(FeatureEntry)])

    def read(self, index: pa.Table, row: int) -> TrainingSample:
        """One sample: its bytes at once, and nothing but the members that training samples have.

        Raises:
            WorkError: the bytes are not those that were committed, or hold something foreign.
        """
        (entry,) = rows_of(index.slice(row, 1).to_batches(), FeatureEntry)
        sample = TrainingSample(key=entry.key, archive=self.run_dir / self.archive.path, members={})
        try:
            with sample.archive.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), entry.size_bytes, entry.offset)
        except OSError as error:
            raise sample.damage(f"cannot be read ({error.strerror}); {remedy(self.run_dir)}") from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise sample.damage(f"its bytes are not those that were committed; {remedy(self.run_dir)}")
        return replace(sample, members=_named_members(sample, data))


def _named_members(sample: TrainingSample, data: bytes) -> dict[str, bytes]:
    """The members of a part of an archive, without the key in their names; what is foreign is not opened."""
    members, rejected = index_members(io.BytesIO(data), "sample", whole=False)
    if rejected:
        raise sample.damage(f"is not a whole part of an archive ({rejected[0].reason}: {rejected[0].detail})")
    named: dict[str, bytes] = {}
    for member in members:
        key, name = split_member(member.name)
        if key != sample.key or not (name == RECORD or LATENT.fullmatch(name) or AUDIO.fullmatch(name)):
            raise sample.damage(f"{member.name} is no member of a training sample; it was not opened")
        named[name] = data[member.offset : member.offset + member.size_bytes]
    return named


def remedy(run_dir: Path) -> str:
    """What to do where a run's features are damaged."""
    again = spell("features", "--config", "F")
    return f"`{spell('verify', run_dir, '--repair')}` withdraws it, and `{again}` makes it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFeatures:
    """What was measured, and by which networks: (C, H, W) latents of images of `size` pixels, (T, D) audio features.

    `ear_kind` is `ast` or `beats`; `layers` are those of its layers that are joined, none where it is the last one.
    """

    vae: str
    vae_identity: str
    ear: str
    ear_kind: str
    ear_identity: str
    layers: tuple[int, ...]
    size: int
    frequency: str
    clip_seconds: float
    latent_shape: tuple[int, ...]
    audio_shape: tuple[int, ...]

    @property
    def audiotoken(self) -> str:
        """What AudioToken is called that hears so: only with BEATs' vectors of three layers, all of them, it is the
        published system."""
        if self.ear_kind == "ast":
            return "audiotoken_ast"
        published = self.layers == AUDIOTOKEN_LAYERS and self.frequency == "all"
        return "audiotoken" if published else "audiotoken_beats"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is read; each of its samples has the same members. Its clips were brought to a loudness in `lufs`.

    `own_pairs`: somebody said which sound an image has (`train.pairs`), and no model.
    """

    run_dir: Path
    features: MeasuredFeatures
    members: frozenset[str]
    lufs: tuple[float, float]
    own_pairs: bool


class FeatureData:
    """The samples of one split of one or more runs; `shards` are in the order of runs, then of units.

    `features` are the same in all runs; `lufs` spans the loudness that their clips were brought to. `digest` changes
    with whatever decides which image comes when, beside the seed.
    """

    def __init__(self, runs: Sequence[Run], shards: Sequence[Shard], window_shards: int) -> None:
        self.features = runs[0].features
        self.runs = {run.run_dir: run for run in runs}
        self.shards = tuple(shards)
        self.latent_shape = self.features.latent_shape
        self.audio_shape = self.features.audio_shape
        self.frequency = self.features.frequency
        self.clip_seconds = self.features.clip_seconds
        self.lufs = (min(run.lufs[0] for run in runs), max(run.lufs[1] for run in runs))
        self.num_images = sum(shard.num_samples for shard in shards)
        files = [[shard.archive.path, shard.archive.sha256] for shard in shards]
        self.digest = digest_of({"shards": files, "window_shards": window_shards})
        self._indexes: OrderedDict[int, pa.Table] = OrderedDict()  # of the shards that were read last
        self._max_indexes = window_shards
        self._recordings: list[str] | None = None

    def read(self, shard: int, row: int) -> TrainingSample:
        """One sample; it has the members that every sample of its run has.

        Raises:
            WorkError: it is damaged, or holds something foreign.
        """
        where = self.shards[shard]
        sample = where.read(self._index(shard), row)
        expected = self.runs[where.run_dir].members
        if different := expected ^ sample.members.keys():
            name = min(different)
            what = "is missing" if name in expected else "is there, and in no other sample of the run"
            raise sample.damage(f"{name} {what}; {remedy(where.run_dir)}")
        return sample

    def samples(self) -> Iterator[TrainingSample]:
        """All samples, as they are stored."""
        for shard, where in enumerate(self.shards):
            for row in range(where.num_samples):
                yield self.read(shard, row)

    def recordings(self) -> list[str]:
        """The recordings that are heard in any sample, sorted; the indexes are read for it once."""
        if self._recordings is None:
            heard: set[str] = set()
            for shard in self.shards:
                table = read_columns(shard.run_dir / shard.index.path, ["recordings"])
                heard.update(name for names in table["recordings"].to_pylist() for name in names)
            self._recordings = sorted(heard)
        return list(self._recordings)

    def _index(self, shard: int) -> pa.Table:
        if shard not in self._indexes:
            if len(self._indexes) == self._max_indexes:
                self._indexes.popitem(last=False)
            self._indexes[shard] = self.shards[shard].read_index()
        self._indexes.move_to_end(shard)
        return self._indexes[shard]


def open_feature_data(data: Data) -> FeatureData:
    """Open runs for reading: every archive has its committed size, every index its committed bytes.

    An archive's own bytes are checked sample by sample, when they are read.

    Raises:
        InputError: a run has no features, or others than the run before it, or no run has samples of the split.
        WorkError: a commit, an archive or an index is damaged or missing.
    """
    runs: list[Run] = []
    shards: list[Shard] = []
    for place in dict.fromkeys(_resolved(place) for place in data.runs):
        record, found = _open_run(_on_disk(place), data.split)
        if found:
            runs.append(_describe_run(record, found[0]))
            shards += found
    if not runs:
        names = ", ".join(str(place) for place in data.runs)
        raise InputError(
            f"data: no samples of split {data.split!r} in {names}: images.validation says how many images are held out"
        )
    for run in runs[1:]:
        _check_alike(runs[0], run)
    return FeatureData(runs, shards, data.window_shards)


def peek_features(data: Data) -> MeasuredFeatures:
    """What the first sample of the first run shows, and no other is looked at.

    Raises:
        InputError: the run is not there, or has no features.
        WorkError: a commit, an archive or an index is damaged or missing.
    """
    run_dir = _on_disk(data.runs[0])
    record, commits = _feature_commits(run_dir)
    shards = (_open_shard(run_dir, data.split, commit) for commit in commits)
    shard = next((shard for shard in shards if shard is not None), None)
    if shard is None:
        raise InputError(f"{run_dir}: has no samples of split {data.split!r}")
    return _describe_run(record, shard).features


def check_matches(data: FeatureData, config: TrainConfig, vae_identity: str, ast_identity: str | None) -> None:
    """Check that features are those that a configuration means; `ast_identity` is None where they are not AST's."""
    found, model, where = data.features, config.model, data.shards[0].run_dir
    _check_network(where, "vae", (found.vae, found.vae_identity), (config.vae, vae_identity))
    if config.ast is not None and ast_identity is not None:
        _check_ear(where, found)
        _check_network(where, "ast", (found.ear, found.ear_identity), (config.ast, ast_identity))
    latent_shape = (model.latent_channels, model.sample_size, model.sample_size)
    if found.latent_shape != latent_shape:
        raise InputError(
            f"{where}: its latents are {found.latent_shape} (features.size {found.size}), and the model's"
            f" latent_channels and sample_size make {latent_shape}: change the model, or make other features"
        )
    if found.audio_shape[1] != model.caption_channels:
        raise InputError(
            f"{where}: its audio features are {found.audio_shape[1]} wide, and model.caption_channels is"
            f" {model.caption_channels}: set that to {found.audio_shape[1]}"
        )


def check_heard_by(data: FeatureData, vae: tuple[str, str], encoder: tuple[str, str, str]) -> None:
    """Check that features are those that AudioToken's configuration means: `vae` is a name and an identity, `encoder`
    a kind with both."""
    found, where = data.features, data.shards[0].run_dir
    kind, *ear = encoder
    _check_network(where, "vae", (found.vae, found.vae_identity), vae)
    if found.ear_kind != kind:
        raise InputError(
            f"{where}: its features were heard by {found.ear_kind} {found.ear}, and encoder.kind is {kind}: set"
            f" `encoder` to that, or make features with features.{kind}"
        )
    _check_network(where, "encoder.model", (found.ear, found.ear_identity), (ear[0], ear[1]))
    if not found.layers:
        raise InputError(
            f"{where}: its features are the last layer of {found.ear} alone, and AudioToken joins several: make them"
            " with features.layers=[4,8,12]"
        )


def first_scenes(data: FeatureData, count: int) -> list[tuple[str, str, np.ndarray, str]]:
    """The first scenes as they are stored, at most `count`: key, scene, audio features (T, D), the image's caption."""

    def scenes() -> Iterator[tuple[str, str, np.ndarray, str]]:
        for sample in data.samples():
            captions = {scene["scene"]: scene["caption"] for scene in sample.record()["scenes"]}
            for scene in sample.scenes:
                yield sample.key, scene, sample.decode(f"{scene}.audio.npy", data.audio_shape), captions[scene]

    return list(islice(scenes(), count))


def _check_ear(run_dir: Path, found: MeasuredFeatures) -> None:
    """Refuse what the AST of a pipeline does not give: it listens by its last layer."""
    if found.ear_kind != "ast" or found.layers:
        which = f"layers {', '.join(map(str, found.layers))}" if found.layers else "the last layer"
        raise InputError(
            f"{run_dir}: its features are {which} of {found.ear_kind} {found.ear}, and a model with `ast` hears by the"
            " last layer of that one: set `ast: null`, or make features without features.layers and features.beats"
        )


def _check_network(run_dir: Path, name: str, made_by: tuple[str, str], configured: tuple[str, str]) -> None:
    if made_by[1] != configured[1]:
        key = f"{name}_revision" if made_by[0] == configured[0] else name  # another commit of the same
        raise InputError(
            f"{run_dir}: its features were made by {name} {made_by[0]} ({made_by[1]}), and the configuration's {name}"
            f" is {configured[0]} ({configured[1]}): set `{key}` to what they were made by, or make them again"
        )


def _check_alike(first: Run, other: Run) -> None:
    for field in fields(MeasuredFeatures):
        before, found = getattr(first.features, field.name), getattr(other.features, field.name)
        if before != found and field.name not in ("vae", "ear"):  # a name says where it lay, the identity what it is
            raise InputError(
                f"data.runs: {other.run_dir} has features of another {field.name} ({found}) than {first.run_dir}"
                f" ({before}): train on runs whose features were made alike"
            )


def _on_disk(place: Place) -> Path:
    if not isinstance(place, Path):
        raise InputError(f"data.runs: {place}: features are read from a disk of this machine; copy the run to one")
    return place


def _feature_commits(run_dir: Path) -> tuple[RunRecord, list[Place]]:
    record = require_record(run_dir)
    stage = record.stages.get(STAGE)
    commits = commit_files(run_dir, STAGE, stage.digest) if stage else []
    if not commits or not record.config.get("features"):
        raise InputError(
            f"{run_dir}: has no features; add a section `features` to its configuration, and run"
            f" `{spell('features', '--config', 'F')}`"
        )
    return record, commits


def _open_run(run_dir: Path, split: str) -> tuple[RunRecord, list[Shard]]:
    record, commits = _feature_commits(run_dir)
    rendered = record.stages.get("render")
    num_rendered = sum(1 for _ in commit_files(run_dir, "render", rendered.digest)) if rendered else 0
    if len(commits) < num_rendered:
        log.warning("%s: %d of %d units have features; the others are left out", run_dir, len(commits), num_rendered)
    with ThreadPoolExecutor(CHECKING_THREADS) as threads:
        shards = threads.map(lambda commit: _open_shard(run_dir, split, commit), commits)
        return record, [shard for shard in shards if shard is not None]


def _resolved(place: Place) -> Place:
    """One name for a run that is named twice."""
    return place.resolve() if isinstance(place, Path) else place


def _open_shard(run_dir: Path, split: str, commit_path: Place) -> Shard | None:
    """A unit's archive of the split, or None where it has no images of it."""
    try:
        commit = read_commit(commit_path).commit
    except DamagedRecord as error:
        raise WorkError(f"{commit_path}: damaged ({error}); {remedy(run_dir)}") from error
    files = {file.path: file for file in commit.files}
    archive, index = (files.get(name(split, commit.unit)) for name in (layout.features, layout.feature_index))
    if archive is None or index is None:
        return None
    for file in (archive, index):
        path = run_dir / file.path
        found = path.stat().st_size if path.is_file() else None
        if found != file.size_bytes:
            what = "missing" if found is None else f"{found} bytes long"
            raise WorkError(f"{path}: expected {file.size_bytes} bytes, it is {what}; {remedy(run_dir)}")
    if sha256_of(run_dir / index.path) != index.sha256:
        raise WorkError(f"{run_dir / index.path}: another sha256 than when it was committed; {remedy(run_dir)}")
    return Shard(run_dir=run_dir, archive=archive, index=index, num_samples=count_rows(run_dir / index.path))


def _describe_run(record: RunRecord, shard: Shard) -> Run:
    """What run.json says of the features, and what the run's first sample shows."""
    settings = record.config["features"]
    ear = "beats" if settings.get("beats") else "ast"  # a version before knew no other than this one
    identities: dict[str, str] = {}
    for name in ("vae", ear):
        model = settings[name]
        # by a version before, a pinned one was recorded without its revision
        spelt = next((one for one in (named(model, settings[f"{name}_revision"]), model) if one in record.models), None)
        if spelt is None:
            raise InputError(
                f"{shard.run_dir}: {layout.RUN} does not say which {name} {settings[name]} was; run"
                f" `{spell('features', '--config', 'F')}`"
            )
        identities[name] = record.models[spelt]
    sample = shard.read(shard.read_index(), 0)
    if not sample.scenes:
        raise sample.damage(f"has no audio features; {remedy(shard.run_dir)}")
    features = MeasuredFeatures(
        vae=settings["vae"],
        vae_identity=identities["vae"],
        ear=settings[ear],
        ear_kind=ear,
        ear_identity=identities[ear],
        layers=tuple(settings.get("layers", ())),
        size=settings["size"],
        frequency=settings["frequency"],
        clip_seconds=record.config["audio"]["clip_seconds"],
        latent_shape=sample.shape_of("latent.npy"),
        audio_shape=sample.shape_of(f"{sample.scenes[0]}.audio.npy"),
    )
    low, high = record.config["mix"]["lufs"]
    return Run(
        run_dir=shard.run_dir,
        features=features,
        members=frozenset(sample.members),
        lufs=(low, high),
        own_pairs=is_of_pairs(record),
    )
