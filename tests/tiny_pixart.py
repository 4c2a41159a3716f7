"""A tiny real pipeline with random weights, in memory or as a folder; two sounds give two images."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

from sonify.features.ast import load_ast
from sonify.features.vae import load_vae
from sonify.models.fetch import AST_FILES, VAE_FILES, fetch_model
from train.pipeline import AudioPixArtPipeline, make_scheduler
from train.tiny import AST_WIDTH, write_tiny_ast, write_tiny_vae

LATENT_SIDE = 8  # images of 64 pixels
CPU = torch.device("cpu")


def tiny_transformer(caption_channels: int = AST_WIDTH, seed: int = 0) -> PixArtTransformer2DModel:
    """Two blocks of width 32 over 8 x 8 x 4 latents."""
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=LATENT_SIDE,
        caption_channels=caption_channels,
    )
    return transformer.eval()


def tiny_pipeline(*, audio: bool = True, caption_channels: int = AST_WIDTH, **settings: Any) -> AudioPixArtPipeline:
    """A pipeline with an AST, or for features of any width without one (`audio=False`)."""
    with tempfile.TemporaryDirectory() as folder:
        vae = load_vae(fetch_model(str(write_tiny_vae(Path(folder, "vae"))), None, VAE_FILES), CPU, torch.float32)
        fetched_ast = fetch_model(str(write_tiny_ast(Path(folder, "ast"))), None, AST_FILES)
        ast = load_ast(fetched_ast, CPU, torch.float32) if audio else (None, None)
    return AudioPixArtPipeline(tiny_transformer(caption_channels), vae, make_scheduler(), *ast, **settings)


def write_tiny_pixart(folder: Path, **settings: Any) -> Path:
    """Save `tiny_pipeline` as a folder."""
    tiny_pipeline(**settings).save_pretrained(folder)
    return folder
