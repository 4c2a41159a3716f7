"""The configuration of a whole run: frozen, typed, refusing what it does not know."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sonify.config.encoders import CLAP_SECONDS, Encoder, TextEncoder
from sonify.config.extractors import CaptionsExtractor, Extractor, VlmExtractor
from sonify.config.features import AST_SAMPLE_RATE_HZ, AST_SECONDS, Features
from sonify.config.images import Images
from sonify.config.sections import InputPath, RunDir, Section, Share
from sonify.config.sounds import Sounds

Medium = Literal["photo", "drawing", "statue", "logo", "screen", "other"]


class Audio(Section):
    """The pool of recordings."""

    sources: tuple[Sounds, ...] = Field(min_length=1)
    clip_seconds: float = Field(default=5.0, ge=1.0, le=60.0)
    sample_rate: int = Field(default=16000, ge=8000, le=48000)
    exclude: InputPath | None = None
    validation: Share = 0.02

    @model_validator(mode="after")
    def _names_differ(self) -> "Audio":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources are named {max(names, key=names.count)!r}: give each its own `name`")
        return self


class Concepts(Section):
    """Who says what could be heard in an image."""

    extractors: tuple[Extractor, ...] = Field(default=(CaptionsExtractor(kind="captions"),), min_length=1)
    discard_words: tuple[str, ...] = ("logo", "icon", "emblem", "symbol", "trademark", "sign")
    discard_match: Literal["word", "substring"] = "word"
    max_concepts: int = Field(default=5, ge=1, le=100)
    check: bool = False
    checker: VlmExtractor | None = None  # who is asked; null: the extractor's own model
    media: tuple[Medium, ...] = Field(default=("photo",), min_length=1)  # what a checked image may be

    @model_validator(mode="after")
    def _consistent(self) -> "Concepts":
        names = [extractor.name for extractor in self.extractors]
        if len(set(names)) < len(names):
            raise ValueError(f"two extractors are named {max(names, key=names.count)!r}: give each its own `name`")
        if self.check and self.checker is None and any(isinstance(e, CaptionsExtractor) for e in self.extractors):
            raise ValueError("check is true, and a captions extractor has no model to ask: set `checker`")
        if self.checker is not None and not self.check:
            raise ValueError("there is a checker but check is false: set check true, or leave the checker out")
        return self


class Retrieval(Section):
    """How a recording is found for a concept; the rules are in `sonify.retrieval.candidates`."""

    encoder: Encoder = TextEncoder(kind="text")
    query: Literal["description", "concept"] = "description"
    top_k: int = Field(default=100, ge=1)
    signed_sqrt: bool = True
    margin: Share = 0.8
    min_cosine: float = Field(default=0.0, ge=-1, le=1)
    hubness: Literal["none", "querybank"] = "none"
    draw: Literal["proportional", "uniform", "softmax"] = "proportional"
    temperature: float = Field(default=0.1, gt=0)
    draws: int = Field(default=1, ge=1, le=100)


class Prominence(Section):
    """How much quieter a background concept is: dB below the drawn target.

    A concept with a box is lowered by clip(10 log10(area / reference_area), -12, 0) dB, with areas as shares of the
    image; else the model's own word counts.
    """

    background_db: float = Field(default=-6.0, ge=-40, le=0)
    ambience_db: float = Field(default=-9.0, ge=-40, le=0)
    reference_area: float = Field(default=0.2, gt=0, le=1)


class Mix(Section):
    """Loudness of each source (LUFS, drawn uniformly between the two) and the ceiling of the mix (dBFS)."""

    lufs: tuple[float, float] = (-32.0, -28.0)
    peak_dbfs: float = Field(default=-1.0, ge=-60, le=0)
    max_gain_db: float = Field(default=30.0, ge=0)
    prominence: Prominence | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Mix":
        low, high = self.lufs
        if not -70.0 < low <= high <= 0.0:
            raise ValueError(f"lufs must be [low, high] between -70 and 0, found [{low}, {high}]")
        return self


class RenderSettings(Section):
    """What is written: images as they are or with a shorter side of that many pixels; sound as FLAC."""

    image: Literal["original"] | Annotated[int, Field(ge=16)] = "original"
    audio: Literal["flac"] = "flac"
    scenes: Literal["all", "any"] = "all"


class Engine(Section):
    """Where the work runs. `workers: null` is as many as there is room for when a stage begins.

    `autoscale: true` asks for all `workers` at once, so that a cluster grows: nodes that join get theirs.
    """

    kind: Literal["local", "ray"] = "ray"
    address: str | None = None
    unauthenticated: bool = False
    workers: int | None = Field(default=None, ge=1)
    autoscale: bool = False
    max_fault_ratio: Share = 0.05

    @model_validator(mode="after")
    def _growth_has_an_end(self) -> "Engine":
        if self.autoscale and (self.workers is None or self.kind != "ray"):
            raise ValueError("autoscale needs kind: ray and `workers`, the most that the cluster is asked for")
        return self


class Published(Section):
    """A published dataset to render again, and what is done about clips and images that are not here.

    `scenes` and `digest` are filled in from the folder.
    """

    path: InputPath
    missing: Literal["stop", "skip", "repair"] = "stop"
    scenes: tuple[str, ...] = ()
    digest: str = ""


class Config(Section):
    """A whole run."""

    run_dir: RunDir
    seed: int = 0
    images: Images
    audio: Audio
    concepts: Concepts = Concepts()
    retrieval: Retrieval = Retrieval()
    mix: Mix = Mix()
    render: RenderSettings = RenderSettings()
    features: Features | None = None  # null: the run ends with the shards
    published: Published | None = None  # null: the run says itself what is heard
    engine: Engine = Engine()

    @model_validator(mode="after")
    def _validation_needs_recordings(self) -> "Config":
        if self.images.validation > 0 and self.audio.validation == 0:
            raise ValueError(
                "images.validation is above 0 but audio.validation is 0: validation images have no recordings to draw"
                " from; set both above 0, or both to 0"
            )
        return self

    @model_validator(mode="after")
    def _clips_fit_the_encoder(self) -> "Config":
        if self.retrieval.encoder.kind != "text" and self.audio.clip_seconds > CLAP_SECONDS:
            raise ValueError(
                f"audio.clip_seconds is {self.audio.clip_seconds:g}, and CLAP hears {CLAP_SECONDS:g} seconds: set at"
                " most that, or the text encoder"
            )
        return self

    @model_validator(mode="after")
    def _clips_fit_ast(self) -> "Config":
        audio = self.audio
        if self.features and (audio.sample_rate != AST_SAMPLE_RATE_HZ or audio.clip_seconds > AST_SECONDS):
            raise ValueError(
                f"features: AST hears {AST_SAMPLE_RATE_HZ} Hz and at most {AST_SECONDS:g} seconds, but"
                f" audio.sample_rate is {audio.sample_rate} and audio.clip_seconds {audio.clip_seconds:g}: change them,"
                " or leave `features` out"
            )
        return self

    @property
    def scenes(self) -> tuple[str, ...]:
        """The names of the scenes that every image of the run gets."""
        if self.published:
            return self.published.scenes
        draws = range(self.retrieval.draws)
        names = [extractor.name for extractor in self.concepts.extractors]
        if self.render.scenes == "any":
            return tuple(f"scene-{n}" for n in range(len(names) * len(draws)))
        return tuple(name if len(draws) == 1 else f"{name}-{draw}" for name in names for draw in draws)
