"""Every key of a run's configuration: frozen, typed, refusing what it does not know.

`Config`, at the end, is the whole; the sections before it are its parts. How YAML becomes one is in `loader`.
"""

import re
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    model_validator,
)

from sonify.stores import Place, expand_user, to_place, to_run_dir

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


def to_model(value: str) -> str:
    """A hub id stays as it is; a folder is made absolute, since workers run elsewhere."""
    folder = expand_user(value)
    try:
        return str(folder.absolute()) if folder.is_dir() else value
    except OSError as error:
        raise ValueError(f"expected a hub id or a folder ({error.strerror})") from error


InputPath = Annotated[Place, PlainValidator(to_place), PlainSerializer(str)]
RunDir = Annotated[Place, PlainValidator(to_run_dir), PlainSerializer(str)]
Model = Annotated[str, Field(min_length=1), AfterValidator(to_model)]  # a hub id or a folder
Name = Annotated[str, Field(pattern=NAME, max_length=60)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ImageSet(Section):
    """What every kind of image set has in common; `heif` takes .heic and its like too, with the extra `heif`."""

    path: InputPath
    sample: int | None = Field(default=None, ge=1)
    exclude: InputPath | None = None
    validation: Share = 0.01
    heif: bool = False


class FolderImages(ImageSet):
    """Images in a folder, recursively; captions beside them or in a table."""

    kind: Literal["folder"]
    shard_size: int = Field(default=1000, ge=1)


class WebDatasetImages(ImageSet):
    """Tar archives of images with `.txt` or `.json` captions; each archive is a unit."""

    kind: Literal["webdataset"]


class Sa1bImages(ImageSet):
    """SA-1B's archives of `sa_<id>.jpg` and `sa_<id>.json`; each archive is a unit."""

    kind: Literal["sa1b"]


class ParquetImages(ImageSet):
    """Parquet files with a Hugging Face image column (`bytes` or `path`); each file is a unit."""

    kind: Literal["parquet"]
    image_column: str = "image"
    caption_column: str | None = None


Images = Annotated[FolderImages | WebDatasetImages | Sa1bImages | ParquetImages, Field(discriminator="kind")]


class FolderSounds(Section):
    """Sounds in a folder, recursively; `metadata.csv` has file and any of text, licence, attribution, recording."""

    kind: Literal["folder"]
    path: InputPath
    name: Name = "folder"


class Esc50Sounds(Section):
    """The ESC-50 folder, with `meta/esc50.csv` and `audio/`."""

    kind: Literal["esc50"]
    path: InputPath
    name: Name = "esc50"


class AudioSetSounds(Section):
    """AudioSet: a segment list, the class labels, and a folder of sounds (or tars of them) named by YouTube id.

    Segments without a file are counted as `missing`; so are rows of the other corpora that come with a table.
    """

    kind: Literal["audioset"]
    path: InputPath = Field(description="a folder of sounds, or of tars of them, named by YouTube id")
    segments: InputPath = Field(description="the list of segments, such as balanced_train_segments.csv")
    labels: InputPath = Field(description="class_labels_indices.csv")
    name: Name = "audioset"


class Fsd50kSounds(Section):
    """The FSD50K folder, as its archives unpack; `dev` is the part that is not for evaluation."""

    kind: Literal["fsd50k"]
    path: InputPath
    part: Literal["dev", "eval", "both"] = "dev"
    name: Name = "fsd50k"


class BbcSounds(Section):
    """BBC sound effects: WAV files in a folder, and `BBCSoundEffects.csv` there or elsewhere."""

    kind: Literal["bbc"]
    path: InputPath
    table: InputPath | None = Field(default=None, description="BBCSoundEffects.csv")
    name: Name = "bbc"


class WebDatasetSounds(Section):
    """Tar archives of sounds with a `.json` or `.txt` beside each (LAION-Audio).

    `licence` is that of recordings whose JSON names none.
    """

    kind: Literal["webdataset"]
    path: InputPath
    name: Name = "webdataset"
    licence: str = "unknown"


class ParquetSounds(Section):
    """Parquet files with a Hugging Face audio column (`bytes` or `path`) and a text column (WavCaps, AudioCaps).

    `licence` is that of rows without one in a column of that name.
    """

    kind: Literal["parquet"]
    path: InputPath
    audio_column: str = "audio"
    text_column: str = "text"
    name: Name = "parquet"
    licence: str = "unknown"


Sounds = Annotated[
    FolderSounds | Esc50Sounds | AudioSetSounds | Fsd50kSounds | BbcSounds | WebDatasetSounds | ParquetSounds,
    Field(discriminator="kind"),
]
Device = Literal["auto", "cpu", "cuda"]
Gpus = Annotated[float, Field(gt=0, le=64)]
# Serving engines for which the command is known; see `sonify.vlm.server`.
Engines = Literal["vllm", "sglang", "lmdeploy", "transformers"]
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]*$")]


def check_url(url: str) -> str:
    """Refuse what is no address of a server, or holds a password."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and ".." not in parts.hostname
    except ValueError:
        whole = False
    if not whole or re.search(r"[@?#\s]", url):
        raise ValueError("expected an address such as http://127.0.0.1:8000/v1, without password, query or fragment")
    return url.rstrip("/").removesuffix("/chat/completions")  # as some write it


class CaptionsExtractor(Section):
    """Finds AudioSet-ontology sounds in captions; `file` is a captions table instead of the images' own."""

    kind: Literal["captions"]
    name: Name = "captions"
    file: InputPath | None = None


# The languages in which a model may be asked to answer, by code, and what the question calls them.
LANGUAGES = {
    "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish",
    "sw": "Swahili", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip
ENGLISH = (None, "en")


def check_language(code: str) -> str:
    """Refuse what the question has no word for."""
    if code not in LANGUAGES:
        raise ValueError(f"expected a code, one of {', '.join(LANGUAGES)}")
    return code


class Vlm(Section):
    """What every backend of a vision-language model has in common.

    `image_size` is the shorter side in pixels that images are brought down to before the model sees them.

    `answers` is the form in which it is to say what can be heard: `text` is plain lines; `json` asks for more of each
    thing (whether it is seen, whether it sounds now, where it is, how sure the model is); `schema` asks in the words of
    `json` and has the server hold the model to the form (`response_format` of the OpenAI API). `language` is that of
    the answers; null says nothing of it in `text`, and asks for English in the other two.
    """

    kind: Literal["vlm"]
    name: Name
    model: Model
    max_new_tokens: int = Field(default=512, ge=1, le=8192)
    image_size: int = Field(default=672, ge=16, le=4096)
    answers: Literal["text", "json", "schema"] = "text"
    language: Annotated[str, AfterValidator(check_language)] | None = None


# What `apply_chat_template` is told of the question, beside `template`.
TEMPLATE_TOLD = frozenset(
    ("conversation", "add_generation_prompt", "tokenize", "return_dict", "return_tensors", "processor_kwargs")
)


def check_template(template: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse what the question itself tells the chat template: it would be told twice."""
    if taken := sorted(TEMPLATE_TOLD & template.keys()):
        raise ValueError(f"{taken[0]} is not for template to set: leave it out")
    return template


class TransformersVlm(Vlm):
    """A model in the worker itself, which asks for `gpus` where it runs on a GPU, and always for `cpus`.

    `template` is what the chat template is told beside the question: `{"enable_thinking": false}`.
    """

    backend: Literal["transformers"]
    revision: str | None = None
    device: Device = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    gpus: float = Field(default=1.0, gt=0, le=1)  # more than one GPU takes a serving engine
    cpus: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1, le=1024)
    template: Annotated[dict[str, JsonValue], AfterValidator(check_template)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _no_grammar_here(self) -> "TransformersVlm":
        if self.answers == "schema":
            raise ValueError(
                "answers is schema, and nothing holds a model in the worker to one: set answers: json, which asks in"
                " the same words, or backend endpoint or server"
            )
        return self


def check_extra(body: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse what would take the question out of a request, or bring the answer in another form."""
    if taken := sorted({"model", "messages", "n"} & body.keys()):
        raise ValueError(f"{taken[0]} is not for extra_body to set: leave it out")
    if body.get("stream"):
        raise ValueError("answers are read whole: leave stream out, or set it to null or false")
    return body


class Requests(Section):
    """How an OpenAI-compatible server is asked; times are for one request.

    For servers that refuse what is sent: `token_limit` is the name under which `max_new_tokens` is sent, `temperature:
    null` sends none, `system` is sent as a system message, and `extra_body` is merged into each request, where null
    takes a field out: `{"chat_template_kwargs": {"enable_thinking": false}}`, `{"reasoning_effort": "low"}`.
    """

    concurrency: int = Field(default=32, ge=1, le=1024)
    timeout_sec: float = Field(default=120.0, gt=0, le=3600)
    max_wait_sec: float = Field(
        default=600.0, gt=0, le=7 * 86400
    )  # how long one question is tried again before the unit is left
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105 - a field's name
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    system: str | None = Field(default=None, min_length=1)
    extra_body: Annotated[dict[str, JsonValue], AfterValidator(check_extra)] = Field(default_factory=dict)


class RemoteVlm(Vlm, Requests):
    """What the backends behind an OpenAI-compatible server have in common."""


class EndpointVlm(RemoteVlm):
    """A server that runs already, such as `http://127.0.0.1:8000/v1`; its key is named by environment variable."""

    backend: Literal["endpoint"]
    url: Annotated[str, AfterValidator(check_url)]
    api_key_env: EnvironmentName | None = None


class ServerVlm(RemoteVlm):
    """A serving engine that each worker starts; `command` is a known engine's name or an argument list.

    In the list `{model}`, `{port}` and `{revision}` are filled in.
    """

    backend: Literal["server"]
    revision: str | None = None
    command: Engines | tuple[str, ...] = Field(min_length=1)
    environment: dict[EnvironmentName, str] = Field(default_factory=dict)
    gpus: float = Field(default=1.0, ge=0, le=64)
    cpus: int = Field(default=1, ge=1)
    start_timeout_sec: float = Field(default=1800.0, gt=0)


VlmExtractor = Annotated[TransformersVlm | EndpointVlm | ServerVlm, Field(discriminator="backend")]
Extractor = Annotated[CaptionsExtractor | VlmExtractor, Field(discriminator="kind")]
# CLAP's window; of what is longer, its libraries take a part at random.
CLAP_SECONDS = 10.0


class TextEncoder(Section):
    """Compares the concept with a clip's own text, without a model: by what each is, or by the words in common."""

    kind: Literal["text"]
    matching: Literal["kinds", "words"] = "kinds"


class ClapModel(Section):
    """What both CLAP libraries have in common; `cpus` are the threads of a worker without a GPU.

    `batch_size` texts go through the model at once, and on a GPU as many clips.
    """

    device: Device = "auto"
    gpus: Gpus = 1.0
    cpus: int = Field(default=1, ge=1)
    batch_size: int = Field(default=16, ge=1, le=1024)


class ClapEncoder(ClapModel):
    """CLAP in transformers: a hub id or a folder."""

    kind: Literal["clap"]
    model: Model = "laion/clap-htsat-unfused"
    revision: str | None = None


class LaionClapEncoder(ClapModel):
    """CLAP in its original library: a `.pt` checkpoint. Needs the extra `laion`."""

    kind: Literal["laion_clap"]
    checkpoint: InputPath
    audio_model: Literal["HTSAT-tiny", "HTSAT-base"] = "HTSAT-tiny"
    fusion: bool = False  # whether the checkpoint is one that was trained with feature fusion
    # Only the tokenizer and the shape of the text tower: a hub id or a folder.
    roberta: Model = "roberta-base"
    roberta_revision: str | None = None


class HybridEncoder(Section):
    """Both: `weight` times CLAP's cosine and the rest the text encoder's, of that `matching`."""

    kind: Literal["hybrid"]
    audio: Annotated[ClapEncoder | LaionClapEncoder, Field(discriminator="kind")] = ClapEncoder(kind="clap")
    weight: Share = 0.7
    matching: Literal["kinds", "words"] = "kinds"


def to_tagger(value: str) -> str:
    """As `to_model`; a `.tflite` file is made absolute, too, and need not be here where a run is only looked at."""
    return str(expand_user(value).absolute()) if value.endswith(".tflite") else to_model(value)


class Tagger(Section):
    """A classifier of sounds with AudioSet's classes, which hears every clip of the pool once.

    `model` is an audio classifier of transformers (a hub id or a folder), or a `.tflite` file that takes 16 kHz mono
    and gives scores, as YAMNet does (extra `tagger`), with `labels`, its CSV of `index`, `mid` and `display_name`.
    `cpus` are the threads of a worker without a GPU. A class counts as heard at `floor` and at `of_best` of the clip's
    best score.
    """

    kind: Literal["tagger"]
    model: Annotated[str, Field(min_length=1), AfterValidator(to_tagger)] = "MIT/ast-finetuned-audioset-10-10-0.4593"
    revision: str | None = None
    labels: InputPath | None = None
    of_best: Share = 0.1
    floor: float = Field(default=0.02, ge=0.01, le=1)  # no lower score is kept
    device: Device = "auto"
    gpus: Gpus = 1.0
    cpus: int = Field(default=1, ge=1)
    batch_size: int = Field(default=16, ge=1, le=1024)

    @property
    def is_tflite(self) -> bool:
        """Whether it is a file for LiteRT, and runs on CPUs only."""
        return self.model.endswith(".tflite")

    @model_validator(mode="after")
    def _labels_go_with_a_file(self) -> "Tagger":
        if self.is_tflite and self.labels is None:
            raise ValueError("a .tflite file says no names: set `labels` to its CSV of index, mid and display_name")
        if self.is_tflite and (self.revision is not None or self.device == "cuda"):
            raise ValueError("a .tflite file has no revision and runs on a CPU: leave revision and device out")
        if not self.is_tflite and self.labels is not None:
            raise ValueError("a model of transformers says its names itself: leave `labels` out")
        return self


class Listener(Requests):
    """An audio language model behind a server that runs already, asked once what is heard in each clip."""

    kind: Literal["endpoint"]
    model: Annotated[str, Field(min_length=1)]
    url: Annotated[str, AfterValidator(check_url)]
    api_key_env: EnvironmentName | None = None
    max_new_tokens: int = Field(default=128, ge=1, le=8192)


Confirm = Annotated[Tagger | Listener, Field(discriminator="kind")]


class Purity(Section):
    """How a clip's purity acts: what is heard in it of the concept, against all else.

    Candidates are drawn in proportion to their purity to the power of `weight`; below `at_least` a clip is none.
    """

    weight: float = Field(default=1.0, ge=0, le=10)
    at_least: Share = 0.0


Encoder = Annotated[TextEncoder | ClapEncoder | LaionClapEncoder | HybridEncoder, Field(discriminator="kind")]
# What the published ASTs were trained on: 1024 frames, one every 10 ms.
AST_SAMPLE_RATE_HZ = 16_000
AST_SECONDS = 10.24


class Features(Section):
    """Which networks look and listen; `cpus` are the threads of a worker without a GPU.

    `size` is the side of the square image in pixels; `frequency` says what becomes of AST's rows of one time: their
    mean, or all of them.
    """

    vae: Model = "stabilityai/sd-vae-ft-ema"  # an AutoencoderKL or an AutoencoderTiny
    vae_revision: str | None = None
    ast: Model = "MIT/ast-finetuned-audioset-10-10-0.4593"
    ast_revision: str | None = None
    size: Annotated[int, Field(ge=64, le=2048, multiple_of=16)] = 512
    frequency: Literal["mean", "all"] = "mean"
    flip: bool = False  # also the latents of the mirrored image
    std: bool = False  # also the posterior's standard deviation
    device: Device = "auto"
    # A released model listens in float32; bfloat16 is faster. `auto` is bfloat16 on a GPU.
    dtype: Literal["auto", "bfloat16", "float32"] = "float32"
    gpus: Gpus = 1.0
    cpus: int = Field(default=1, ge=1)
    batch_size: int = Field(default=16, ge=1, le=1024)


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
