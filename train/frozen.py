"""The frozen networks beside the transformer: the VAE of the latents and the AST of the condition.

T  times, D  width of a feature vector, S  samples
"""

from dataclasses import dataclass

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from transformers import ASTFeatureExtractor, ASTModel

from sonify.features.ast import load_ast
from sonify.features.vae import Vae, load_vae
from sonify.models.fetch import AST_FILES, VAE_FILES, fetch_model
from train.config import TrainConfig
from train.pipeline import AudioPixArtPipeline, make_scheduler
from train.shards import FeatureData


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """What a run's features were made with, on the CPU until pictures are made; no AST where the condition is not its.

    An identity is a commit of the hub, or a digest of a folder's files.
    """

    vae: Vae
    vae_identity: str
    audio_encoder: ASTModel | None
    feature_extractor: ASTFeatureExtractor | None
    ast_identity: str | None


def load_networks(config: TrainConfig) -> Networks:
    """Fetch and load them."""
    cpu, dtype = torch.device("cpu"), torch.float32
    fetched_vae = fetch_model(config.vae, config.vae_revision, VAE_FILES)
    vae = load_vae(fetched_vae, cpu, dtype)
    audio_encoder = feature_extractor = ast_identity = None
    if config.ast is not None:
        fetched_ast = fetch_model(config.ast, config.ast_revision, AST_FILES)
        audio_encoder, feature_extractor = load_ast(fetched_ast, cpu, dtype)
        ast_identity = fetched_ast.identity
    return Networks(
        vae=vae,
        vae_identity=fetched_vae.identity,
        audio_encoder=audio_encoder,
        feature_extractor=feature_extractor,
        ast_identity=ast_identity,
    )


def make_pipeline(
    transformer: PixArtTransformer2DModel, config: TrainConfig, networks: Networks, data: FeatureData
) -> AudioPixArtPipeline:
    """The pipeline that makes pictures with these weights, listening as the features were made."""
    return AudioPixArtPipeline(
        transformer=transformer,
        vae=networks.vae,
        scheduler=make_scheduler(),
        audio_encoder=networks.audio_encoder,
        feature_extractor=networks.feature_extractor,
        frequency=data.frequency,
        clip_seconds=data.clip_seconds,
        null_condition=config.model.null_condition,
        level="window",  # as each clip was, for the features
        loudness_lufs=data.lufs,
    )
