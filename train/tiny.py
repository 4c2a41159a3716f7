"""Tiny networks with seeded random weights, of the real classes: for trying the whole way without a download.

    python -m train.tiny runs/tiny

writes runs/tiny/ast and runs/tiny/vae, ordinary model folders, in a few seconds. What they say of sounds and images
means nothing, but it is always the same, and different for different input.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("train.tiny", extra="train"))

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel
from transformers.utils.logging import disable_progress_bar

from sonify.terminal import Parser, run_command

AST_WIDTH = 32


def write_tiny_ast(folder: Path) -> Path:
    """An AST with the real front end and patches, two layers of width 32."""
    config = ASTConfig(
        hidden_size=AST_WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * AST_WIDTH
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ASTModel(config)
    network.eval().save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)
    return folder


def write_tiny_vae(folder: Path) -> Path:
    """An AutoencoderKL with four latent channels at an eighth of the image's sides, as Stable Diffusion's has."""
    shape: dict[str, Any] = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(**shape)
    vae.eval().save_pretrained(folder)
    return folder


def main(argv: Sequence[str] | None = None, prog: str = "train.tiny") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Write tiny networks with random weights.")
    parser.add_argument("out", type=Path, help="folder that gets ast/ and vae/")
    out = parser.parse_args(argv).out

    def work() -> None:
        disable_progress_bar()
        write_tiny_ast(out / "ast")
        write_tiny_vae(out / "vae")
        print(f"{out / 'ast'}\n{out / 'vae'}")  # noqa: T201 - the command's result

    return run_command(prog, work)
