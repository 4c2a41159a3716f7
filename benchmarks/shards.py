"""The rendered shards through `sonify.open_shards`, against webdataset as a user would set it up on the same files.

Run as `python -m benchmarks.shards`; half a minute. Photographs of 0.4 megapixels, two scenes of 5 s, from the page
cache, in this process. Both shuffle archives and samples, and make the same arrays: theirs by Pillow, soundfile and
json as its users write it. Ours also looks through each archive before its first sample, checks every size, key and
member, and bounds what is decoded; `shards_hashed` checks sha256 as well.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.shards", extra="dev"))

import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from webdataset.compat import WebDataset

from benchmarks.measure import interleaved, report
from sonify import layout
from sonify.dataset.format import PublishedShard
from sonify.io.commits import canonical_json
from sonify.io.tars import TarWriter
from sonify.io.write import sha256_of
from sonify.media.audio import encode_flac
from sonify.shards import Check, ImageAs, open_shards
from tests.builders import as_pcm, picture, tone, write_table

UNITS, SAMPLES = 8, 64
SCENES = ("cogvlm", "llava")
BUFFER = 100


def write_shards(folder: Path) -> list[PublishedShard]:
    rows: list[PublishedShard] = []
    for unit in range(UNITS):
        name = layout.shard("train", f"{unit:06d}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            archive = TarWriter(file)
            for n in range(SAMPLES):
                seed = unit * SAMPLES + n
                key = f"{seed:06d}"
                for scene in SCENES:
                    archive.add(f"{key}.{scene}.flac", encode_flac(as_pcm(tone(seed)), 16_000))
                archive.add(f"{key}.jpg", picture(seed, (768, 512)))
                record = {"key": key, "split": "train", "scenes": [{"scene": scene} for scene in SCENES]}
                archive.add(f"{key}.json", canonical_json(record).encode())
            archive.close()
        size, sha256 = (folder / name).stat().st_size, sha256_of(folder / name)
        rows.append(
            PublishedShard(
                path=name, split="train", unit=f"{unit:06d}", size_bytes=size, sha256=sha256, samples=SAMPLES,
                complete=True,
            )
        )  # fmt: skip
    return rows


def plain(folder: Path, pictures: bool) -> Iterable[Any]:
    """What their readers write: no `.decode()`, whose floats and images come in other forms."""
    files = [str(path) for path in sorted(folder.glob("shards/train/*.tar"))]
    dataset: Any = WebDataset(files, shardshuffle=len(files), seed=0)
    return dataset.shuffle(BUFFER, initial=BUFFER).map(partial(_decode, pictures=pictures))


def _decode(sample: dict[str, Any], pictures: bool) -> dict[str, Any]:
    with Image.open(io.BytesIO(sample["jpg"])) as image:
        pixels = np.array(image.convert("RGB")) if pictures else sample["jpg"]
    sounds = {scene: soundfile.read(io.BytesIO(sample[f"{scene}.flac"]), dtype="float32") for scene in SCENES}
    return {"key": sample["__key__"], "image": pixels, "scenes": sounds, "metadata": json.loads(sample["json"])}


def count(samples: Iterable[Any]) -> None:
    assert sum(1 for _ in samples) == UNITS * SAMPLES


def main(_argv: Sequence[str] | None = None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder / "shards/shards.parquet", PublishedShard, write_shards(folder))
        ways: tuple[tuple[str, ImageAs, Check], ...] = (
            ("shards_decoded", "array", "size"),
            ("shards_hashed", "array", "hash"),
            ("shards_image_bytes", "bytes", "size"),
        )
        for line, image, check in ways:
            ours, theirs = interleaved(
                lambda image=image, check=check: count(open_shards(folder, image=image, check=check, shuffle=BUFFER)),
                lambda image=image: count(plain(folder, pictures=image == "array")),
            )
            report(line, UNITS * SAMPLES / ours, UNITS * SAMPLES / theirs, "samples/s")
