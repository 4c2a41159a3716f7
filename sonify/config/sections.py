"""The keys of a run's rules, and `Config`, at the end, which is the whole; how YAML becomes one is in `loader`.

Image sets and sounds are in `inputs`, whatever has a model in it in `models`.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from sonify.config.inputs import Images, InputPath, Name, RunDir, Section, Share, Sounds
from sonify.config.models import (
    AST_SAMPLE_RATE_HZ,
    AST_SECONDS,
    CLAP_SECONDS,
    ENGLISH,
    LANGUAGES,
    CaptionsExtractor,
    Confirm,
    Encoder,
    Extractor,
    Features,
    Purity,
    Tagger,
    TextEncoder,
    Vlm,
    VlmExtractor,
)

Medium = Literal["photo", "drawing", "statue", "logo", "screen", "other"]
Presence = Literal["visible", "implied", "off_screen"]
PRESENCES: tuple[Presence, ...] = get_args(Presence)


class Audio(Section):
    """The pool of recordings, and how they become clips.

    The last clip of a recording is padded with silence; one that would hold less than `min_tail_sec` is none (0: each
    is one). `remove_dc` takes the mean off a recording. `downmix` says how channels become one: `mean`, or
    `mean_or_louder`, which takes the louder channel where the mean loses more than 6 dB, as it does of channels in
    opposite phase.
    """

    sources: tuple[Sounds, ...] = Field(min_length=1)
    clip_seconds: float = Field(default=5.0, ge=1.0, le=60.0)
    sample_rate: int = Field(default=16000, ge=8000, le=48000)
    min_tail_sec: float = Field(default=1.0, ge=0, le=60)
    remove_dc: bool = True
    downmix: Literal["mean", "mean_or_louder"] = "mean_or_louder"
    exclude: InputPath | None = None
    # Clips in which somebody speaks: `drop` takes them out of the pool, `flag` has them counted.
    speech: Literal["keep", "flag", "drop"] = "keep"
    validation: Share = 0.02
    # join: recordings that are copies of each other count as one, and are never in both splits
    duplicates: Literal["keep", "join"] = "keep"

    @model_validator(mode="after")
    def _whole_clips_stay(self) -> "Audio":
        if self.min_tail_sec > self.clip_seconds:
            raise ValueError(
                f"min_tail_sec is {self.min_tail_sec:g}, and no clip is longer than clip_seconds, which is"
                f" {self.clip_seconds:g}: set it to at most that"
            )
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> "Audio":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources are named {max(names, key=names.count)!r}: give each its own `name`")
        return self


class Concepts(Section):
    """Who says what could be heard in an image.

    `presence` names what is paired: of what a model calls otherwise, and of what makes no sound now, each pair keeps
    the name and the reason. A concept of which that is not told is paired. `max_concepts` counts what is seen and
    sounds; of the rest as many again are kept.
    """

    extractors: tuple[Extractor, ...] = Field(default=(CaptionsExtractor(kind="captions"),), min_length=1)
    discard_words: tuple[str, ...] = ("logo", "icon", "emblem", "symbol", "trademark", "sign")
    discard_match: Literal["word", "substring"] = "word"
    discard_caption: Name | None = None  # the extractor whose caption is searched for them; null: everyone's
    max_concepts: int = Field(default=5, ge=1, le=100)
    presence: tuple[Presence, ...] = Field(default=("visible",), min_length=1)
    check: bool = False
    checker: VlmExtractor | None = None  # who is asked; null: the extractor's own model
    media: tuple[Medium, ...] = Field(default=("photo",), min_length=1)  # what a checked image may be

    @model_validator(mode="after")
    def _consistent(self) -> "Concepts":
        names = [extractor.name for extractor in self.extractors]
        if len(set(names)) < len(names):
            raise ValueError(f"two extractors are named {max(names, key=names.count)!r}: give each its own `name`")
        if self.discard_caption is not None and self.discard_caption not in names:
            raise ValueError(
                f"discard_caption is {self.discard_caption!r}, and no extractor has that name: expected one of"
                f" {', '.join(names)}, or null for all"
            )
        if self.check and self.checker is None and any(isinstance(e, CaptionsExtractor) for e in self.extractors):
            raise ValueError("check is true, and a captions extractor has no model to ask: set `checker`")
        if self.checker is not None and not self.check:
            raise ValueError("there is a checker but check is false: set check true, or leave the checker out")
        return self


class Limit(Section):
    """How alike the best clip must be, for each query: at most `risk` of the concepts without an answer get one.

    `calibration` is a file that `python -m eval.pairing --calibrate` wrote; null is what ships, for the text encoder.
    """

    risk: float = Field(default=0.05, gt=0, lt=1)
    calibration: InputPath | None = None


def default_limit(validated: dict[str, Any]) -> Limit | None:
    """A limit where one was calibrated; for other encoders nothing was measured."""
    encoder = validated.get("encoder")
    return Limit() if isinstance(encoder, TextEncoder) and encoder.matching == "kinds" else None


class Search(Section):
    """Where the pool is searched, always exactly: on CPUs, or on a GPU in tiles of at most `memory_gib`.

    Either way cosines are taken again in float32 and in one order, so that the draws are the same.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    memory_gib: float = Field(default=4.0, ge=0.25, le=1024)


class Retrieval(Section):
    """How a recording is found for a concept; the rules are in `sonify.retrieval.candidates`.

    Of the `top_k` best clips as many are looked at as `top_k_share` of the pool are, and at least 8 (null: all of
    them). `clips_per_recording` is how many of one recording may be among the candidates (null: any number), and
    `repeat_recordings` whether one may be heard twice in a scene. `hears` is what CLAP embeds of a clip: that part of
    the recording at its own rate, or the clip of the pool. `min_cosine: -1` takes the best clip however unlike it is.
    """

    encoder: Encoder = TextEncoder(kind="text")
    query: Literal["description", "concept"] = "description"
    hears: Literal["recording", "clip"] = "recording"
    search: Search = Search()
    top_k: int = Field(default=100, ge=1)
    top_k_share: Annotated[float, Field(gt=0, le=1)] | None = 0.02
    clips_per_recording: Annotated[int, Field(ge=1)] | None = 3
    repeat_recordings: bool = False
    signed_sqrt: bool = True
    margin: Share = 0.8
    min_cosine: float = Field(default=0.0, ge=-1, le=1)
    limit: Limit | None = Field(default_factory=default_limit)
    merge_names: bool = True  # two names of one sound in a scene are one source
    hubness: Literal["none", "querybank"] = "none"
    draw: Literal["proportional", "uniform", "softmax"] = "proportional"
    temperature: float = Field(default=0.1, gt=0)
    draws: int = Field(default=1, ge=1, le=100)
    confirm: Confirm | None = None  # null: nobody listens to the clips
    purity: Purity | None = None

    @model_validator(mode="after")
    def _limit_is_calibrated(self) -> "Retrieval":
        if self.limit and self.limit.calibration is None and not isinstance(self.encoder, TextEncoder):
            raise ValueError(
                f"no calibration ships for retrieval.encoder {self.encoder.kind}, and retrieval.limit.calibration names"
                " none: make one with `python -m eval.pairing --calibrate`, or set retrieval.limit to null"
            )
        return self

    @model_validator(mode="after")
    def _purity_is_heard(self) -> "Retrieval":
        if self.purity is not None and self.confirm is None:
            raise ValueError("purity is measured by who listens: set retrieval.confirm, or leave retrieval.purity out")
        return self


class Prominence(Section):
    """How much quieter a background concept is: dB below the drawn target.

    A concept with a box is lowered by clip(10 log10(area / reference_area), -12, 0) dB, with areas as shares of the
    image; else the model's own word counts.
    """

    background_db: float = Field(default=-6.0, ge=-40, le=0)
    ambience_db: float = Field(default=-9.0, ge=-40, le=0)
    reference_area: float = Field(default=0.2, gt=0, le=1)


MOST_EVENTS = 20  # of one source


class Events(Section):
    """When short sounds happen: a bark or a knock is cut out of its clip and heard once or some times in the scene.

    A clip holds an event where all that is heard in it lies within `max_active_sec` (and half of the scene) and its
    peak is at least `min_crest_db` above its RMS; others are heard whole. `count` is drawn from [low, high], as many
    as fit `gap_sec` apart; `onset_sec` is the time within which they begin (null: wherever the whole event fits).
    """

    count: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(le=MOST_EVENTS)]] = (1, 3)
    onset_sec: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(le=60)]] | None = None
    gap_sec: float = Field(default=0.25, ge=0, le=60)
    max_active_sec: float = Field(default=2.0, gt=0, le=60)
    min_crest_db: float = Field(default=15.0, ge=0, le=60)

    @model_validator(mode="after")
    def _ordered(self) -> "Events":
        for key, bounds in (("count", self.count), ("onset_sec", self.onset_sec)):
            if bounds and bounds[0] > bounds[1]:
                raise ValueError(f"{key} must be [low, high], found {list(bounds)}")
        return self


# Beyond these, one of the two cannot be heard.
SNR_DB = (-30.0, 60.0)


class Mix(Section):
    """Loudness of each source (LUFS, drawn uniformly between the two) and the ceiling of the mix (dBFS).

    `snr_db` is how far a scene's foreground is above its ambience, drawn uniformly between the two. `prominence` comes
    first: with both, it still says how a scene's foreground sources stand to each other, and its ambient ones.
    `max_gain_db: null` lifts the quietest clip to its target; `peak_dbfs: null` lowers no mix, and samples beyond full
    scale are cut off there. Loudness is that of the pool's clips: of 16 kHz mono, where white noise reads 5.4 LU lower
    than at 48 kHz.
    """

    lufs: tuple[float, float] = (-32.0, -28.0)
    peak_dbfs: Annotated[float, Field(ge=-60, le=0)] | None = -1.0
    max_gain_db: Annotated[float, Field(ge=0)] | None = 30.0
    prominence: Prominence | None = None
    snr_db: tuple[float, float] | None = None  # null: nothing is set against anything
    events: Events | None = None  # null: every clip is heard whole, from the start

    @model_validator(mode="after")
    def _ordered(self) -> "Mix":
        low, high = self.lufs
        if not -70.0 < low <= high <= 0.0:
            raise ValueError(f"lufs must be [low, high] between -70 and 0, found [{low}, {high}]")
        if self.snr_db and not SNR_DB[0] <= self.snr_db[0] <= self.snr_db[1] <= SNR_DB[1]:
            raise ValueError(
                f"snr_db must be [low, high] between {SNR_DB[0]:g} and {SNR_DB[1]:g}, found {[*self.snr_db]}"
            )
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
    def _speech_is_heard(self) -> "Config":
        if self.audio.speech != "keep" and not isinstance(self.retrieval.confirm, Tagger):
            raise ValueError(
                f"audio.speech is {self.audio.speech}, and speech is found by a tagger: set retrieval.confirm to"
                " {kind: tagger, ...}, or audio.speech to keep"
            )
        return self

    @model_validator(mode="after")
    def _events_begin_within_the_scene(self) -> "Config":
        events = self.mix.events
        if events and events.onset_sec and events.onset_sec[0] >= self.audio.clip_seconds:
            raise ValueError(
                f"mix.events.onset_sec begins at {events.onset_sec[0]:g}, and a scene ends after"
                f" {self.audio.clip_seconds:g} seconds (audio.clip_seconds)"
            )
        return self

    @model_validator(mode="after")
    def _words_are_compared_in_english(self) -> "Config":
        kind = self.retrieval.encoder.kind
        foreign = [e for e in self.concepts.extractors if isinstance(e, Vlm) and e.language not in ENGLISH]
        if foreign and kind in ("text", "hybrid"):
            raise ValueError(
                f"extractor {foreign[0].name} answers in {LANGUAGES[str(foreign[0].language)]}, and retrieval.encoder"
                f" {kind} compares English words: set language en or null, or a CLAP that knows the language"
            )
        return self

    @model_validator(mode="after")
    def _clips_fit_ear(self) -> "Config":
        audio, features = self.audio, self.features
        if features is None:
            return self
        is_ast = features.ear.kind == "ast"
        if audio.sample_rate != AST_SAMPLE_RATE_HZ or (is_ast and audio.clip_seconds > AST_SECONDS):
            ear = f"AST hears {AST_SAMPLE_RATE_HZ} Hz and at most {AST_SECONDS:g} seconds"
            raise ValueError(
                f"features: {ear if is_ast else f'BEATs hears {AST_SAMPLE_RATE_HZ} Hz'}, but"
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
