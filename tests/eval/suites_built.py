"""Small suites for tests: real sounds and pictures, prepared as the command does it."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from eval.prepare import prepare
from eval.suites.config import DemoSuite, FolderSuite
from eval.suites.entries import Entry, Selection
from eval.suites.suite import Suite
from eval.suites.write import write_suite
from sonify.config.loader import make_settings
from tests.builders import SUBJECTS, picture, tone, write_sound

SIDE = 32


def write_film(
    path: Path,
    seconds: float = 10.0,
    *,
    codec: str = "",
    sound: np.ndarray | None = None,
    rate_hz: int = 48_000,
    size: tuple[int, int] = (96, 64),
    fps: int = 2,
) -> Path:
    """A film of grey frames, from black at its start to white at its end, with a key frame every 5 s.

    `sound` is (S,) or (C, S) float at `rate_hz`, by default a tone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = round(seconds * fps)
    samples = np.atleast_2d(tone(0, seconds, rate_hz) if sound is None else sound).astype(np.float32)
    with av.open(str(path), "w") as film:
        pictures: Any = film.add_stream(codec or ("libvpx" if path.suffix == ".webm" else "libx264"), rate=fps)
        pictures.width, pictures.height = size
        pictures.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        pictures.codec_context.gop_size = 5 * fps
        heard: Any = film.add_stream("libopus" if path.suffix in (".webm", ".mkv") else "aac", rate=rate_hz)
        layout = "stereo" if len(samples) == 2 else "mono"
        heard.layout = layout
        for n in range(frames):
            grey = np.full((size[1], size[0], 3), round(255 * n / frames), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts = n
            film.mux(pictures.encode(frame))
        film.mux(pictures.encode(None))
        for start in range(0, samples.shape[1], 960):
            part = np.ascontiguousarray(samples[:, start : start + 960])
            block = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
            block.rate, block.pts, block.time_base = rate_hz, start, Fraction(1, rate_hz)
            film.mux(heard.encode(block))
        film.mux(heard.encode(None))
    return path


def folder_config(path: Path, **keys: Any) -> FolderSuite:
    """The configuration of a suite of one's own; small pictures."""
    return make_settings({"kind": "folder", "name": "small", "path": str(path), "image": {"side": SIDE}} | keys,
                         FolderSuite)  # fmt: skip


def make_entries(
    folder: Path, sounds: int = 8, labels: Sequence[str] = SUBJECTS[:4], seconds: float = 6.0, per_recording: int = 1
) -> list[Entry]:
    """Entries with a sound and a picture of their own: `s000` of label 0, `s001` of label 1, and so on.

    `per_recording` of them in turn are of one recording. `captions` and `ids` (`youtube:recordin000`) are given.
    """
    entries: list[Entry] = []
    for n in range(sounds):
        audio = write_sound(folder / f"s{n:03d}.flac", tone(n, seconds), 16_000)
        image = folder / f"s{n:03d}.jpg"
        image.write_bytes(picture(n))
        label, recording = labels[n % len(labels)], f"{n // per_recording:03d}"
        entry = Entry(
            id=f"s{n:03d}",
            recording=f"r{recording}",
            audio=audio,
            image=image,
            labels=(label,),
            captions=(f"a {label} is heard",),
            ids=(f"youtube:recordin{recording}",),
        )
        entries.append(entry)
    return entries


def make_suite(
    folder: Path,
    sounds: int = 8,
    labels: Sequence[str] = SUBJECTS[:4],
    *,
    others: int = 4,
    seconds: float = 6.0,
    per_recording: int = 1,
    pictures: bool = True,
    **keys: Any,
) -> Suite:
    """A suite in FOLDER/suite of so many items (see `make_entries`), and of `others` further pictures.

    Without `pictures` no item has a reference. Further keyword arguments are keys of the configuration:
    `make_suite(tmp_path, sounds=6, towers={"clip_b32": {"kind": "random"}})`.
    """
    entries = make_entries(folder / "media", sounds + others, labels, seconds, per_recording)
    if not pictures:
        entries = [replace(entry, image=None) for entry in entries]
    config = folder_config(folder / "media", others=others, **keys)
    selection = Selection(wanted=tuple(entries[:sounds]), rest=tuple(entries[sounds:]))
    return write_suite(config, selection, folder / "suite")


def demo_suite(folder: Path, sounds: int = 24, **keys: Any) -> Suite:
    """The suite of the demo's sounds and photographs, in FOLDER/suite."""
    raw = {"kind": "demo", "name": "smoke", "sounds": sounds, "image": {"side": SIDE}} | keys
    config = make_settings(raw, DemoSuite)
    return prepare(config, folder / "suite")
