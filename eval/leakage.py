"""What a run shares with evaluation sets: images that look the same, and recordings that are the same.

    python -m eval.leakage RUN --images DIR --sounds DIR --out DIR

is `sonify leakage`. An evaluation set is a folder of files, tar archives or tables, read as any input is.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.leakage", extra="publish"))

import argparse
import json
import logging
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

import numpy as np

from sonify import layout
from sonify.config import (
    Audio,
    Config,
    FolderImages,
    FolderSounds,
    ParquetImages,
    ParquetSounds,
    WebDatasetImages,
    WebDatasetSounds,
)
from sonify.engine.record import config_of_run
from sonify.errors import InputError, WorkError, require
from sonify.installed import spell, spell_again
from sonify.io.listing import list_files
from sonify.io.places import open_local, size_of
from sonify.io.tables import read_columns
from sonify.io.tars import iter_files, read_member
from sonify.io.write import write_whole
from sonify.keys import split_member
from sonify.media.audio import UnreadableSound
from sonify.media.clips import cut_recording, rules_of
from sonify.media.headers import IMAGE_SUFFIXES
from sonify.media.likeness import HASH_BITS, NearHashes, perceptual_hash
from sonify.media.mixing import pcm_sha256
from sonify.media.pixels import UnreadableImage
from sonify.rows import Rejected, SoundRef, SourceImage
from sonify.running import plan_run
from sonify.sources.images import list_images, read_images
from sonify.sources.sounds import list_sounds, open_sound
from sonify.sources.sounds.forms import SOUND_SUFFIXES
from sonify.sources.userfiles import list_containers
from sonify.stages.make_pool import names_of
from sonify.stores import Place, to_folder, to_place, to_run_dir
from sonify.terminal import Parser, argument_of, run_command

log = logging.getLogger(__name__)

# Distances are even, as half of a hash's bits are set. At 6 no two different photographs were taken for one
# (`media.likeness`); at 8 and 10 more crops are found, and in millions of images some that only look alike.
DISTANCE = 6
NAME = "evaluation"  # of its sounds' sources
# What says nothing outside its own folder: a bare number, a row of a table.
_NUMBER = re.compile(r"(row-)?\d*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMatch:
    """An image of the run and the evaluation file that it is nearest to; `exact`: their bytes are the same."""

    image: str
    image_uri: str
    evaluation: str
    distance: int
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundMatch:
    """A file of the pool that an evaluation file shares, and how that is known.

    `by` is `samples` (a clip is the same, sample for sample), `upload` (they are named for the same upload, such as
    `freesound/1234`) or `name` (their files are only named alike).
    """

    file: str
    recording: str
    clips: int
    evaluation: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """What was compared and what was found; images and sounds in the run's order."""

    distance: int
    images_compared: int
    evaluation_images: int
    unreadable_images: int
    images: tuple[ImageMatch, ...]
    sounds_compared: int
    evaluation_sounds: int
    unreadable_sounds: int
    sounds: tuple[SoundMatch, ...]


def find_leakage(run_dir: Place, images: Place | None, sounds: Place | None, distance: int = DISTANCE) -> Leakage:
    """Compare a run's rendered images and its pool with evaluation sets; a unit is in memory at a time.

    Raises:
        InputError: the folder is not a run or nothing is done in it, or an evaluation set is empty.
        ValueError: the distance is not one that hashes can have.
        WorkError: a committed file is damaged.
    """
    if not 0 <= distance <= HASH_BITS:
        raise ValueError(f"distance: expected 0 to {HASH_BITS} bits, found {distance}")
    config = config_of_run(run_dir)
    done = {plan.stage.key: sorted(plan.done) for plan in plan_run(config)}
    needed = ["render"] * (images is not None) + ["pool"] * (sounds is not None)
    for stage in needed:
        if not done.get(stage):
            raise InputError(f"{run_dir}: no unit of {stage} is done; make them with `{spell_again()}`")
    seen = EvaluationImages(images) if images is not None else None
    heard = EvaluationSounds(sounds, config) if sounds is not None else None
    run_images = _compare_images(run_dir, done["render"], seen, distance) if seen else (0, ())
    run_sounds = _compare_sounds(run_dir, done["pool"], heard) if heard else (0, ())
    return Leakage(
        distance=distance,
        images_compared=run_images[0],
        evaluation_images=len(seen.names) if seen else 0,
        unreadable_images=seen.unreadable if seen else 0,
        images=run_images[1],
        sounds_compared=run_sounds[0],
        evaluation_sounds=heard.count if heard else 0,
        unreadable_sounds=heard.unreadable if heard else 0,
        sounds=run_sounds[1],
    )


def summary(leakage: Leakage) -> str:
    """What was found, in a line for each kind."""
    ways = Counter(match.by for match in leakage.sounds)
    exact = sum(match.exact for match in leakage.images)
    return (
        f"images: {len(leakage.images):,} of {leakage.images_compared:,} look like one of"
        f" {leakage.evaluation_images:,} ({exact:,} are the same file; {leakage.unreadable_images:,} were unreadable)\n"
        f"recordings: {len(leakage.sounds):,} of {leakage.sounds_compared:,} are among {leakage.evaluation_sounds:,}"
        f" ({', '.join(f'{n:,} by {way}' for way, n in sorted(ways.items())) or 'none'};"
        f" {leakage.unreadable_sounds:,} were unreadable)"
    )


def write_leakage(leakage: Leakage, out: Path) -> None:
    """Write `report.json`, and `images.txt` and `recordings.txt` for `images.exclude` and `audio.exclude`.

    Recordings that are only named alike stand in the list as comments.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / "report.json").is_file():
        raise InputError(f"--out {out}: holds something else than a report; choose another place")
    lines = [line for match in leakage.images for line in (_comment(match.evaluation), match.image)]
    write_whole(out / "images.txt", "".join(f"{line}\n" for line in lines).encode())
    lines = []
    for match in leakage.sounds:
        alike = match.by == "name"
        lines.append(_comment(f"{match.evaluation}: the same {match.by}"))
        lines.append(_comment(match.recording) if alike else match.recording)
    write_whole(out / "recordings.txt", "".join(f"{line}\n" for line in lines).encode())
    write_whole(out / "report.json", (json.dumps(asdict(leakage), indent=1, ensure_ascii=False) + "\n").encode())


def _comment(text: str) -> str:
    return "# " + " ".join(text.split())  # a name may hold line ends


def _compare_images(
    run_dir: Place, units: list[str], seen: "EvaluationImages", distance: int
) -> tuple[int, tuple[ImageMatch, ...]]:
    compared, matches = 0, []
    for unit in units:
        table = read_columns(run_dir / layout.pairs(unit), ["image", "image_uri", "image_sha256"])
        paired = {row["image"]: row for row in table.to_pylist()}
        hashes = dict(_shard_hashes(run_dir, unit))
        if foreign := hashes.keys() - paired.keys():
            raise WorkError(
                f"{run_dir}: unit {unit} has {min(foreign)} in its shard and no pair of it;"
                f" `{spell('verify', run_dir)}`"
            )
        compared += len(hashes)
        for key, (bits, number) in zip(hashes, seen.near.nearest(list(hashes.values())), strict=True):
            same = seen.by_sha256.get(paired[key]["image_sha256"])
            if same is None and bits > distance:
                continue
            match = ImageMatch(
                image=key,
                image_uri=paired[key]["image_uri"],
                evaluation=same or seen.names[number],
                distance=0 if same else bits,
                exact=same is not None,
            )
            matches.append(match)
    return compared, tuple(matches)


def _shard_hashes(run_dir: Place, unit: str) -> Iterator[tuple[str, np.ndarray]]:
    """The key and the hash of every image of a unit's shards."""
    for split in layout.SPLITS:
        shard = run_dir / layout.shard(split, unit)
        if size_of(shard) is None:
            continue  # no image of this unit fell into the split
        try:
            with open_local(shard) as file:
                for member in iter_files(file):
                    key, ending = split_member(member.name)
                    if ending == "jpg":
                        yield key, perceptual_hash(read_member(file, member))
        except (tarfile.TarError, UnreadableImage) as error:
            raise WorkError(
                f"{shard}: damaged ({error}); `{spell('verify', run_dir, '--repair')}` withdraws it"
            ) from error


def _compare_sounds(run_dir: Place, units: list[str], heard: "EvaluationSounds") -> tuple[int, tuple[SoundMatch, ...]]:
    compared, matches = 0, []
    for unit in units:
        table = read_columns(run_dir / layout.clips(unit), ["corpus", "file", "recording", "sha256"])
        files: dict[tuple[str, str, str], list[str]] = {}
        for row in table.to_pylist():
            files.setdefault((row["corpus"], row["file"], row["recording"]), []).append(row["sha256"])
        compared += len(files)
        for (corpus, file, recording), clips in files.items():
            ref = SoundRef(corpus=corpus, file=file, recording=recording, text="", licence="", attribution="")
            if found := heard.match(ref, clips):
                evaluation, by = found
                match = SoundMatch(file=ref.key, recording=recording, clips=len(clips), evaluation=evaluation, by=by)
                matches.append(match)
    return compared, tuple(matches)


class EvaluationImages:
    """An evaluation set's images: names, hashes to search, digests."""

    def __init__(self, place: Place) -> None:
        self.names: list[str] = []
        self.by_sha256: dict[str, str] = {}
        self.unreadable = 0
        hashes: list[np.ndarray] = []
        for found in images_of(place):
            try:
                if isinstance(found, Rejected):
                    raise UnreadableImage(found.reason, found.detail)
                hashes.append(perceptual_hash(found.data))
            except UnreadableImage as error:
                self.unreadable += 1
                log.debug("%s: %s %s", found.key, error.reason, error.detail)
                continue
            self.names.append(found.uri)
            self.by_sha256.setdefault(sha256(found.data).hexdigest(), found.uri)
        if not hashes:
            raise InputError(f"{place}: none of its {self.unreadable} images can be read")
        self.near = NearHashes(hashes)


class EvaluationSounds:
    """An evaluation set's recordings: all their names, and the digests of their clips."""

    def __init__(self, place: Place, config: Config) -> None:
        self.count = self.unreadable = 0
        self.by_name: dict[str, str] = {}
        self.by_sha256: dict[str, str] = {}
        audio = _sounds(place, config.audio)
        for ref, clips in _clips(audio):
            self.count += 1
            self.unreadable += not clips
            for name in names_of(ref):
                self.by_name.setdefault(name, ref.file)
            for clip in clips:
                self.by_sha256.setdefault(clip, ref.file)

    def match(self, ref: SoundRef, clips: list[str]) -> tuple[str, str] | None:
        """The evaluation file that a file of the pool is shared with, and how that is known; the surest way first."""
        for clip in clips:
            if clip in self.by_sha256:
                return self.by_sha256[clip], "samples"
        origin, _, upload = ref.recording.partition("/")
        uploads = {ref.recording, upload} - {""} if origin != ref.corpus else set()
        for by, names in (("upload", uploads), ("name", names_of(ref) - uploads)):
            known = sorted(name for name in names if name in self.by_name and (by == "upload" or _tells(name)))
            if known:
                return self.by_name[known[0]], by
        return None


def _tells(name: str) -> bool:
    return _NUMBER.fullmatch(PurePosixPath(name).stem) is None


def images_of(place: Place) -> Iterator[SourceImage | Rejected]:
    """Every image of a folder's files and tar archives; of its Parquet tables where it has neither."""
    sets: list[FolderImages | WebDatasetImages | ParquetImages] = []
    if list_files(place, IMAGE_SUFFIXES).files:
        sets.append(FolderImages(kind="folder", path=place))
    if list_containers(place, ".tar").files:
        sets.append(WebDatasetImages(kind="webdataset", path=place))
    if not sets and list_containers(place, ".parquet").files:
        sets.append(ParquetImages(kind="parquet", path=place))
    if not sets:
        raise InputError(f"{place}: expected evaluation images, found none, nor a .tar or .parquet file of them")
    for images in sets:
        for refs in list_images(images, seed=0):
            yield from read_images(images, refs, seed=0)


def _sounds(place: Place, pool: Audio) -> Audio:
    """The recordings of a folder's files and tar archives, or of its Parquet tables, to be cut as a pool was."""
    sources: list[FolderSounds | WebDatasetSounds | ParquetSounds] = []
    if list_files(place, SOUND_SUFFIXES).files:
        sources.append(FolderSounds(kind="folder", path=place, name=NAME))
    if list_containers(place, ".tar").files:
        sources.append(WebDatasetSounds(kind="webdataset", path=place, name=f"{NAME}-tar"))
    if not sources and list_containers(place, ".parquet").files:
        sources.append(ParquetSounds(kind="parquet", path=place, name=NAME))
    if not sources:
        raise InputError(f"{place}: expected evaluation sounds, found none, nor a .tar or .parquet file of them")
    return pool.model_copy(update={"sources": tuple(sources)})


def _clips(audio: Audio) -> Iterator[tuple[SoundRef, tuple[str, ...]]]:
    """Every recording with the sha256 of its clips, cut as a pool cuts them; none where it cannot be read."""
    for ref in list_sounds(audio):
        try:
            if ref.refused:
                yield ref, ()
                continue
            sound = open_sound(audio.sources, ref.corpus, ref.file)
            cuts = cut_recording(sound, audio.sample_rate, audio.clip_seconds, rules_of(audio))
            yield ref, tuple(pcm_sha256(cut.samples) for cut in cuts)
        except UnreadableSound:
            yield ref, ()


def main(argv: Sequence[str] | None = None, prog: str = "sonify leakage") -> int:
    """Run the command and return its exit code; it is `sonify leakage` as well."""
    parser = Parser(prog=prog, description="Name what a run shares with evaluation sets.")
    parser.add_argument("run_dir", type=argument_of(to_run_dir), metavar="RUN", help="the folder of a run")
    parser.add_argument("--images", type=argument_of(to_place), help="evaluation images: a folder of them or of tars")
    parser.add_argument("--sounds", type=argument_of(to_place), help="evaluation sounds: a folder")
    parser.add_argument("--distance", type=int, default=DISTANCE, help="bits in which near-duplicate images may differ")
    parser.add_argument(
        "--out", type=argument_of(to_folder), required=True, help="folder for the report and the exclusion lists"
    )
    parser.add_argument("--verbose", action="store_true", help="say more")
    arguments = parser.parse_args(argv)
    return run_command("sonify", lambda: _run(arguments), verbose=arguments.verbose)


def _run(arguments: argparse.Namespace) -> None:
    require("imagehash", extra="publish")
    if arguments.images is None and arguments.sounds is None:
        raise InputError("leakage: expected evaluation sets to compare with: --images DIR, --sounds DIR, or both")
    if not 0 <= arguments.distance <= HASH_BITS:
        raise InputError(f"--distance: expected 0 to {HASH_BITS} bits, found {arguments.distance}")
    found = find_leakage(arguments.run_dir, arguments.images, arguments.sounds, arguments.distance)
    write_leakage(found, arguments.out)
    sys.stdout.write(f"{summary(found)}\n")
