"""Are a model's pictures copies of what it was trained on? Held against real pictures that it was not trained on.

    python -m eval.memorisation --manifest FOLDER --suite SUITE --training RUN|DIR --held-out RUN|DIR --out DIR

The training images are those of a run of `sonify` (its training split) or of a folder. The held-out ones are of the
same source: a run's validation split, or a folder. Where they lie in folders that are named as the suite's labels are,
they are weighted so that their labels are as frequent as those of the generated pictures. `--pairs` names what each
sound of the suite was trained with: a CSV `item,image`. It is not taken from a run's own scenes: in these a recording
is heard with many pictures of like things, and one of many is found by chance more often than another's one reference.

OUT/memorisation.json  what was found: `Memorisation`
OUT/memorisation.png   the forty nearest: the generated picture, the training image, how they correlate
OUT/nearest.csv        each generated picture with its nearest training image

N  pictures, H  held-out images, T  training images, D  width of a vector
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.memorisation", extra="eval"))

import argparse
import csv
import io
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from eval.figures import image_grid
from eval.leakage import DISTANCE, images_of
from eval.metrics.copying import (
    Excess,
    Near,
    OwnPair,
    compare_own,
    find_nearest,
    label_weights,
    look_up,
    near_excess,
    ratio_excess,
)
from eval.metrics.distributions import authentic_percent, c_t
from eval.pictures import Made, read_made
from eval.report import printable
from eval.run import choose_towers
from eval.study import check_out, write_study
from eval.suites.suite import Suite, read_suite
from eval.towers.opened import open_judges
from eval.towers.tower import Judges, Tower
from sonify import layout
from sonify.errors import InputError, require
from sonify.io.places import is_file, open_local, stems
from sonify.io.tars import iter_files, read_member
from sonify.io.write import write_whole
from sonify.keys import escape_key, split_member
from sonify.media.likeness import NearHashes, perceptual_hash
from sonify.media.pixels import UnreadableImage, decode_square
from sonify.rows import Rejected
from sonify.stores import Place, to_folder, to_place
from sonify.terminal import Parser, argument_of, run_command

log = logging.getLogger(__name__)

Value = TypeVar("Value")

NAME = "memorisation"
NEAREST = "nearest.csv"
SIDE_PX = 512  # of the middle square of every picture, as references are prepared
BATCH = 32
FINE, FINE_HELD_OUT = 0.001, 10_000  # with so many held-out images a finer threshold can be told
FEW_HELD_OUT = 100  # below, the threshold lies at their very highest
MOST_FOR_AUTHENTIC = 20_000  # training images: each is compared with every other
SHOWN, SHOWN_IN_ROW, CORRELATED_PX = 40, 5, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Real:
    """Real images: their names, vectors of length 1, perceptual hashes, and how many more could not be read."""

    names: tuple[str, ...]
    vectors_ND: np.ndarray
    hashes: tuple[np.ndarray, ...]
    unreadable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memorisation:
    """What was compared and what was found; shares are of pictures, tests are of recordings.

    `verdict` is `copies` (more of them than held-out images explain, by nearness and by its ratio), `pairs` (not that,
    but sounds give back the pictures that they were trained with), `typical` (near, but to many images alike), or `none
    found`. `authentic_percent` and `copying_z` are what others print; they decide nothing, as they miss copies that are
    few (of 60 in 400 the latter says nothing). `detectable` is the share of recordings that, all copies by both, would
    have made the verdict `copies`; None where not even all of them would.
    """

    model: str
    model_sha256: str
    suite: str
    suite_digest: str
    tower: str
    tower_sha256: str
    preprocessing: str
    training_images: int
    held_out_images: int
    held_out_left_out: int  # as they look like a training image
    unreadable_images: int
    labels_matched: bool
    labels_without_held_out: tuple[str, ...]
    images: int
    recordings: int
    nearness: Excess
    nearness_fine: Excess | None
    ratio: Excess
    own_pair: OwnPair | None
    authentic_percent: float | None
    copying_z: float
    detectable: float | None
    verdict: str
    notes: tuple[str, ...]


def read_real(place: Place, split: str) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each image: of a run those of a split, by key; of a folder all, as they are named.

    Raises:
        InputError: there is none.
    """
    if not is_file(place / layout.RUN):
        for found in images_of(place):
            yield (found.key, b"") if isinstance(found, Rejected) else (found.uri, found.data)
        return
    units = stems(place / layout.SHARDS / split, ".tar")
    if not units:
        raise InputError(f"{place}: has no rendered image of the split {split!r}; expected a run that is rendered")
    for unit in units:
        with open_local(place / layout.shard(split, unit)) as file:
            for member in iter_files(file):
                key, ending = split_member(member.name)
                if ending == "jpg":
                    yield key, read_member(file, member)


def embed_real(images: Iterable[tuple[str, bytes]], tower: Tower) -> Real:
    """Look at the middle square of each; what cannot be read is counted."""
    names: list[str] = []
    hashes: list[np.ndarray] = []
    blocks: list[np.ndarray] = []
    unreadable = 0
    for batch in _batches(images):
        squares: list[Image.Image] = []
        for name, data in batch:
            try:
                square, bits = _square(data), perceptual_hash(data)
            except UnreadableImage as error:
                unreadable += 1
                log.debug("%s: %s %s", name, error.reason, error.detail)
                continue
            names.append(name)
            squares.append(square)
            hashes.append(bits)
        if squares:
            blocks.append(_embed(tower, squares))
    vectors_ND = np.concatenate(blocks) if blocks else np.zeros((0, 0), np.float32)
    return Real(names=tuple(names), vectors_ND=vectors_ND, hashes=tuple(hashes), unreadable=unreadable)


def embed_files(paths: Sequence[Path], tower: Tower) -> np.ndarray:
    """The vectors (N, D) of picture files, which are treated as the real images are."""

    def open_square(path: Path) -> Image.Image:
        try:
            return _square(path.read_bytes())
        except (OSError, UnreadableImage) as error:
            raise InputError(f"{path}: cannot be read as a picture ({error})") from error

    return np.concatenate([_embed(tower, [open_square(path) for path in some]) for some in _batches(paths)])


def _batches(values: Iterable[Value]) -> Iterator[list[Value]]:
    left = iter(values)
    return iter(lambda: list(islice(left, BATCH)), [])


def _square(data: bytes) -> Image.Image:
    return Image.fromarray(decode_square(data, SIDE_PX))


def _embed(tower: Tower, pictures: Sequence[Image.Image]) -> np.ndarray:
    """Vectors of length 1, of the features alone where there are logits too."""
    assert tower.images is not None, tower.name
    found = np.asarray(tower.images.embed(pictures))
    if found.ndim != 2 or len(found) != len(pictures) or found.shape[1] <= tower.logits:
        raise InputError(f"{tower.name}: expected a vector for each of {len(pictures)} pictures, found {found.shape}")
    features = found[:, : found.shape[1] - tower.logits].astype(np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.all(np.isfinite(lengths) & (lengths > 0)):
        raise InputError(f"{tower.name}: gives vectors that are zero or not finite; its weights are damaged")
    return (features / lengths).astype(np.float32)


def choose_tower(judges: Judges) -> Tower:
    """SSCD, which tells copies, or else DINOv2, which sees what is shown.

    Raises:
        InputError: there is neither.
    """
    tower = judges.sscd or judges.dinov2
    if tower is None or tower.images is None:
        raise InputError("towers: expected sscd (a detector of copies) or dinov2, found neither; give --towers FILE")
    return tower


def find_memorisation(
    suite: Suite,
    made: Made,
    *,
    training: Place,
    held_out: Place,
    judges: Judges,
    pairs: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Memorisation, Real, Near]:
    """Compare a model's pictures with its training images; returns these and what is nearest to each picture, too.

    Args:
        suite: what the pictures were made for.
        made: the pictures.
        training: a run or a folder of images.
        held_out: likewise, of the same source.
        judges: of them, SSCD or DINOv2 looks.
        pairs: by item, the names of the training images that its sound was trained with.

    Raises:
        InputError: no image can be read, a name in `pairs` is none, or the held-out images are all training images.
    """
    if not made.pictures:
        raise InputError(f"{made.folder}: none of its pictures can be used")
    tower = choose_tower(judges)
    train = _some(embed_real(read_real(training, "train"), tower), training)
    held = _some(embed_real(read_real(held_out, "validation"), tower), held_out)
    apart, left_out = _apart(held, train)
    if not apart.names:
        raise InputError(f"{held_out}: each of its {left_out} images looks like a training image; expected others")
    pictures = made.pictures
    made_ND = embed_files([picture.path for picture in pictures], tower)
    recordings = [picture.item.recording for picture in pictures]
    near, near_H = look_up(train.vectors_ND, made_ND), look_up(train.vectors_ND, apart.vectors_ND)
    matched = label_weights([_label(name) for name in apart.names], [picture.item.labels for picture in pictures])
    weights_H, without = matched or (np.ones(len(apart.names)), ())
    own = _own_pairs(suite, made, made_ND, train, tower, pairs) if pairs else None
    nearness, ratio = (
        near_excess(near, recordings, near_H, weights_H),
        ratio_excess(near, recordings, near_H, weights_H),
    )
    is_fine, is_small = len(apart.names) >= FINE_HELD_OUT, len(train.names) <= MOST_FOR_AUTHENTIC
    found = Memorisation(
        model=made.model,
        model_sha256=made.model_sha256,
        suite=suite.name,
        suite_digest=suite.digest,
        tower=tower.name,
        tower_sha256=tower.sha256,
        preprocessing=f"middle square, {SIDE_PX} px, then {tower.images.preprocessing if tower.images else ''}",
        training_images=len(train.names),
        held_out_images=len(apart.names),
        held_out_left_out=left_out,
        unreadable_images=train.unreadable + held.unreadable,
        labels_matched=matched is not None,
        labels_without_held_out=without,
        images=len(pictures),
        recordings=len(set(recordings)),
        nearness=nearness,
        nearness_fine=near_excess(near, recordings, near_H, weights_H, FINE) if is_fine else None,
        ratio=ratio,
        own_pair=own,
        authentic_percent=authentic_percent(train.vectors_ND, made_ND) if is_small else None,
        copying_z=c_t(train.vectors_ND, apart.vectors_ND, made_ND),
        detectable=detectable_of(nearness, ratio),
        verdict=_verdict(nearness, ratio, own),
        notes=(),
    )
    return replace(found, notes=tuple(_notes(found, judges))), train, near


def _some(real: Real, place: Place) -> Real:
    if len(real.names) < 2:
        raise InputError(f"{place}: expected two images at least, {len(real.names)} of its images can be read")
    return real


def _apart(held: Real, train: Real) -> tuple[Real, int]:
    """The held-out images that do not look like a training image, and how many do."""
    kept = [n for n, (bits, _) in enumerate(NearHashes(train.hashes).nearest(held.hashes)) if bits > DISTANCE]
    apart = Real(
        names=tuple(held.names[n] for n in kept),
        vectors_ND=held.vectors_ND[kept],
        hashes=tuple(held.hashes[n] for n in kept),
        unreadable=held.unreadable,
    )
    return apart, len(held.names) - len(kept)


def _label(name: str) -> str:
    """The folder that an image lies in first of all; none where it lies in none."""
    return name.partition("/")[0] if "/" in name else ""


def _own_pairs(
    suite: Suite,
    made: Made,
    made_ND: np.ndarray,
    train: Real,
    tower: Tower,
    pairs: Mapping[str, Sequence[str]],
) -> OwnPair | None:
    """Put the references of sounds that were not trained with among the training images, and see who finds its own."""
    numbers = {name: n for n, name in enumerate(train.names)}
    own = {item: frozenset(_number(numbers, name, item) for name in names) for item, names in pairs.items()}
    paths = [
        (item.id, suite.folder / one.file) for item in suite.items if item.id not in own for one in item.references
    ]
    strange = NearHashes(train.hashes).nearest([perceptual_hash(path.read_bytes()) for _, path in paths])
    added = [one for one, (bits, _) in zip(paths, strange, strict=True) if bits > DISTANCE]
    rows = defaultdict(set)
    for n, (item, _) in enumerate(added, start=len(train.names)):
        rows[item].add(n)
    if not added:
        return None
    all_TD = np.concatenate([train.vectors_ND, embed_files([path for _, path in added], tower)])
    sought = {item: frozenset(found) for item, found in rows.items()} | own
    asked = [n for n, picture in enumerate(made.pictures) if picture.item.id in sought]
    if not asked:
        return None
    nearest = find_nearest(all_TD, made_ND[asked], 1)[1][:, 0]
    items = [made.pictures[n].item for n in asked]
    return compare_own(
        [int(row) in sought[item.id] for row, item in zip(nearest, items, strict=True)],
        [item.id in own for item in items],
        [item.recording for item in items],
        chance=float(np.mean([len(sought[item.id]) for item in items]) / len(all_TD)),
    )


def _number(numbers: Mapping[str, int], name: str, item: str) -> int:
    """The training image of that name, which in a run goes by its key."""
    found = numbers.get(name, numbers.get(escape_key(name)))
    if found is None:
        raise InputError(f"--pairs: item {item}: the training images have none that is called {name[:200]!r}")
    return found


def detectable_of(nearness: Excess, ratio: Excess) -> float | None:
    """The share from which on the verdict is `copies`: it takes both."""
    if nearness.detectable is None or ratio.detectable is None:
        return None
    return max(nearness.detectable, ratio.detectable)


def _verdict(nearness: Excess, ratio: Excess, own: OwnPair | None) -> str:
    if nearness.is_more and ratio.is_more:
        return "copies"
    if own is not None and own.difference.low is not None and own.difference.low > 0:
        return "pairs"
    return "typical" if nearness.is_more else "none found"


def _notes(found: Memorisation, judges: Judges) -> Iterator[str]:
    """What a reader must know."""
    if judges.sscd is None:
        yield f"{found.tower} sees what is shown: what is typical counts as near; SSCD tells copies"
    if found.held_out_images < FEW_HELD_OUT:
        yield f"only {found.held_out_images} held-out images: what passes the thresholds is roughly known"
    if not found.labels_matched:
        yield "the held-out images have no label of the suite's: whether they show the same things is not known"
    if found.labels_without_held_out:
        yield f"without held-out images: {', '.join(found.labels_without_held_out[:20])}"
    if found.own_pair is None:
        yield "sounds that were trained with are not compared with others: that takes --pairs, and references of others"
    if found.detectable is None:
        yield f"{found.recordings} recordings: not even copies alone would be found; expected more"
    if found.authentic_percent is None:
        yield f"authentic_percent: not computed for more than {MOST_FOR_AUTHENTIC} training images"


def read_pairs(path: Path, suite: Suite) -> dict[str, list[str]]:
    """What each item was trained with, by a table `item,image`.

    Raises:
        InputError: it is none, or names an item that the suite has not.
    """
    known = {item.id for item in suite.items}
    pairs: dict[str, list[str]] = defaultdict(list)
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        if not {"item", "image"} <= set(reader.fieldnames or ()):
            raise InputError(f"{path}: expected the columns item,image, found {','.join(reader.fieldnames or ())!r}")
        for row in reader:
            if row["item"] not in known or not row["image"]:
                what = f"{row['item']!r} with {row['image']!r}"[:200]
                raise InputError(f"{path}, line {reader.line_num}: expected an item of the suite and an image: {what}")
            pairs[row["item"]].append(row["image"])
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({getattr(error, 'strerror', None) or error})") from error
    if not pairs:
        raise InputError(f"{path}: names no pair")
    return dict(pairs)


def correlate(picture: Image.Image, other: Image.Image) -> float:
    """The correlation of two pictures' brightness at 64 pixels: 1 is the same picture, and 0 where one has no shape."""
    side = (CORRELATED_PX, CORRELATED_PX)
    one, two = (
        np.asarray(image.convert("L").resize(side, Image.Resampling.BICUBIC), np.float64).ravel()
        for image in (picture, other)
    )
    one, two = one - one.mean(), two - two.mean()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / lengths if lengths else 0.0


def contact_sheet(made: Made, train: Real, near: Near, training: Place, title: str) -> Figure:
    """The forty pictures that are nearest to a training image, each beside it."""
    highest = np.argsort(-near.cosine_N, kind="stable")[:SHOWN].tolist()
    wanted = {train.names[near.row_N[n]] for n in highest}
    data = dict(islice(((name, data) for name, data in read_real(training, "train") if name in wanted), len(wanted)))
    images: list[Image.Image] = []
    captions: list[str] = []
    for n in highest:
        picture, name = made.pictures[n], train.names[near.row_N[n]]
        pair = _square(picture.path.read_bytes()), _square(data[name])
        images += pair
        captions += [
            f"{picture.item.id[-24:]}, seed {picture.seed}",
            f"cos {near.cosine_N[n]:.3f}, ratio {near.ratio_N[n]:.2f}, NCC {correlate(*pair):.2f}",
        ]
    width = 2 * SHOWN_IN_ROW
    starts = range(0, len(images), width)
    return image_grid(
        [images[at : at + width] for at in starts],
        [f"{at // 2 + 1} to {min(at // 2 + SHOWN_IN_ROW, len(highest))}" for at in starts],
        [captions[at : at + width] for at in starts],
        title,
    )[0]


def nearest_table(made: Made, train: Real, near: Near, found: Memorisation) -> bytes:
    """Each picture with its nearest training image, the nearest first."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("item", "seed", "image", "nearest", "cosine", "ratio", "near", "alone"))
    for n in np.argsort(-near.cosine_N, kind="stable").tolist():
        picture, cosine, ratio = made.pictures[n], near.cosine_N[n], near.ratio_N[n]
        image = picture.path.relative_to(made.folder).as_posix()
        marks = int(cosine > found.nearness.threshold), int(ratio < found.ratio.threshold)
        row = (picture.item.id, picture.seed, image, train.names[near.row_N[n]], f"{cosine:.6f}", f"{ratio:.6f}")
        writer.writerow((*row, *marks))
    return buffer.getvalue().encode("utf-8", "surrogateescape")


def summary(found: Memorisation) -> str:
    """What was found, in a few lines."""
    lines = [f"{found.model}: {found.verdict} (by {found.tower}; {found.recordings} recordings, {found.images} images)"]
    for name, one in (("nearer", found.nearness), ("alone with it", found.ratio)):
        lines.append(
            f"  {name} than 99 % of {found.held_out_images} held-out images: {100 * one.share:.1f} %"
            f" (p {one.p:.2g} against 1 %, {one.p_held_out:.2g} against these)"
        )
    if found.own_pair is not None:
        own, by = found.own_pair, found.own_pair.difference
        interval = f" [{by.low:.3f}, {by.high:.3f}]" if by.low is not None and by.high is not None else ""
        lines.append(f"  own image nearest: {own.seen:.3f} seen, {own.unseen:.3f} unseen; {by.value:+.3f}{interval}")
    return "\n".join([*lines, *(f"  {note}" for note in found.notes)])


def main(argv: Sequence[str] | None = None, prog: str = "eval.memorisation") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Say whether a model's pictures are copies of what it was trained on.")
    add = parser.add_argument
    add("--manifest", type=argument_of(to_folder), required=True, metavar="FOLDER", help="the pictures")
    add("--suite", type=argument_of(to_folder), required=True, help="what they were made for")
    add("--training", type=argument_of(to_place), required=True, metavar="RUN|DIR", help="the training images")
    add("--held-out", type=argument_of(to_place), required=True, metavar="RUN|DIR", help="others of the same source")
    add("--pairs", type=Path, metavar="CSV", help="item,image: what each sound was trained with")
    add("--towers", metavar="FILE", help="networks that judge (default: those of the suite)")
    add("--out", type=argument_of(to_folder), required=True, help="folder for what is found")
    arguments = parser.parse_args(argv)
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    require("imagehash", extra="eval")
    suite = read_suite(arguments.suite)
    made = read_made(suite, arguments.manifest)
    pairs = read_pairs(arguments.pairs, suite) if arguments.pairs else None
    judges = open_judges(choose_towers(suite, arguments.towers), ("sscd", "dinov2"))
    check_out(arguments.out)
    found, train, near = find_memorisation(
        suite,
        made,
        training=arguments.training,
        held_out=arguments.held_out,
        judges=judges,
        pairs=pairs,
    )
    title = f"{made.model}: {found.verdict}. Pictures and the training images that are nearest to them"
    figure = contact_sheet(made, train, near, arguments.training, title)
    write_whole(arguments.out / NEAREST, nearest_table(made, train, near, found))
    write_study(arguments.out, NAME, {"memorisation": found}, figure)
    sys.stdout.write(f"{printable(summary(found))}\n")
