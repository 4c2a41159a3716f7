"""The keys of everything that has a model in it: extractors, encoders, listeners, the networks of features."""

import re
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, JsonValue, StringConstraints, model_validator

from sonify.config.inputs import InputPath, Model, Name, Section, Share, to_model
from sonify.stores import expand_user

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


class Ear(NamedTuple):
    """The network that listens: its key in `features`, and what stands there."""

    kind: Literal["ast", "beats"]
    model: str
    revision: str | None


class Features(Section):
    """Which networks look and listen; `cpus` are the threads of a worker without a GPU.

    `size` is the side of the square image in pixels; `frequency` says what becomes of the ear's rows of one time: their
    mean, or all of them. `layers` are the numbers of the ear's layers whose outputs are joined along the width (4, 8
    and 12 in AudioToken); with none it is the last one. A `beats` listens instead of the AST.
    """

    vae: Model = "stabilityai/sd-vae-ft-ema"  # an AutoencoderKL or an AutoencoderTiny
    vae_revision: str | None = None
    ast: Model = "MIT/ast-finetuned-audioset-10-10-0.4593"
    ast_revision: str | None = None
    beats: Model | None = None  # a folder or a hub's model in safetensors; see `eval.convert_weights`
    beats_revision: str | None = None
    layers: tuple[Annotated[int, Field(ge=1)], ...] = ()
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

    @model_validator(mode="after")
    def _check_ear(self) -> "Features":
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers: expected ascending numbers, found {list(self.layers)}")
        if self.beats is None and self.beats_revision is not None:
            raise ValueError("beats_revision is set, and no beats: name the model too, or leave it out")
        return self

    @property
    def ear(self) -> Ear:
        """What listens: the BEATs where one is named, else the AST."""
        if self.beats is not None:
            return Ear("beats", self.beats, self.beats_revision)
        return Ear("ast", self.ast, self.ast_revision)
