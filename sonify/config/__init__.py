"""The configuration; `Config` is a whole run's, the other names are its sections."""

from sonify.config.config import Audio, Concepts, Config, Engine, Mix, Prominence, RenderSettings, Retrieval
from sonify.config.encoders import (
    ClapEncoder,
    ClapModel,
    Encoder,
    HybridEncoder,
    LaionClapEncoder,
    TextEncoder,
)
from sonify.config.extractors import (
    CaptionsExtractor,
    EndpointVlm,
    Extractor,
    ServerVlm,
    TransformersVlm,
    Vlm,
    VlmExtractor,
)
from sonify.config.features import Features
from sonify.config.images import FolderImages, Images, ParquetImages, Sa1bImages, WebDatasetImages
from sonify.config.loader import load_config, load_settings, make_config, make_settings
from sonify.config.sections import InputPath, Place, Section
from sonify.config.sounds import (
    AudioSetSounds,
    BbcSounds,
    Esc50Sounds,
    FolderSounds,
    Fsd50kSounds,
    ParquetSounds,
    Sounds,
    WebDatasetSounds,
)

__all__ = [
    "Audio",
    "AudioSetSounds",
    "BbcSounds",
    "CaptionsExtractor",
    "ClapEncoder",
    "ClapModel",
    "Concepts",
    "Config",
    "Encoder",
    "EndpointVlm",
    "Engine",
    "Esc50Sounds",
    "Extractor",
    "Features",
    "FolderImages",
    "FolderSounds",
    "Fsd50kSounds",
    "HybridEncoder",
    "Images",
    "InputPath",
    "LaionClapEncoder",
    "Mix",
    "ParquetImages",
    "ParquetSounds",
    "Place",
    "Prominence",
    "RenderSettings",
    "Retrieval",
    "Sa1bImages",
    "Section",
    "ServerVlm",
    "Sounds",
    "TextEncoder",
    "TransformersVlm",
    "Vlm",
    "VlmExtractor",
    "WebDatasetImages",
    "WebDatasetSounds",
    "load_config",
    "load_settings",
    "make_config",
    "make_settings",
]
