"""Tiny networks with seeded random weights, of the real classes: for trying the whole way without a download.

    python -m train.tiny runs/tiny

writes runs/tiny/ast, runs/tiny/beats, runs/tiny/vae and runs/tiny/sd, a Stable Diffusion, ordinary model folders, in
a few seconds.
What they say of sounds and images means nothing, but it is always the same, and different for different input.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("train.tiny", extra="train"))

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils.logging import disable_progress_bar

from sonify.features.beats import Beats, BeatsSizes
from sonify.terminal import Parser, run_command

AST_WIDTH = 32
BEATS_WIDTH = 32
TEXT_WIDTH = 32


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


def write_tiny_beats(folder: Path) -> Path:
    """A BEATs with the real front end and patches, and as many layers as the published one, of width 32."""
    sizes = BeatsSizes(
        embed_dim=16, encoder_embed_dim=BEATS_WIDTH, encoder_ffn_embed_dim=2 * BEATS_WIDTH, encoder_attention_heads=2,
        conv_pos=16, conv_pos_groups=4, num_buckets=32, max_distance=80,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Beats(sizes)
    network.save_pretrained(folder)
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


def write_tiny_sd(folder: Path) -> Path:
    """A Stable Diffusion of 64 pixels: tiny VAE, UNet and CLIP text tower, PNDM as version 1.4 has it.

    Its tokenizer knows no word but the bytes of one, each alone or as the last of a word, and takes 77 of them.
    """
    letters = sorted(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[], model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=TEXT_WIDTH, bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )  # fmt: skip
    shape: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT_WIDTH,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet, text_encoder = UNet2DConditionModel(**shape), CLIPTextModel(text)
        torch.nn.init.normal_(text_encoder.final_layer_norm.bias, std=0.1)  # a new one has hidden states of mean zero
    write_tiny_vae(folder / "vae")
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
    )
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
        "unet": unet.eval(),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def main(argv: Sequence[str] | None = None, prog: str = "train.tiny") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Write tiny networks with random weights.")
    parser.add_argument("out", type=Path, help="folder that gets ast/, beats/, vae/ and sd/")
    out = parser.parse_args(argv).out

    def work() -> None:
        disable_progress_bar()
        write_tiny_ast(out / "ast")
        write_tiny_beats(out / "beats")
        write_tiny_vae(out / "vae")
        write_tiny_sd(out / "sd")
        print(*(out / name for name in ("ast", "beats", "vae", "sd")), sep="\n")  # noqa: T201 - the command's result

    return run_command(prog, work)
