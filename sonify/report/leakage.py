"""What a run shares with evaluation sets: images that look the same, and recordings that are the same."""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sonify import layout
from sonify.engine.record import config_of_run
from sonify.errors import InputError, WorkError
from sonify.io.places import open_local, size_of
from sonify.io.tables import read_columns
from sonify.io.tars import iter_files, read_member
from sonify.io.write import write_whole
from sonify.media.likeness import HASH_BITS, perceptual_hash
from sonify.media.pixels import UnreadableImage
from sonify.report.evaluation import EvaluationImages, EvaluationSounds
from sonify.rows import SoundRef
from sonify.run import plan_run
from sonify.stores import Place

# Distances are even, as half of a hash's bits are set. At 6 no two different photographs were taken for one
# (`media.likeness`); at 8 and 10 more crops are found, and in millions of images some that only look alike.
DISTANCE = 6


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
            raise InputError(f"{run_dir}: no unit of {stage} is done; make them with `sonify run --config FILE`")
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


def write_leakage(leakage: Leakage, out: Path) -> None:
    """Write `report.json`, and `images.txt` and `recordings.txt` for `images.exclude` and `audio.exclude`.

    Recordings that are only named alike stand in the list as comments.

    Raises:
        InputError: the folder cannot be written to, or holds something else.
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
    run_dir: Place, units: list[str], seen: EvaluationImages, distance: int
) -> tuple[int, tuple[ImageMatch, ...]]:
    compared, matches = 0, []
    for unit in units:
        table = read_columns(run_dir / layout.pairs(unit), ["image", "image_uri", "image_sha256"])
        paired = {row["image"]: row for row in table.to_pylist()}
        hashes = dict(_shard_hashes(run_dir, unit))
        if foreign := hashes.keys() - paired.keys():
            raise WorkError(
                f"{run_dir}: unit {unit} has {min(foreign)} in its shard and no pair of it; `sonify verify`"
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
                    if member.name.endswith(".jpg"):
                        yield member.name.removesuffix(".jpg"), perceptual_hash(read_member(file, member))
        except (tarfile.TarError, UnreadableImage) as error:
            raise WorkError(f"{shard}: damaged ({error}); `sonify verify` with --repair withdraws it") from error


def _compare_sounds(run_dir: Place, units: list[str], heard: EvaluationSounds) -> tuple[int, tuple[SoundMatch, ...]]:
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
