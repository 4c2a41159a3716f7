"""Clips to CLAP embeddings against the loop that a user would write: recordings in, vectors out.

    python -m benchmarks.clap

One thread, no GPU, random weights in the size of `laion/clap-htsat-unfused`. Theirs: soundfile, soxr, the library's
processor and model, one clip at a time. Prints one JSON line, which says how far both are apart as well.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.clap", extra="dev"))

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

from benchmarks.measure import interleaved, report
from sonify.config import ClapEncoder
from sonify.media.clips import cut_recording
from sonify.retrieval.clap import SAMPLE_RATE_HZ, Clap, TransformersTowers

RECORDINGS, SECONDS, RATE_HZ = 6, 5, 44_100


def write_recordings(folder: Path) -> list[Path]:
    """Seeded noise of many loudnesses, as stereo FLAC."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{n}.flac" for n in range(RECORDINGS)]
    for path in paths:
        samples = rng.standard_normal((SECONDS * RATE_HZ, 2)) * 10 ** rng.uniform(-3, -1)
        soundfile.write(path, samples.clip(-1, 1), RATE_HZ)
    return paths


def main(_argv: Sequence[str] | None = None) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network: Any = ClapModel(ClapConfig()).eval()
    extractor: Any = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    tokenizer = RobertaTokenizer(vocab={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}, merges=[])
    settings = ClapEncoder(kind="clap", device="cpu")
    clap = Clap(TransformersTowers(network, extractor, tokenizer), settings, torch.device("cpu"))

    with tempfile.TemporaryDirectory() as folder:
        paths = write_recordings(Path(folder))

        def segments() -> Iterator[np.ndarray]:
            return (cut.samples for path in paths for cut in cut_recording(path, SAMPLE_RATE_HZ, SECONDS))

        def ours() -> np.ndarray:
            return np.stack(list(clap.embed_segments(segments())))

        def theirs() -> np.ndarray:
            return np.stack([embed_alone(path) for path in paths])

        def embed_alone(path: Path) -> np.ndarray:
            samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
            mono = soxr.resample(samples.mean(axis=1), rate_hz, SAMPLE_RATE_HZ)
            inputs = extractor(mono, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
            with torch.inference_mode():
                return network.get_audio_features(inputs["input_features"].float()).pooler_output[0].numpy()

        distance = float(np.abs(ours() - theirs()).max())
        ours_sec, theirs_sec = interleaved(ours, theirs)
    report("clap", RECORDINGS / ours_sec, RECORDINGS / theirs_sec, "clips/s", threads=1, distance=round(distance, 6))
