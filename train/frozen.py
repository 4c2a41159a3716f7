"""The frozen networks beside what learns, and the pipelines that are made of both.

T  times, D  width of a feature vector, S  samples
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from transformers import ASTFeatureExtractor, ASTModel

from sonify.features.ast import load_ast
from sonify.features.beats import Beats, load_beats
from sonify.features.vae import Vae, load_vae
from sonify.models.fetch import AST_FILES, EAR_FILES, VAE_FILES, fetch_model
from train.adapters import merge_averaged
from train.checkpoints import Averaged
from train.config import AudioTokenConfig, TrainConfig, Training
from train.embedder import Embedder
from train.pipeline import AudioPixArtPipeline, make_scheduler
from train.shards import FeatureData
from train.stable_diffusion import StableDiffusion, load_stable_diffusion
from train.token_pipeline import AudioTokenPipeline


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenNetworks:
    """What AudioToken leaves as it is: a Stable Diffusion, the VAE of the latents, and the ear of the vectors."""

    sd: StableDiffusion
    vae: Vae
    vae_identity: str
    ear: Beats | ASTModel
    feature_extractor: ASTFeatureExtractor | None
    ear_identity: str


def load_token_networks(config: AudioTokenConfig) -> TokenNetworks:
    """Fetch and load them, on the CPU in float32.

    Raises:
        InputError: one cannot be had or used, or they do not belong together.
    """
    cpu, dtype = torch.device("cpu"), torch.float32
    sd = load_stable_diffusion(config.sd, config.sd_revision, cpu, dtype, with_vae=False)
    fetched_vae = fetch_model(config.vae, config.vae_revision, VAE_FILES)
    encoder = config.encoder
    fetched_ear = fetch_model(encoder.model, encoder.revision, EAR_FILES[encoder.kind])
    extractor: ASTFeatureExtractor | None = None
    ear: Beats | ASTModel
    if encoder.kind == "ast":
        ear, extractor = load_ast(fetched_ear, cpu, dtype)
    else:
        ear = load_beats(fetched_ear, cpu, dtype)
    return TokenNetworks(
        sd=sd,
        vae=load_vae(fetched_vae, cpu, dtype),
        vae_identity=fetched_vae.identity,
        ear=ear,
        feature_extractor=extractor,
        ear_identity=fetched_ear.identity,
    )


def make_token_pipeline(
    embedder: Embedder, config: AudioTokenConfig, networks: TokenNetworks, data: FeatureData
) -> AudioTokenPipeline:
    """The pipeline that makes pictures with this embedder, listening as the features were made."""
    return AudioTokenPipeline(
        vae=networks.vae,
        text_encoder=networks.sd.text_encoder,
        tokenizer=networks.sd.tokenizer,
        unet=networks.sd.unet,
        scheduler=networks.sd.scheduler,
        embedder=embedder,
        audio_encoder=networks.ear,
        feature_extractor=networks.feature_extractor,
        layers=list(data.features.layers),
        prompt=config.sampling_prompt,
        placeholder=config.placeholder,
        frequency=data.frequency,
        clip_seconds=data.clip_seconds,
        level="window",
        loudness_lufs=data.lufs,
    )


def remake_pipeline(
    config: Training, averaged: Averaged, data: FeatureData
) -> AudioPixArtPipeline | AudioTokenPipeline:
    """The pipeline of a checkpoint's averaged weights, with all networks as they are fetched."""
    if isinstance(config, AudioTokenConfig):
        embedder = _built(Embedder, averaged)
        return make_token_pipeline(embedder, config, load_token_networks(config), data)
    assert isinstance(config, TrainConfig)
    return make_pipeline(remake_transformer(config, averaged), config, load_networks(config), data)


def remake_transformer(config: TrainConfig, averaged: Averaged) -> PixArtTransformer2DModel:
    """The network of a checkpoint's averaged weights; adapters are merged into what they were learned on."""
    if config.train == "adapters":
        return merge_averaged(config, averaged)
    return _built(PixArtTransformer2DModel, averaged)


def _built(network_class: Any, averaged: Averaged) -> Any:
    network = network_class.from_config(dict(averaged.network))
    network.load_state_dict(averaged.weights)
    return network.eval()
