"""The front end of the audio features against transformers' own, and features per second in both precisions.

    python -m benchmarks.features [--device cuda] [--size 512]

The first line compares the log-mel spectrograms of a batch of five-second sounds, one thread on the CPU, with the
library's extractor, which takes them one by one; the floor is a ratio of 3 with a distance of at most 1e-4. The others
say how many images and sounds a second go through networks of the published sizes with random weights, and how that
rate changes with bfloat16. A CPU takes a minute or two; a GPU is measured where `--device cuda` asks for one.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.features", extra="dev"))

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.utils import logging
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from benchmarks.measure import interleaved, report
from sonify.features.ast import AstFeatures, AstLogMel
from sonify.features.vae import encode
from sonify.models.loading import choose_device, computing
from sonify.terminal import Parser, run_command

RATE_HZ, SECONDS, SOUNDS = 16_000, 5, 32
ON_CPU, ON_GPU = 1, 16  # images or sounds at once, as the stage has them

SD_VAE: dict[str, Any] = {  # stabilityai/sd-vae-ft-ema
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def make_sounds(count: int) -> np.ndarray:
    """Seeded noise of many loudnesses, (count, 80000) float32."""
    rng = np.random.default_rng(0)
    loudness = 10 ** rng.uniform(-3, -1, (count, 1))
    return (loudness * rng.standard_normal((count, SECONDS * RATE_HZ))).clip(-1, 1).astype(np.float32)


def compare_front_ends() -> None:
    extractor = ASTFeatureExtractor()
    log_mel, sounds = AstLogMel(extractor), make_sounds(SOUNDS)

    def ours() -> torch.Tensor:
        return log_mel(torch.from_numpy(sounds))

    def theirs() -> torch.Tensor:
        return cast(Any, extractor(list(sounds), sampling_rate=RATE_HZ, return_tensors="pt"))["input_values"]

    with computing(threads=1):
        distance = float((ours() - theirs()).abs().max())
        ours_sec, theirs_sec = interleaved(ours, theirs, rounds=9)
    report("log_mel", SOUNDS / ours_sec, SOUNDS / theirs_sec, "sounds/s", threads=1, distance=distance)


def compare_precisions(
    name: str, make: Callable[[torch.dtype], Callable[[], object]], count: int, **extra: Any
) -> None:
    """Report how many a second, in bfloat16 (ours) and in float32 (theirs)."""
    threads = torch.get_num_threads()
    with computing(threads):
        ours_sec, theirs_sec = interleaved(make(torch.bfloat16), make(torch.float32), rounds=3)
    report(name, count / ours_sec, count / theirs_sec, "bfloat16 against float32, a second", threads=threads, **extra)


def measure_networks(device: torch.device, size: int) -> None:
    count = ON_CPU if device.type == "cpu" else ON_GPU
    torch.manual_seed(0)
    ast: Any = ASTModel(ASTConfig()).eval()
    vae: Any = AutoencoderKL(**SD_VAE).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    sounds = make_sounds(count)

    def listening(dtype: torch.dtype) -> Callable[[], object]:
        features = AstFeatures(copy.deepcopy(ast).to(device, dtype), ASTFeatureExtractor(), "mean")
        return lambda: features(sounds).cpu()

    def looking(dtype: torch.dtype) -> Callable[[], object]:
        network = copy.deepcopy(vae).to(device, dtype)
        return lambda: [encode(network, pixels).mean_BCHW.cpu()]

    where: dict[str, Any] = {"device": device.type, "at_once": count}
    if device.type == "cpu":
        where["gpu"] = "not measured: --device cuda --size 512"
    compare_precisions("features_ast", listening, count, **where)
    compare_precisions("features_vae", looking, count, size=size, **where)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="benchmarks.features", description="Front ends and precisions of the training features.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args(argv)

    def work() -> None:
        logging.set_verbosity_error()  # diffusers warns of every cast
        compare_front_ends()
        measure_networks(choose_device(arguments.device), arguments.size)

    return run_command("benchmarks.features", work)
