"""The rendered shards, for whoever trains on them: checked against their commits, read through webdataset's pipelines.

Its are the shuffles, the draws with replacement, and what it knows of nodes and workers. Its readers are not used: its
names of files may be commands and patterns, its decoder unpickles, and where an archive was cut between two members it
loses the rest in silence. A name here is a file's, and a member's bytes become an image, a sound or JSON, or an error.
"""

import json
import logging
import operator
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawValue
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np

from sonify import layout
from sonify.dataset.format import PublishedShard
from sonify.dataset.read import read_table
from sonify.dataset.render_from import MOST_SCENES
from sonify.engine.plan import listed_units
from sonify.engine.record import RunRecord, read_record
from sonify.errors import InputError, WorkError, did_you_mean
from sonify.installed import spell, spell_again
from sonify.io.commits import DamagedRecord, commit_files, parse_commit, read_commits
from sonify.io.places import Sizes, open_local, size_of, stems
from sonify.io.tars import Member, index_members, read_member
from sonify.io.write import digest_open
from sonify.keys import KEY_PATTERN, hash64, split_member
from sonify.media.audio import MAX_SCENE_FRAMES, UnreadableSound, decode_mono_flac, most_flac_bytes
from sonify.media.pixels import MAX_BYTES, UnreadableImage, decode_rgb, decode_square
from sonify.rows import Reason, Rejected
from sonify.stores import Place, kind_of, to_place

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

    class Shards(IterableDataset["ShardSample"]):
        """What `open_shards` gives: a `webdataset.DataPipeline`, which is torch's where torch is installed."""

        def set_epoch(self, epoch: int) -> None:
            """Shuffle otherwise from the next pass on; workers that live on hear of it."""
            ...

        def compose(self, *stages: Any) -> Any:
            """A pipeline that goes on with more stages."""
            ...

        def with_epoch(self, nsamples: int) -> "Shards":
            """End a pass after so many samples of a worker; for `resampled`, which has no end of its own."""
            ...


log = logging.getLogger(__name__)

Check = Literal["size", "hash"]
ImageAs = Literal["array", "bytes"] | int
RENDERED, LISTING = "render", "concepts"  # the stage that makes shards, and where its units are listed
TAR = ".tar"
RECORD, IMAGE = "json", "jpg"
SCENE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)\.flac")
# Above what rendering writes: a sample is held in memory, and a member in a file with holes may claim anything. A scene
# has some 3 KB of record, a source in it at most some hundreds of bytes; parsing takes half a second a MiB at worst.
MAX_RECORD_BYTES, RECORD_BYTES_OF_SCENE, MOST_RECORD_BYTES = 1 << 20, 64 << 10, 16 << 20
MAX_SOUND_BYTES = most_flac_bytes(MAX_SCENE_FRAMES)
# Of all scenes of a sample together, encoded and as PCM: 46 of the longest at 48 kHz, 800 of ten seconds at 16 kHz.
MAX_SOUNDS_BYTES = 256 << 20
MAX_EPOCH = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sound:
    """A scene as it is heard: (frames,) float32 of 16-bit steps, full scale at 1.0."""

    samples: np.ndarray
    sample_rate_hz: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardSample:
    """An image with all its scenes. `image` is (H, W, 3) uint8 sRGB, or the JPEG's bytes where those were asked for.

    `scenes` has the sound of each by name, `metadata` the sample's JSON: captions, and what is heard in each scene.
    """

    key: str
    image: np.ndarray | bytes
    scenes: Mapping[str, Sound]
    metadata: Mapping[str, Any]


def open_shards(  # noqa: PLR0913 - by keyword, each on its own
    run_or_folder: str | Place,
    split: str = "train",
    *,
    check: Check = "size",
    image: ImageAs = "array",
    shuffle: int = 0,
    seed: int = 0,
    resampled: bool = False,
    node: tuple[int, int] | None = None,
) -> "Shards":
    """Open the shards of a run, or copies of them, for a loop or a torch DataLoader: an iterable of `ShardSample`.

    Each node and each worker of a DataLoader reads archives of its own, so that a pass yields every sample once. A pass
    has the same order each time; `set_epoch` gives another. Of a run that is half done, what is done is read, and the
    log says how much that is. From a store an archive is fetched whole into the temporary folder, one at a time.

    Args:
        run_or_folder: a run, or a folder with shards/<split>/*.tar or <split>/*.tar; also `s3://`, `gs://`, `hf://`.
        split: `train` or `validation`.
        check: compare the archives' sizes with the commits (or a publication's shards.parquet) now; `hash` also their
            sha256, each before its first sample.
        image: `array`, `bytes` (the JPEG), or a size in pixels: the shorter side becomes that, and the middle is cut
            out, so that images can be stacked.
        shuffle: 0 is the stored order. Else the archives are shuffled, and so many encoded samples of each worker,
            which it holds in memory.
        seed: of shuffles and draws; the same for the same seed, epoch, number of nodes and number of workers.
        resampled: draw archives with replacement, without end; each worker draws on its own, from all.
        node: rank and number of nodes. Where None, torch.distributed says it when the pass begins, or RANK and
            WORLD_SIZE.

    Raises:
        InputError: there are no shards of that split, nothing says their sha256, or RANK and WORLD_SIZE are no node.
        WorkError: a commit is damaged, or an archive missing or of another size. Reading raises it too, of an archive
            that is cut, is damaged, or holds anything but <key>.jpg, <key>.<scene>.flac and <key>.json.
    """
    from webdataset import filters  # noqa: PLC0415 - loads torch, where that is installed
    from webdataset.pipeline import DataPipeline  # noqa: PLC0415

    _check_options(split, check, image, shuffle, seed, node)
    root = _to_place(run_or_folder)
    record = read_record(root)
    remedy = f"`{spell('verify', root, '--repair')}` withdraws it" if record else "get it again"
    archives = _of_run(root, record, split, remedy) if record else _of_folder(root, split, remedy)
    if check == "hash" and any(archive.sha256 is None for archive in archives):
        raise InputError(
            f"{root}: check='hash' needs the sha256 of each archive, which the run has in its commits and a publication"
            " in shards.parquet; open the run, or check='size'"
        )
    order = _Order(archives, shuffles=shuffle > 0, seed=seed, resampled=resampled, node=node)
    stages: list[Any] = [order, _Reader(root, check, remedy)]
    if shuffle:
        stages.append(_SampleShuffle(shuffle, order))
    stages.append(filters.map(_Decoder(image=image, split=split, remedy=remedy)))
    shards = DataPipeline(*stages)
    setattr(shards, "set_epoch", order.set_epoch)  # noqa: B010 - the class is webdataset's
    return cast("Shards", shards)


def _check_options(split: object, check: object, image: object, shuffle: object, seed: object, node: object) -> None:
    if split not in layout.SPLITS:
        near = did_you_mean(str(split), layout.SPLITS)
        raise InputError(f"split: expected one of {', '.join(layout.SPLITS)}, found {split!r}{near}")
    if check not in ("size", "hash"):
        raise InputError(f"check: expected 'size' or 'hash', found {check!r}")
    if image not in ("array", "bytes") and not (type(image) is int and image > 0):
        raise InputError(f"image: expected 'array', 'bytes' or a size in pixels, found {image!r}")
    if type(shuffle) is not int or shuffle < 0:
        raise InputError(f"shuffle: expected 0 or a number of samples, found {shuffle!r}")
    if type(seed) is not int:
        raise InputError(f"seed: expected a whole number, found {seed!r}")
    if node is not None and not _is_node(node):
        raise InputError(f"node: expected a rank from 0 on and a larger number of nodes, found {node!r}")


def _is_node(node: object) -> bool:
    numbers = cast("Sequence[object]", node) if isinstance(node, (tuple, list)) else ()
    if len(numbers) != 2 or any(type(number) is not int for number in numbers):
        return False
    rank, world = cast("Sequence[int]", numbers)
    return 0 <= rank < world


def _to_place(run_or_folder: str | Place) -> Place:
    try:
        place = to_place(run_or_folder)
    except ValueError as error:
        raise InputError(f"{run_or_folder}: {error}") from error
    if kind_of(place) != "folder":
        raise InputError(f"{place}: expected a run, or a folder of shards; there is no such folder")
    return place


@dataclass(frozen=True, slots=True, kw_only=True)
class _Archive:
    """An archive, by its path below the folder that was opened."""

    path: str
    sha256: str | None


def _of_run(run_dir: Place, record: RunRecord, split: str, remedy: str) -> list[_Archive]:
    """The archives that were committed, each of which has its size."""
    stage = record.stages.get(RENDERED)
    commits = commit_files(run_dir, RENDERED, stage.digest) if stage else []
    if not commits:
        raise InputError(f"{run_dir}: has no shards yet: `{spell_again()}` renders them")
    listed = len(listed_units(run_dir, LISTING))
    if len(commits) < listed:
        log.warning("%s: %d of %d units are rendered; the others are left out", run_dir, len(commits), listed)
    size_of_file = Sizes(run_dir)
    archives: list[_Archive] = []
    for place, data in read_commits(commits):
        try:
            files = {file.path: file for file in parse_commit(place, data).commit.files}
        except DamagedRecord as error:
            raise WorkError(f"{place}: {error}; {remedy}") from error
        foreign = files.keys() - {*(layout.shard(each, place.stem) for each in layout.SPLITS)}
        foreign -= {layout.renders(place.stem), layout.rejects(RENDERED, "", place.stem)}
        if foreign:
            raise WorkError(f"{place}: names {min(foreign)[:200]!r}, which is no file of its unit; {remedy}")
        if file := files.get(layout.shard(split, place.stem)):
            _check_size(run_dir / file.path, file.size_bytes, size_of_file(file.path), remedy)
            archives.append(_Archive(path=file.path, sha256=file.sha256))
    if not archives:
        raise InputError(
            f"{run_dir}: no samples of split {split!r}: images.validation says how many images are held out"
        )
    return archives


def _check_size(place: Place, expected: int, found: int | None, remedy: str) -> None:
    if found != expected:
        what = "missing" if found is None else f"{found} bytes long"
        raise WorkError(f"{place}: expected {expected} bytes, it is {what}; {remedy}")


def _of_folder(root: Place, split: str, remedy: str) -> list[_Archive]:
    """The archives that lie there; where a publication lists them, those that it lists, with their size."""
    names: list[str] = []
    prefix = ""
    for prefix in (f"{layout.SHARDS}/", ""):
        if names := stems(root / f"{prefix}{split}", TAR):
            break
    if not names:
        if stems(root, TAR):
            raise InputError(f"{root}: holds archives itself: {_say_which(root)}")
        raise InputError(
            f"{root}: expected a run, or archives as {layout.shard(split, '*')} or {split}/*{TAR}, and there are none;"
            f" a publication without archives is rendered by `{spell('render', '--from', root)}`"
        )
    archives = {layout.shard(split, name): f"{prefix}{split}/{name}{TAR}" for name in names}
    table = f"{prefix}shards.parquet"
    if not _is_there(root / table):
        irregular = next((path for path in archives.values() if size_of(root / path) is None), None)
        if irregular:
            raise InputError(f"{root / irregular}: no regular file")
        return [_Archive(path=path, sha256=None) for path in archives.values()]
    return _as_listed(root, table, archives, split, remedy)


def _say_which(folder: Place) -> str:
    if folder.name not in layout.SPLITS:
        return f"put them into a folder {layout.SPLITS[0]}/ in it"
    above = folder.parent
    return f"open {above.parent if above.name == layout.SHARDS else above} with split={folder.name!r}"


def _is_there(place: Place) -> bool:
    """Whether anything has that name: a list that cannot be read is no lack of one."""
    return os.path.lexists(place) if isinstance(place, Path) else kind_of(place) is not None


def _as_listed(root: Place, table: str, archives: Mapping[str, str], split: str, remedy: str) -> list[_Archive]:
    listed = {row.path: row for row in read_table(root, table, PublishedShard) if row.split == split}
    foreign = next((path for path in archives if path not in listed), None)
    if foreign is not None:
        raise InputError(f"{root / archives[foreign]}: {table} does not list it; take it away")
    if len(archives) < len(listed):
        log.warning("%s: %d of %d archives are there", root, len(archives), len(listed))
    sizes = Sizes(root)
    for name, path in archives.items():
        _check_size(root / path, listed[name].size_bytes, sizes(path), remedy)
    return [_Archive(path=path, sha256=listed[name].sha256) for name, path in archives.items()]


class _Order:
    """The archives that this process reads, in this epoch's order: the first stage of the pipeline."""

    def __init__(
        self, archives: Sequence[_Archive], *, shuffles: bool, seed: int, resampled: bool, node: tuple[int, int] | None
    ) -> None:
        self._archives = archives
        self._shuffles = shuffles
        self._seed = seed
        self._resampled = resampled
        self._node = node
        if node is None:
            _node_of_now()  # what is wrong with it is said when the shards are opened
        # Memory that workers share, those that were started before as well.
        self._epoch = RawValue("q", 0)

    def __getstate__(self) -> dict[str, Any]:
        """Only a process that is being started can share memory; to others goes the number.

        It also has to be told the node, since it knows nothing of torch.distributed.
        """
        if get_spawning_popen():
            return self.__dict__ | {"_node": self._node or _node_of_now()}
        return self.__dict__ | {"_epoch": self._epoch.value}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if isinstance(self._epoch, int):
            self._epoch = RawValue("q", self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle otherwise from the next pass on."""
        try:
            number = operator.index(epoch)
        except TypeError:
            number = -1
        if not 0 <= number <= MAX_EPOCH:
            raise InputError(f"set_epoch: expected a number from 0 to {MAX_EPOCH}, found {epoch!r}")
        self._epoch.value = number

    def __call__(self) -> Iterator[_Archive]:
        from webdataset import filters, shardlists  # noqa: PLC0415 - loads torch

        rank, world, worker, workers = self._position()
        if self._resampled:
            numbers = [str(n) for n in range(len(self._archives))]  # names that nothing expands
            draws = shardlists.ResampledShards(numbers, deterministic=True, worker_seed=lambda: self.seed("draws"))
            return (self._archives[int(draw["url"])] for draw in draws)
        if len(self._archives) < world * workers:
            raise InputError(
                f"{len(self._archives)} archives cannot be shared by {world} nodes with {workers} workers each, which"
                " would leave some with nothing: start fewer workers, open with resampled=True, or render smaller"
                " units (images.shard_size)"
            )
        archives = iter(self._archives)
        if self._shuffles:
            number = len(self._archives)
            shuffle = filters.shuffle(number, initial=number, seed=hash64(self._seed, self._epoch.value, "archives"))
            archives = shuffle(archives)
        # As webdataset's own splitters, for a node that may have been named.
        return islice(islice(archives, rank, None, world), worker, None, workers)

    def seed(self, purpose: str) -> int:
        """A seed of this epoch that no other node and no other worker has."""
        return hash64(self._seed, self._epoch.value, purpose, *self._position())

    def _position(self) -> tuple[int, int, int, int]:
        """Rank, nodes, worker, workers."""
        return *(self._node or _node_of_now()), *_worker_of_now()


def _node_of_now() -> tuple[int, int]:
    """Rank and number of nodes. webdataset's own function believes variables that mean other things elsewhere."""
    if "torch" in sys.modules:
        import torch.distributed as group  # noqa: PLC0415 - no other than the loaded one

        if group.is_available() and group.is_initialized():
            return group.get_rank(), group.get_world_size()
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and world in (None, "1"):
        return 0, 1
    if all(said and said.isdecimal() and len(said) < 10 for said in (rank, world)):
        node = int(rank or ""), int(world or "")
        if node[0] < node[1]:
            return node
    found = ", ".join(
        f"{name} {'not set' if said is None else repr(said[:100])}"
        for name, said in (("RANK", rank), ("WORLD_SIZE", world))
    )
    raise InputError(
        f"expected RANK from 0 on and a larger WORLD_SIZE in the environment, found {found}: set or unset both, or pass"
        " node=(rank, number of nodes)"
    )


def _worker_of_now() -> tuple[int, int]:
    """Number of this DataLoader's worker, and of all; without torch there is no DataLoader."""
    if "torch" not in sys.modules:
        return 0, 1
    from torch.utils.data import get_worker_info  # noqa: PLC0415 - no other than the loaded one

    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


@dataclass(frozen=True, slots=True)
class _SampleShuffle:
    """webdataset's buffer of samples, with a seed of the epoch and the worker."""

    size: int
    order: _Order

    def __call__(self, samples: Iterator["_Stored"]) -> Iterator["_Stored"]:
        from webdataset import filters  # noqa: PLC0415 - loads torch

        return filters.shuffle(self.size, initial=self.size, seed=self.order.seed("samples"))(samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """What an archive has under one key: bytes, by what stands behind the key in their names."""

    key: str
    where: str
    members: Mapping[str, bytes]


class _Reader:
    """Archives to the bytes of their samples."""

    def __init__(self, root: Place, check: Check, remedy: str) -> None:
        self._root = root if isinstance(root, Path) else str(root)
        self._check = check
        self._remedy = remedy
        self._proved: set[tuple[str | int, ...]] = set()

    def __call__(self, archives: Iterable[_Archive]) -> Iterator[_Stored]:
        root = to_place(self._root)  # anew: a store's client does not live on in a forked worker
        for archive in archives:
            place = root / archive.path
            with self._open(place, archive) as file:
                for key, members in self._samples(place, file):
                    data = {name: read_member(file, member) for name, member in members.items()}
                    yield _Stored(key=key, where=str(place), members=data)

    @contextmanager
    def _open(self, place: Place, archive: _Archive) -> Iterator[BinaryIO]:
        try:
            with open_local(place) as file:
                if self._check == "hash":
                    self._prove(place, archive, file)
                yield file
        except OSError as error:
            raise WorkError(f"{place}: cannot be read ({error}); {self._remedy}") from error

    def _prove(self, place: Place, archive: _Archive, file: BinaryIO) -> None:
        """Hash a file, once for as long as nobody writes to it or puts another in its place."""
        found = os.fstat(file.fileno())
        # of what is fetched this is a new file each time; a time of change, unlike one of writing, cannot be set back
        identity = (archive.path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if isinstance(place, Path) and identity in self._proved:
            return
        if digest_open(file) != archive.sha256:
            raise WorkError(f"{place}: another sha256 than was recorded; {self._remedy}")
        self._proved.add(identity)

    def _samples(self, place: Place, file: BinaryIO) -> list[tuple[str, dict[str, Member]]]:
        """All samples of an archive, of which each member is known to be one of ours before the first is read."""
        members, rejected = index_members(file, "archive")
        if rejected:
            raise WorkError(f"{place}: damaged, or none of ours ({_describe(rejected[0])}); {self._remedy}")
        named = ((*split_member(member.name), member) for member in members)
        samples: dict[str, dict[str, Member]] = {}
        for key, parts in groupby(named, key=itemgetter(0)):
            sample = {ending: member for _, ending, member in parts}
            foreign = next((member for ending, member in sample.items() if not _is_ours(key, ending)), None)
            if foreign is not None:
                raise WorkError(
                    f"{place}: {foreign.name[:200]!r} is no member of a sample, which has <key>.{IMAGE},"
                    f" <key>.<scene>.flac and <key>.{RECORD}; it was not opened"
                )
            if key in samples:
                raise WorkError(f"{place}: sample {key[:200]}: its members do not stand together; {self._remedy}")
            if too_much := _is_too_much(sample):
                raise WorkError(f"{place}: sample {key[:200]}: {too_much}; it was not opened")
            samples[key] = sample
        self._check_alike(place, samples, len(members))
        return list(samples.items())

    def _check_alike(self, place: Place, samples: Mapping[str, Mapping[str, Member]], num_members: int) -> None:
        """Every sample of a run has the same members, and none comes twice."""
        expected = next(iter(samples.values()), {}).keys() | {RECORD, IMAGE}
        odd = next((key for key, sample in samples.items() if sample.keys() != expected), None)
        if odd is not None:
            names = ", ".join(sorted(samples[odd].keys() ^ expected))
            raise WorkError(
                f"{place}: sample {odd[:200]}: {names} is there or missing, unlike in others; {self._remedy}"
            )
        if len(expected) < 3 or num_members != len(samples) * len(expected):
            what = "a member comes twice" if len(expected) > 2 else "no sample with a sound"
            raise WorkError(f"{place}: {what}; {self._remedy}")


def _describe(rejected: Rejected) -> str:
    return f"{rejected.key[:200]}: {rejected.reason}: {rejected.detail}"


def _is_ours(key: str, ending: str) -> bool:
    is_named = ending in (RECORD, IMAGE) or SCENE.fullmatch(ending)
    return bool(KEY_PATTERN.fullmatch(key) and is_named)


def _is_too_much(sample: Mapping[str, Member]) -> str:
    """What of a sample's sizes, as the archive states them, rendering never writes; or nothing."""
    sizes = {ending: member.size_bytes for ending, member in sample.items()}
    sounds = {ending: size for ending, size in sizes.items() if SCENE.fullmatch(ending)}
    record_bytes = min(MAX_RECORD_BYTES + len(sounds) * RECORD_BYTES_OF_SCENE, MOST_RECORD_BYTES)
    limits = {RECORD: record_bytes, IMAGE: MAX_BYTES} | dict.fromkeys(sounds, MAX_SOUND_BYTES)
    large = next((ending for ending, size in sizes.items() if size > limits[ending]), None)
    if large is not None:
        return f"{large} has {sizes[large]} bytes, and at most {limits[large]} are read"
    if len(sounds) > MOST_SCENES:
        return f"{len(sounds)} scenes, and at most {MOST_SCENES} are read"
    total = sum(sounds.values())
    return f"{total} bytes of sound, and at most {MAX_SOUNDS_BYTES} are read" if total > MAX_SOUNDS_BYTES else ""


def _sounds(members: Mapping[str, bytes]) -> dict[str, Sound]:
    """The scenes, decoded; silence takes few bytes and as many frames as any, so that these are counted as well."""
    left = MAX_SOUNDS_BYTES // 2  # frames of 16 bits
    sounds: dict[str, Sound] = {}
    for name, data in members.items():
        if match := SCENE.fullmatch(name):
            samples, sample_rate_hz = decode_mono_flac(data, min(left, MAX_SCENE_FRAMES))
            sounds[match[1]] = Sound(samples=samples, sample_rate_hz=sample_rate_hz)
            left -= len(samples)
    return sounds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoder:
    """Bytes to a sample; what they decode to is bounded, whatever they claim."""

    image: ImageAs
    split: str
    remedy: str

    def __call__(self, stored: _Stored) -> ShardSample:
        try:
            metadata = json.loads(stored.members[RECORD])
            picture = self._picture(stored.members[IMAGE])
            sounds = _sounds(stored.members)
        except (UnreadableImage, UnreadableSound) as error:
            raise self._damage(stored, f"{error.reason}: {error.detail}") from error
        except (ValueError, RecursionError) as error:
            raise self._damage(stored, f"{RECORD} is not JSON") from error
        self._check_record(stored, metadata, sounds.keys())
        return ShardSample(key=stored.key, image=picture, scenes=sounds, metadata=metadata)

    def _picture(self, data: bytes) -> np.ndarray | bytes:
        if not data.startswith(b"\xff\xd8\xff"):
            raise UnreadableImage(Reason.UNREADABLE, f"{IMAGE} is not a JPEG")  # no other decoder is let near it
        if self.image == "bytes":
            return data
        return np.array(decode_rgb(data)) if self.image == "array" else decode_square(data, self.image)

    def _check_record(self, stored: _Stored, record: Any, scenes: Iterable[str]) -> None:
        try:
            found = (record["key"], record["split"], {scene["scene"] for scene in record["scenes"]})
        except (KeyError, TypeError):
            found = None
        if found != (stored.key, self.split, set(scenes)):
            raise self._damage(stored, f"{RECORD} is not this sample's record, or is of another split")

    def _damage(self, stored: _Stored, what: str) -> WorkError:
        return WorkError(f"{stored.where}: sample {stored.key}: {what}; {self.remedy}")
