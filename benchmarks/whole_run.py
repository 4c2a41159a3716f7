"""The whole run over 10,000 images against the script that a user would write.

    python -m benchmarks.whole_run

The script: a process pool, each use of a clip read, resampled and measured by pyloudnorm, webdataset's ShardWriter.
Ours includes Ray's start and the pool. Two workers each, images of 0.3 megapixels; median of three. Floor 1.5.
"""

import csv
import io
import json
import multiprocessing
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pyloudnorm
import soundfile
import soxr
from PIL import Image
from webdataset.writer import ShardWriter

from benchmarks.inputs import SUBJECTS, config_for, write_photos, write_sounds
from benchmarks.measure import interleaved, report
from sonify.io.write import remove
from sonify.running import run

IMAGES, UNIT, WORKERS = 10_000, 500, 2
SAMPLE_RATE_HZ = 16_000


@cache
def sounds_by_text(root: Path) -> dict[str, list[Path]]:
    """The recordings of each subject."""
    table: dict[str, list[Path]] = {}
    with (root / "sounds" / "metadata.csv").open() as file:
        for row in csv.DictReader(file):
            table.setdefault(row["text"], []).append(root / "sounds" / row["file"])
    return table


def use_of_a_clip(path: Path) -> np.ndarray:
    """Read, resample and bring to a target loudness, as at each use."""
    samples, rate = soundfile.read(path)
    samples = soxr.resample(samples, rate, SAMPLE_RATE_HZ)
    loudness = pyloudnorm.Meter(SAMPLE_RATE_HZ).integrated_loudness(samples)
    return samples * 10 ** ((random.uniform(-32, -28) - loudness) / 20)


def script_block(arguments: tuple[Path, int, list[tuple[str, str]]]) -> int:
    """One block of the script: find the subjects, mix, write a shard."""
    root, number, rows = arguments
    table = sounds_by_text(root)
    with ShardWriter(str(root / "theirs" / f"{number:03d}-%06d.tar"), maxcount=UNIT, verbose=0) as writer:
        for name, caption in rows:
            data = (root / "photos" / name).read_bytes()
            Image.open(io.BytesIO(data)).load()  # as everybody checks that an image is one
            named = [subject for subject in SUBJECTS if subject in caption]
            clips = [use_of_a_clip(random.choice(table[subject])) for subject in named]
            mix = sum(clips[1:], clips[0])
            mix /= max(1.0, float(np.abs(mix).max()))
            buffer = io.BytesIO()
            soundfile.write(buffer, mix, SAMPLE_RATE_HZ, format="FLAC")
            key = name.removesuffix(".jpg")
            record = json.dumps({"caption": caption, "concepts": named})
            writer.write({"__key__": key, "jpg": data, "flac": buffer.getvalue(), "json": record.encode()})
    return len(rows)


def script(root: Path) -> None:
    """The user's script."""
    shutil.rmtree(root / "theirs", ignore_errors=True)
    (root / "theirs").mkdir()
    with (root / "photos" / "captions.csv").open() as file:
        rows = [(row["file"], row["caption"]) for row in csv.DictReader(file)]
    blocks = [(root, n, rows[start : start + UNIT]) for n, start in enumerate(range(0, len(rows), UNIT))]
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        assert sum(pool.imap_unordered(script_block, blocks)) == len(rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root / "photos", IMAGES)
        write_sounds(root / "sounds")
        config = config_for(root, "ours", UNIT, {"kind": "ray", "workers": WORKERS})

        def ours() -> None:
            remove(config.run_dir)
            counts = run(config)
            assert counts["render"].rows_out == IMAGES, counts

        ours_sec, theirs_sec = interleaved(ours, lambda: script(root), rounds=3)
        report("whole_run", IMAGES / ours_sec, IMAGES / theirs_sec, "images/s", images=IMAGES, workers=WORKERS)


if __name__ == "__main__":
    main()
