"""Scenes made anew at each visit of an image (`data.scenes: remix`), by every rule of the run that the image is of.

What a draw needs is searched once, before the first step, and kept in the training run, unit by unit:

TRAINRUN/scenes/<digest>/pool.parquet     the clips that may be drawn, and what of the search a draw needs
TRAINRUN/scenes/<digest>/tags.npz         what was heard in them, where the run listened
TRAINRUN/scenes/<digest>/<unit>.npy       the rankings of a unit's queries
TRAINRUN/scenes/<digest>/<unit>.parquet   its scenes: what is drawn for, and by which rankings; the last to be written
TRAINRUN/scenes/<digest>/recordings.txt   every recording that may be heard; written when all units are there

A draw depends on the seeds of run and training, the image, the scene and the visit, and on nothing else.

    B  images of a micro-batch, S  samples, T D  times and width of the condition
    N  clips, Q  distinct queries, G  groups of a ranking
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sonify import layout
from sonify.config import Config, Features
from sonify.engine.record import config_of_run, require_record
from sonify.errors import InputError, WorkError
from sonify.features.ast import AstFeatures, load_ast
from sonify.installed import spell
from sonify.io.commits import DamagedRecord, digest_of, read_commit
from sonify.io.places import stems
from sonify.io.tables import read_columns, read_rows, rows_of, write_rows
from sonify.io.write import Transaction, write_atomically
from sonify.media.mixing import FULL_SCALE
from sonify.models.fetch import AST_FILES, fetch_model
from sonify.models.loading import choose_dtype, computing
from sonify.pool import ClipSamples, clip_columns
from sonify.retrieval.candidates import Kept, PoolClips, Ranking, SplitPool, drawable, read_pool
from sonify.retrieval.confirm import ClipTags
from sonify.retrieval.encoders import JointEncoder, load_encoder, query_of
from sonify.retrieval.limits import query_limit
from sonify.retrieval.search import numbers_of
from sonify.rows import Concept, Pair, SourceClip
from sonify.stages.listen import tags_of_run
from sonify.stages.pair import THREADS, SceneDraw, joined, read_scenes, scenes_of
from sonify.stages.render import mix_sources, rendering_of
from train.config import TrainConfig
from train.shards import FeatureData, Run, Shard

log = logging.getLogger(__name__)

FOLDER = "scenes"
POOL, TAGS, RECORDINGS = "pool.parquet", "tags.npz", "recordings.txt"
FORM = 1  # of these files: raise it when what stands in them changes
# Of a unit's scenes, as many may be drawn otherwise here than they were: a CLAP on another device rounds otherwise, and
# a draw may fall on the other side. More are other rules, or another pool.
MOST_OTHERWISE = 0.01
# What of the retrieval acts on the search alone, which the committed pairs vouch for.
SEARCHED_BY = {"encoder", "hears", "search", "limit"}
INSTEAD = "or set data.scenes: stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptScene:
    """What a scene is drawn for, and for each of its concepts the row of the unit's rankings."""

    image: str
    scene: str
    concepts: tuple[Concept, ...]
    rankings: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A run whose scenes are made anew: the units that are read, and where what is kept of it lies."""

    run_dir: Path
    config: Config
    split: str
    units: tuple[str, ...]
    root: Path  # the training run
    digest: str

    @property
    def folder(self) -> Path:
        return self.root / FOLDER / self.digest[:16]

    def name(self, file: str) -> str:
        """A file of it, as it is called in the training run."""
        return f"{FOLDER}/{self.digest[:16]}/{file}"


class Remix:
    """Mixes scenes anew; `digest` changes with whatever decides what is drawn, beside the training's seed."""

    def __init__(self, sources: Sequence[_Source], seed: int, window_shards: int) -> None:
        self.digest = digest_of([source.digest for source in sources])[:16]
        self._seed = seed
        self._runs = {source.run_dir: _RunScenes(source, window_shards) for source in sources}

    def mix(self, shard: Shard, key: str, scene: str, visit: int | None) -> np.ndarray:
        """The (S,) int16 samples of a scene, as a visit of its image hears it; None is as the run stored it.

        Raises:
            WorkError: what is kept of the run, or its pool, is damaged.
        """
        with _naming_damage(self._runs[shard.run_dir].folder):
            return self._runs[shard.run_dir].mix(self.sources(shard, key, scene, visit))

    def sources(self, shard: Shard, key: str, scene: str, visit: int | None) -> tuple[SourceClip, ...]:
        """What `mix` mixes: which clips, and how loud."""
        drawn_for = scene if visit is None else f"{scene}@{self._seed}-{visit}"  # no scene has an @ in its name
        return self._runs[shard.run_dir].draw(_unit_of(shard), key, scene, drawn_for)


def _unit_of(shard: Shard) -> str:
    return PurePosixPath(shard.archive.path).name.removesuffix(".tar")


def prepare_remix(config: TrainConfig, data: FeatureData) -> Remix:
    """Search what is not kept yet, and open it; one process does so before the others, which then find it.

    Raises:
        InputError: a run's scenes cannot be drawn anew, or are not what its rules and its pool give now.
        WorkError: a run is damaged.
        DiskFull: no room is left.
    """
    sources = [_open_source(run, config, data) for run in data.runs.values()]
    for source in sources:
        if not (source.folder / RECORDINGS).is_file():
            _keep(source)
    with _naming_damage(config.run_dir / FOLDER):
        return Remix(sources, config.seed, config.data.window_shards)


@contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    """Whatever libraries say of files that are not what was kept, as one line that says how they are made again."""
    try:
        yield
    except (OSError, ValueError, LookupError, BadZipFile, WorkError) as error:
        if isinstance(error, WorkError) and str(folder) not in str(error):
            raise  # of the run's pool
        raise WorkError(f"{folder}: damaged ({error}); remove it, and it is made again") from error


def check_remix(config: TrainConfig, data: FeatureData) -> None:
    """See whether scenes can be drawn anew, and search nothing.

    Raises:
        InputError: a run is of another kind, or what it would draw from is not there.
        WorkError: a run is damaged.
    """
    for run in data.runs.values():
        _open_source(run, config, data)
    settings_of(data)


def remix_recordings(config: TrainConfig) -> set[str]:
    """Every recording that a training run with remixed scenes may have heard.

    Raises:
        InputError: the lists are gone.
    """
    if config.data.scenes != "remix":
        return set()
    lists = sorted((config.run_dir / FOLDER).glob(f"*/{RECORDINGS}"))
    if not lists:
        raise InputError(
            f"{config.run_dir / FOLDER}: expected what the run kept of its scenes, whose {RECORDINGS} says what was"
            " heard; the training command makes it again"
        )
    with _naming_damage(config.run_dir / FOLDER):
        heard = {name for file in lists for name in file.read_text(encoding="utf-8").split("\n") if name}
    if not heard:
        raise WorkError(f"{config.run_dir / FOLDER}: its {RECORDINGS} name nothing; remove it, and it is made again")
    return heard


def settings_of(data: FeatureData) -> Features:
    """How the runs' features were heard.

    Raises:
        InputError: not all of them alike.
    """
    found = [(run_dir, config_of_run(run_dir).features) for run_dir in data.runs]
    first = found[0][1]
    assert first is not None  # its features are read
    for run_dir, features in found:
        if features is None or features.dtype != first.dtype:
            raise InputError(
                f"data.scenes: remix hears all scenes alike, and features.dtype is {first.dtype} in {found[0][0]} and"
                f" {features and features.dtype} in {run_dir}: make them alike, {INSTEAD}"
            )
    return first


class SceneEar:
    """Hears mixed scenes on the device of the training as `sonify features` heard the stored ones.

    On a CPU each goes through the network alone; what is heard is rounded to float16, as what is stored is.
    """

    def __init__(self, config: TrainConfig, settings: Features, device: torch.device) -> None:
        assert config.ast is not None
        fetched = fetch_model(config.ast, config.ast_revision, AST_FILES)
        network, extractor = load_ast(fetched, device, choose_dtype(settings.dtype, device))
        self._hear = AstFeatures(network, extractor, settings.frequency)
        self._cpus = settings.cpus

    def __call__(self, waveforms_BS: torch.Tensor) -> torch.Tensor:
        """The (B, T, D) float32 features of (B, S) int16 samples, where these lie."""
        at_once = 1 if waveforms_BS.device.type == "cpu" else len(waveforms_BS)
        threads = torch.get_num_threads()
        try:
            with computing(self._cpus):
                sounds = (waveforms_BS.float() / FULL_SCALE).split(at_once)
                heard_BTD = torch.cat([self._hear(sound) for sound in sounds]).half()
        finally:
            torch.set_num_threads(threads)
        return heard_BTD.float()  # a tensor of training again, and none of inference


# --- what is drawn from


def _open_source(run: Run, config: TrainConfig, data: FeatureData) -> _Source:
    where = f"data.scenes: remix: {run.run_dir}"
    if run.own_pairs:
        raise InputError(
            f"{where}: holds pairs of somebody's own, and draws nothing: leave it out of data.runs, {INSTEAD}"
        )
    settings = config_of_run(run.run_dir)
    if settings.published is not None:
        raise InputError(f"{where}: renders a published dataset, whose scenes are drawn: leave it out, {INSTEAD}")
    units = tuple(_unit_of(shard) for shard in data.shards if shard.run_dir == run.run_dir)
    clips = stems(run.run_dir / layout.CLIPS)
    needed = [layout.audio(unit) for unit in clips] or [layout.CLIPS]
    _check_there(run.run_dir, needed, where)
    stage = require_record(run.run_dir).stages.get("pair")
    if stage is None:
        raise InputError(f"{where}: {layout.RUN} knows no stage `pair`; `{spell('pair', '--config', 'F')}`, {INSTEAD}")
    vouching = [layout.commit("pair", stage.digest, unit) for unit in units]
    _check_there(run.run_dir, vouching, where)
    made_of = {
        "form": FORM,
        "split": config.data.split,
        "rules": _rules(settings),
        "pairs": {unit: _sha256_of_pairs(run.run_dir / commit) for unit, commit in zip(units, vouching, strict=True)},
    }
    return _Source(
        run_dir=run.run_dir,
        config=settings,
        split=config.data.split,
        units=units,
        root=config.run_dir,
        digest=digest_of(made_of),
    )


def _check_there(run_dir: Path, names: Iterable[str], where: str) -> None:
    for name in names:
        if not (run_dir / name).is_file():
            raise InputError(
                f"{where}: {name} is missing, and scenes are drawn from pool and concepts: put it back, or make it"
                f" again with `{spell('run', '--config', 'F')}`, {INSTEAD}"
            )


def _rules(config: Config) -> dict[str, Any]:
    """The settings that a draw and a mix depend on, whatever was searched."""
    return {
        "seed": config.seed,
        "retrieval": config.retrieval.model_dump(mode="json", exclude=SEARCHED_BY),
        "mix": config.mix.model_dump(mode="json"),
        "sample_rate": config.audio.sample_rate,
        "clip_seconds": config.audio.clip_seconds,
    }


def _sha256_of_pairs(place: Path) -> str:
    try:
        files = read_commit(place).commit.files
    except DamagedRecord as error:
        raise WorkError(f"{place}: damaged ({error}); `{spell('verify', 'RUN', '--repair')}` withdraws it") from error
    return next(file.sha256 for file in files if file.path.startswith(f"{layout.PAIRS}/"))


# --- keeping what was searched


def _keep(source: _Source) -> None:
    """Search the units that are not kept yet, and say at last what may be heard."""
    config, run_dir = source.config, source.run_dir
    extractors = [extractor.name for extractor in config.concepts.extractors]
    needed = [layout.concepts(name, unit) for name in extractors for unit in source.units]
    if config.concepts.check:
        needed += [layout.checks(name, unit) for name in extractors for unit in source.units]
    encoder = load_encoder(config.retrieval.encoder, config.retrieval.hears)
    needed += [layout.embeddings(part.id, unit) for part in encoder.parts for unit in stems(run_dir / layout.CLIPS)]
    needed += [layout.pairs(unit) for unit in source.units]
    _check_there(run_dir, needed, f"data.scenes: remix: {run_dir}")

    clips = _clips_to_search(source, encoder)
    limit = query_limit(config.retrieval.limit, encoder.identity)
    pool = SplitPool(clips, encoder, config.retrieval, THREADS, limit)
    names = _keep_pool(source, clips, pool.kept)
    kept = PoolClips(
        clips=clips.clips,
        recordings=clips.recordings,
        loudness_lufs=clips.loudness_lufs,
        embeddings=pool.kept,
        tags=clips.tags,
    )
    draw = SceneDraw(config, {source.split: SplitPool(kept, None, config.retrieval)})
    left = [unit for unit in source.units if not (source.folder / f"{unit}.parquet").is_file()]
    for number, unit in enumerate(left, start=1):
        log.info("%s: what its scenes are drawn from, unit %s (%d of %d)", run_dir, unit, number, len(left))
        _keep_unit(source, unit, pool, draw)
    write_atomically(
        source.root,
        source.name(RECORDINGS),
        "".join(f"{n}\n" for n in _may_be_heard(source, pool.kept, names)).encode(),
    )


def _clips_to_search(source: _Source, encoder: JointEncoder) -> PoolClips:
    """The split's clips, all in this process: who works in the run shares its vectors there, and trainers only read."""
    tags = tags_of_run(source.config)
    parts = read_pool(source.run_dir, encoder, tags, joined=joined(source.config.audio))
    if source.split not in parts:
        raise InputError(f"data.scenes: remix: {source.run_dir}: its pool has no clips of split {source.split!r}")
    return parts[source.split]


def _keep_pool(source: _Source, clips: PoolClips, kept: Kept) -> np.ndarray:
    """Write the clips, once; where another pool lies there, all begins anew. Gives the (N,) names of recordings."""
    table = clip_columns(source.run_dir, ["recording", "split"])
    _, parts = drawable(source.run_dir, table, tags_of_run(source.config), joined=joined(source.config.audio))
    names = np.array(table["recording"].to_pylist(), dtype=object)[parts[source.split]]
    columns = {
        "clip": pa.array(clips.clips, pa.string()),
        "recording": pa.array(clips.recordings, pa.int64()),
        "loudness_lufs": pa.array(clips.loudness_lufs, pa.float64()),
        "group": pa.array(kept.group_of_clip, pa.int64()),
        "hubness": pa.array(kept.hubness, pa.float32()),
    }
    buffer = BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    place = source.folder / POOL
    if place.is_file() and place.read_bytes() == buffer.getbuffer():
        return names
    shutil.rmtree(source.folder, ignore_errors=True)
    with Transaction(source.root) as transaction:
        transaction.create(source.name(POOL)).write(buffer.getbuffer())
        if clips.tags is not None:
            np.savez(transaction.create(source.name(TAGS)), allow_pickle=False, **_packed(clips.tags))
        transaction.publish()
    return names


def _packed(tags: ClipTags) -> dict[str, np.ndarray]:
    texts = json.dumps({"listener": tags.listener, "names": list(tags.names)}).encode()
    arrays = {name: getattr(tags, name) for name in ("present", "starts", "classes", "words", "scores", "means")}
    return arrays | {"texts": np.frombuffer(texts, np.uint8)}


def _unpacked(place: Path) -> ClipTags:
    with np.load(place, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    texts = json.loads(arrays.pop("texts").tobytes())
    return ClipTags(listener=texts["listener"], names=texts["names"], **arrays)


def _keep_unit(source: _Source, unit: str, pool: SplitPool, draw: SceneDraw) -> None:
    """Search what a unit's scenes ask for, and see that the run's own draws come of it."""
    query = source.config.retrieval.query
    images = list(_paired_images(source, unit))
    wanted = {query_of(one, query) for plans, _ in images for concepts in plans.values() for one in concepts}
    rankings = pool.rank(wanted)
    rows = {id(ranking): n for n, ranking in enumerate({id(one): one for one in rankings.values()}.values())}
    scenes: list[KeptScene] = []
    otherwise = 0
    for plans, pairs in images:
        for pair in pairs:
            names = [pair.scene, *(name for name in plans if name != pair.scene)]  # it may be filled up by another
            heard = (
                name
                for name in names
                if _is_heard(pair, draw(pair.image, source.split, pair.scene, plans[name], rankings)[0])
            )
            found = next(heard, None)
            otherwise += found is None
            concepts = plans[found or pair.scene]
            of = tuple(rows[id(rankings[query_of(one, query)])] for one in concepts)
            scenes.append(KeptScene(image=pair.image, scene=pair.scene, concepts=concepts, rankings=of))
    if otherwise > MOST_OTHERWISE * len(scenes):
        raise InputError(
            f"data.scenes: remix: {source.run_dir}: unit {unit}: of {len(scenes)} scenes {otherwise} are not what rules"
            f" and pool give now, so one of these has changed since: `{spell('pair', '--config', 'F')}` and what"
            f" follows makes them again, {INSTEAD}"
        )
    with Transaction(source.root) as transaction:
        distinct = list({id(one): one for one in rankings.values()}.values())
        np.save(transaction.create(source.name(f"{unit}.npy")), _table_of(distinct), allow_pickle=False)
        write_rows(transaction.create(source.name(f"{unit}.parquet")), KeptScene, scenes)
        transaction.publish()  # in the order of names: a unit whose table is there is whole


def _paired_images(source: _Source, unit: str) -> Iterator[tuple[dict[str, tuple[Concept, ...]], list[Pair]]]:
    """Of each paired image of the split, what each of its scenes may be drawn for, and its pairs."""
    rows = read_rows(source.run_dir / layout.pairs(unit), Pair)
    paired = {key: list(pairs) for key, pairs in groupby(rows, key=lambda pair: pair.image)}
    for image in read_scenes(source.config, unit):
        pairs = paired.get(image.key, [])
        if pairs and pairs[0].split == source.split:
            yield {scene.name: scene.concepts for scene in scenes_of(source.config, image)}, pairs


def _is_heard(pair: Pair, sources: Sequence[SourceClip]) -> bool:
    """Whether sources are those of a pair, to the ear."""

    def audible(found: Sequence[SourceClip]) -> list[tuple[Any, ...]]:
        return [(one.concept, one.clip, one.gain_db, tuple(one.onsets_sec), one.active_start_sec) for one in found]

    return audible(pair.sources) == audible(sources)


def _table_of(rankings: Sequence[Ranking]) -> np.ndarray:
    """(Q,) rankings as rows of one width: all of a split have as many groups."""
    groups = len(rankings[0].groups)
    tied = max(len(ranking.tied) for ranking in rankings)
    row = np.dtype([
        ("limit", "<f8"), ("similarities", "<f4", (groups,)), ("groups", "<i4", (groups,)), ("tied", "u1", (tied,)),
    ])  # fmt: skip
    table = np.zeros(len(rankings), row)
    for n, ranking in enumerate(rankings):
        table["limit"][n] = ranking.limit
        table["similarities"][n] = ranking.similarities
        table["groups"][n] = ranking.groups
        table["tied"][n, : len(ranking.tied)] = ranking.tied
    return table


def _may_be_heard(source: _Source, kept: Kept, names: np.ndarray) -> list[str]:
    """The recordings of all clips that any ranking holds."""
    ranked = np.zeros(int(kept.group_of_clip.max()) + 1, bool)
    for unit in source.units:
        table = np.load(source.folder / f"{unit}.npy", mmap_mode="r", allow_pickle=False)
        ranked[np.unique(table["groups"])] = True
        for tied in np.unique(table["tied"], axis=0):
            ranked[numbers_of(tied)] = True
    return sorted(set(names[ranked[kept.group_of_clip]]))


# --- drawing by what is kept


@dataclass(frozen=True, slots=True)
class _Unit:
    table: pa.Table
    rows: Mapping[tuple[str, str], int]
    rankings: np.ndarray  # (Q,) as `_table_of` makes them


class _RunScenes:
    """Draws and mixes the scenes of one run."""

    def __init__(self, source: _Source, window_shards: int) -> None:
        self.folder, self._split = source.folder, source.split
        self._retrieval = source.config.retrieval
        self._draw = SceneDraw(source.config, {source.split: SplitPool(_read_kept(source), None, self._retrieval)})
        self._clips = ClipSamples(source.run_dir)
        self._rendering = rendering_of(source.config)
        self._open = lru_cache(window_shards)(self._read)

    def mix(self, sources: Sequence[SourceClip]) -> np.ndarray:
        return mix_sources(sources, self._clips, self._rendering).samples

    def draw(self, unit: str, key: str, scene: str, drawn_for: str) -> tuple[SourceClip, ...]:
        """What is heard for a purpose; where that gives nothing (among ties seats are drawn), what is stored."""
        opened = self._open(unit)
        if (key, scene) not in opened.rows:
            raise self._damage(unit, f"knows no scene {scene!r} of {key!r}")
        row = opened.rows[key, scene]
        (kept,) = rows_of(opened.table.slice(row, 1).to_batches(), KeptScene)
        rankings = {
            query_of(concept, self._retrieval.query): _ranking(opened.rankings[number])
            for concept, number in zip(kept.concepts, kept.rankings, strict=True)
        }
        for name in (drawn_for, scene):
            sources, _ = self._draw(key, self._split, name, kept.concepts, rankings)
            if sources:
                return sources
        raise self._damage(unit, f"has nothing to draw for scene {scene!r} of {key!r}")

    def _damage(self, unit: str, what: str) -> WorkError:
        return WorkError(f"{unit}.parquet in {self.folder} {what}")

    def _read(self, unit: str) -> _Unit:
        table = read_columns(self.folder / f"{unit}.parquet", ["image", "scene", "concepts", "rankings"])
        names = zip(table["image"].to_pylist(), table["scene"].to_pylist(), strict=True)
        rankings = np.load(self.folder / f"{unit}.npy", mmap_mode="r", allow_pickle=False)
        return _Unit(table, {name: row for row, name in enumerate(names)}, rankings)


def _ranking(row: np.void) -> Ranking:
    return Ranking(
        np.array(row["similarities"]), np.array(row["groups"], np.int64), np.array(row["tied"]), float(row["limit"])
    )


def _read_kept(source: _Source) -> PoolClips:
    table = read_columns(source.folder / POOL, ["clip", "recording", "loudness_lufs", "group", "hubness"])
    tags = source.folder / TAGS
    return PoolClips(
        clips=table["clip"].to_pylist(),
        recordings=table["recording"].to_numpy(),
        loudness_lufs=table["loudness_lufs"].to_numpy(),
        embeddings=Kept(group_of_clip=table["group"].to_numpy(), hubness=table["hubness"].to_numpy()),
        tags=_unpacked(tags) if tags.is_file() else None,
    )
