"""The pool stage against the script that a user would write, both in one process.

    python -m benchmarks.pool

The script reads with soundfile, takes the mean of the channels, resamples with soxr, cuts, measures each clip with
pyloudnorm and saves samples and a table. Ours is `sonify pool` with the local engine: listing, commits and hashes
included. Stereo recordings of 3 to 20 seconds at 44.1 kHz, as FLAC files and as members of archives.
Prints two JSON lines; the rate counts recordings.
"""

import csv
import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyloudnorm
import soundfile
import soxr

from benchmarks.inputs import RECORDING_RATE_HZ, write_photos
from benchmarks.measure import interleaved, report
from sonify import layout
from sonify.config import Config, make_config
from sonify.io.places import load_array, stems
from sonify.io.write import remove
from sonify.running import run

RECORDINGS, IN_ARCHIVE = 200, 50
SAMPLE_RATE_HZ = 16_000
CLIP_SAMPLES = 5 * SAMPLE_RATE_HZ


def write_recordings(root: Path) -> None:
    """Write `root/files/NNNN.flac` and `root/archives/NN.tar` of the same."""
    rng = np.random.default_rng(0)
    for folder in ("files", "archives"):
        (root / folder).mkdir()
    for n in range(RECORDINGS):
        frames = round(rng.uniform(3, 20) * RECORDING_RATE_HZ)
        # white noise with some of brown: FLAC packs it a little
        noise = rng.standard_normal((frames, 2), dtype=np.float32)
        samples = noise + 0.1 * np.cumsum(noise - noise.mean(axis=0), axis=0)
        samples *= 10 ** rng.uniform(-1, -0.1) / np.abs(samples).max()
        soundfile.write(root / "files" / f"{n:04d}.flac", samples, RECORDING_RATE_HZ)
        with tarfile.open(root / "archives" / f"{n // IN_ARCHIVE:02d}.tar", "a") as archive:
            archive.add(root / "files" / f"{n:04d}.flac", arcname=f"{n:04d}.flac")


def config_for(root: Path, kind: str, folder: str) -> Config:
    return make_config(
        {
            "run_dir": str(root / "ours"),
            "images": {"kind": "folder", "path": str(root / "photos"), "validation": 0},
            "audio": {"sources": [{"kind": kind, "path": str(root / folder)}], "validation": 0},
            "engine": {"kind": "local"},
        }
    )


def read_files(root: Path) -> Iterator[tuple[np.ndarray, int]]:
    for path in sorted((root / "files").iterdir()):
        yield soundfile.read(path)


def read_archives(root: Path) -> Iterator[tuple[np.ndarray, int]]:
    for path in sorted((root / "archives").iterdir()):
        with tarfile.open(path) as archive:
            for member in archive:
                opened = archive.extractfile(member)
                assert opened is not None
                yield soundfile.read(io.BytesIO(opened.read()))


def script(root: Path, recordings: Iterator[tuple[np.ndarray, int]]) -> int:
    """The user's script; returns the number of clips."""
    out = root / "theirs"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    meter = pyloudnorm.Meter(SAMPLE_RATE_HZ)
    clips = 0
    with (out / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        for number, (samples, rate_hz) in enumerate(recordings):
            mono = soxr.resample(samples.mean(axis=1), rate_hz, SAMPLE_RATE_HZ)
            for start in range(0, len(mono), CLIP_SAMPLES):
                clip = mono[start : start + CLIP_SAMPLES]
                if start and len(clip) < SAMPLE_RATE_HZ:
                    continue
                clip = np.pad(clip, (0, CLIP_SAMPLES - len(clip)))
                loudness_lufs = meter.integrated_loudness(clip)
                if not np.isfinite(loudness_lufs):
                    continue  # silent
                table.writerow((number, start, loudness_lufs))
                np.save(out / f"{number}-{start}.npy", np.rint(clip * 32767).astype(np.int16))
                clips += 1
    return clips


def main() -> None:
    """Measure both forms."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root / "photos", 1)
        write_recordings(root)
        for name, kind, sounds, read in (
            ("pool_files", "folder", "files", read_files),
            ("pool_archives", "webdataset", "archives", read_archives),
        ):
            config = config_for(root, kind, sounds)
            made: dict[str, int] = {}

            def ours(config: Config = config, made: dict[str, int] = made) -> None:
                remove(config.run_dir)
                count = run(config, stages=["pool"])["pool"]
                assert count.rows_out == RECORDINGS, count
                made["clips"] = sum(
                    load_array(config.run_dir / layout.audio(unit)).shape[0]
                    for unit in stems(config.run_dir / layout.AUDIO, ".npy")
                )

            clips = script(root, read(root))
            ours_sec, theirs_sec = interleaved(ours, lambda read=read: script(root, read(root)), rounds=3)
            assert made["clips"] == clips, (made, clips)
            report(name, RECORDINGS / ours_sec, RECORDINGS / theirs_sec, "recordings/s", clips=clips)


if __name__ == "__main__":
    main()
