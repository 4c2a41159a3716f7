"""Sound2Scene: its test.py paints a strip of eight pictures for each WAV of a folder; seed n is the n-th of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from protocol import Batch, Plan, answer_in_batches, read_job, spell

COLUMNS = 8
PADDING = 2  # torchvision's make_grid, around every picture
job, arguments = read_job("checkpoint")
checkout: Path = arguments.checkout


def prepare(work: Path, names: Sequence[str], seeds: Sequence[int]) -> Batch:  # noqa: ARG001 - all of a folder
    """Its noise is seeded by itself, always alike: what differs are the columns."""
    weights = {"checkpoint_vggish": checkout / arguments.checkpoint, "root_path": checkout / "checkpoints"}
    settings = spell(**weights, wav_path=work / "wavs", out_path=work / "grids")
    command = (sys.executable, str(checkout / "test.py"), *settings)
    return Batch(command=command, find=lambda name: work / "grids" / f"{name}.png", cwd=work)


def split(strip: Image.Image, seeds: Sequence[int]) -> list[tuple[int, Image.Image]]:
    side = strip.height - 2 * PADDING
    step = side + PADDING
    if strip.width != COLUMNS * step + PADDING:
        raise SystemExit(f"expected {COLUMNS} square pictures in a row, found {strip.width} x {strip.height} pixels")
    left = [PADDING + seed * step for seed in seeds]
    return [(seed, strip.crop((x, PADDING, x + side, PADDING + side))) for seed, x in zip(seeds, left)]  # noqa: B905 - 3.8


for seed in job.seeds:
    if seed >= COLUMNS:
        for row in job.left([seed]):
            job.fail(row, seed, f"it makes {COLUMNS} pictures of a sound: seeds 0 to {COLUMNS - 1}")
columns = [seed for seed in job.seeds if seed < COLUMNS]
answer_in_batches(job, Plan(wavs="wavs", rate_hz=16_000, prepare=prepare, split=split), [columns] if columns else [])
