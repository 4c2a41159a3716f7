"""A picture for a page: held-out sounds, what a model makes of them, and beside each the nearest training photograph.

    python -m benchmarks.learning.recall --data DIR --table FILE --out recall.jpg [--steps N]

Trains one small model on the photographs of FILE (`file,class`, below `DIR/photos`; the classes are the six of
`benchmarks.learning`) with recordings of their classes, all folds but the fifth, and paints recordings of the fifth.
Where the photographs may be published, so may the picture. What it shows is recall and not generation: with so few
photographs a model learns which of them goes with a sound, and the nearest one is mostly the one that is painted.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.learning.recall", extra="dev"))

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.learning.bench import Bench, open_bench
from benchmarks.learning.collection import CLASSES, Photo, read_squares
from benchmarks.learning.judging import GUIDANCE, distances, load_pipeline, make_gallery, paint_latents
from benchmarks.learning.pairing import balanced, pair_by_class
from benchmarks.learning.training import SIDE_PX, SMALL, encode_photos, training_config, write_features
from sonify.errors import InputError
from sonify.features.vae import decode
from sonify.io.write import write_whole
from sonify.terminal import Parser, run_command
from train import pixart
from train.pictures import make_grid

FOLD = 5  # that is held out
SOUNDS = 2  # of each class
STEPS = 1500
JPEG_QUALITY = 65  # below 150 kB


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="benchmarks.learning.recall", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True, help="file,class of each photograph")
    parser.add_argument("--out", type=Path, required=True, help="the picture; what is trained lies beside it")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args(argv)

    def work() -> None:
        shown = show(arguments.data, arguments.table, arguments.out, arguments.steps)
        print(json.dumps({"name": "recall", "picture": str(arguments.out), **shown}))

    return run_command("benchmarks.learning.recall", work)


def show(data: Path, table: Path, out: Path, steps: int) -> Mapping[str, float]:
    """Train, where that is still to do, and write the picture; how often the nearest photograph is of the sound's
    class, over all held-out recordings of the classes that are there."""
    photos = read_table(table)
    bench = open_bench(data, out.with_suffix(""))
    folder = data / "photos"
    training = [one for one in bench.recordings if one.fold != FOLD]
    pairs = pair_by_class(balanced(photos, seed=FOLD), bench.sounds, training, bench.ear, seed=FOLD)
    features = write_features(pairs, folder, bench.vae, bench.vae_folder, bench.out / "features")
    config = training_config(features, bench.vae_folder, bench.out / f"train-{steps}", steps, SMALL)
    pixart.train(config)
    recordings, pixels_RHWC, nearest_R = _painted(bench, config.run_dir, folder, photos)
    write_picture(recordings, pixels_RHWC, [photos[n] for n in nearest_R], folder, out)
    same = [name == photos[n].name for (name, _), n in zip(recordings, nearest_R, strict=True)]
    return {
        "photographs": len(photos),
        "recordings": len(same),
        "nearest_is_of_its_class": round(float(np.mean(same)), 4),
    }


def read_table(table: Path) -> list[Photo]:
    """The rows of a table of photographs.

    Raises:
        InputError: a class is none of the six, or one of them has no photograph.
    """
    with table.open(newline="") as file:
        photos = [Photo(file=row["file"], name=row["class"], label=row["class"]) for row in csv.DictReader(file)]
    found = {photo.name for photo in photos}
    if found != set(CLASSES):
        wrong = sorted(found ^ set(CLASSES))
        raise InputError(f"{table}: expected photographs of {', '.join(CLASSES)}, and found none or others: {wrong}")
    return photos


def _painted(
    bench: Bench, run_dir: Path, folder: Path, photos: Sequence[Photo]
) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Of each held-out recording its class and name, its picture, and which photograph is nearest."""
    latents_NCHW = encode_photos(bench.vae, [folder / photo.file for photo in photos])
    gallery = make_gallery(bench.vae, bench.eye, latents_NCHW, [(photo.file, photo.name) for photo in photos])
    held = [one for one, of in zip(bench.heard, bench.recordings, strict=True) if of.fold == FOLD]
    latents_RCHW = paint_latents(
        load_pipeline(run_dir / "pipeline"), np.stack([one.audio_TD for one in held]), 0, GUIDANCE
    )
    pixels_RHWC = decode(bench.vae, latents_RCHW)
    features_RF = np.stack([bench.eye.look(pixels_HWC).features_F for pixels_HWC in pixels_RHWC])
    _, _, nearest_R = distances(gallery, latents_RCHW.float().cpu().numpy(), features_RF)
    return [(one.names[0], one.recordings[0]) for one in held], pixels_RHWC, nearest_R


def write_picture(
    recordings: Sequence[tuple[str, str]], pixels_RHWC: np.ndarray, nearest: Sequence[Photo], folder: Path, out: Path
) -> None:
    """A row for each class: pictures of its first uploads, each with the nearest photograph at its right."""
    rows = [n for name in CLASSES for n in _first_uploads(recordings, name)]
    squares = read_squares([folder / photo.file for photo in nearest], SIDE_PX)
    images = [Image.fromarray(one) for n in rows for one in (pixels_RHWC[n], squares[n])]
    captions = [
        text
        for n in rows
        for text in (
            f"heard: {recordings[n][0].replace('_', ' ')}, {Path(recordings[n][1]).stem}",
            "nearest photograph",
        )
    ]
    grid = out.with_suffix(".png")
    grid.parent.mkdir(parents=True, exist_ok=True)
    make_grid(images, captions, grid, columns=2 * SOUNDS)
    if out != grid:
        buffer = io.BytesIO()
        Image.open(grid).convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True, progressive=True)
        write_whole(out, buffer.getvalue())
        grid.unlink()


def _first_uploads(recordings: Sequence[tuple[str, str]], name: str) -> list[int]:
    """The first recordings of a class that are not takes of one upload."""
    of_upload: dict[str, int] = {}
    for number, (of, recording) in enumerate(recordings):
        if of == name:
            of_upload.setdefault("-".join(recording.split("-")[:2]), number)
    return list(of_upload.values())[:SOUNDS]
