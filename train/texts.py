"""What a sample's scenes are said to sound like, and a frozen text tower that turns such texts into vectors.

N  texts, B  texts at once, P  places of a text, W  width of the tower's vectors, K  width of a target
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer
from transformers.utils.logging import set_verbosity_error

from sonify.config.inputs import Model, Section
from sonify.errors import InputError
from sonify.io.commits import digest_of
from sonify.io.write import write_whole
from sonify.models.fetch import FetchedModel, Files, check_tokenizer, check_weights, fetch_model, read_json
from sonify.models.loading import choose_dtype, load_network, load_part
from train.shards import TrainingSample

log = logging.getLogger(__name__)

ENCODER, TOKENIZER = "text_encoder", "tokenizer"  # where a pipeline of diffusers' has them
# fnmatch's `*` crosses folders: what lies in a pipeline is named by its folder, and the rest by its whole name
PATTERNS = (
    f"{ENCODER}/*.json", f"{ENCODER}/*.safetensors", f"{TOKENIZER}/*", "config.json", "model.safetensors",
    "model.safetensors.index.json", "model-*.safetensors", "tokenizer.json", "tokenizer_config.json", "spiece.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip
TYPES = {"t5": ("t5",), "clip": ("clip", "clip_text_model")}
EXAMPLES = {"t5": "PixArt-alpha/PixArt-XL-2-512x512", "clip": "openai/clip-vit-base-patch32"}
AT_ONCE = 64
CACHE = "texts.safetensors"

Target = Callable[[Tensor], Tensor]  # (B, P, W) to (B, P, K)


class T5Text(Section):
    """T5's encoder, which PixArt-alpha reads; `model` is a folder or a hub id, of a pipeline or of T5 alone."""

    kind: Literal["t5"]
    model: Model = "PixArt-alpha/PixArt-XL-2-512x512"
    revision: str | None = None
    max_tokens: int = Field(default=120, ge=2)  # PixArt-alpha's; what follows is not read


class ClipText(Section):
    """CLIP's text tower, as a Stable Diffusion has it, or a whole CLIP."""

    kind: Literal["clip"]
    model: Model
    revision: str | None = None
    max_tokens: int = Field(default=77, ge=2)


Text = Annotated[T5Text | ClipText, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a scene is said to sound like, distinct and sorted, and the recordings that are heard in it."""

    texts: tuple[str, ...]
    recordings: frozenset[str]


def read_said(sample: TrainingSample, reads: Literal["description", "concept"]) -> dict[str, Said]:
    """What is said of each of a sample's scenes: the descriptions, or the concepts, of its sources.

    Raises:
        InputError: a scene names none.
        WorkError: the sample's record is damaged.
    """
    said: dict[str, Said] = {}
    try:
        for scene in sample.record()["scenes"]:
            texts = {" ".join(str(source.get(reads) or "").split()) for source in scene["sources"]} - {""}
            recordings = frozenset(str(source["recording"]) for source in scene["sources"])
            said[str(scene["scene"])] = Said(texts=tuple(sorted(texts)), recordings=recordings)
    except (AttributeError, KeyError, TypeError) as error:
        raise sample.damage("its record has no scenes with sources") from error
    if missing := next((scene for scene in sample.scenes if scene not in said or not said[scene].texts), None):
        raise InputError(
            f"{sample.archive}: sample {sample.key}: scene {missing} names no {reads}: this takes runs that `sonify`"
            " paired by concepts"
        )
    return said


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTower:
    """A tower that is fetched and not yet loaded; a tokenizer may lie in a folder of its own."""

    config: T5Text | ClipText
    encoder: FetchedModel
    tokenizer: FetchedModel

    @property
    def width(self) -> int:
        """W."""
        settings = read_json(self.encoder.path / "config.json")
        key = "d_model" if self.config.kind == "t5" else "hidden_size"
        found = settings.get("text_config", settings).get(key)
        if type(found) is not int or found < 1:
            raise InputError(f"{self.encoder.path / 'config.json'}: expected a whole number `{key}`, found {found!r}")
        return found

    @property
    def identity(self) -> dict[str, Any]:
        """What its vectors follow from."""
        parts = {"encoder": self.encoder.identity, "tokenizer": self.tokenizer.identity}
        return {"kind": self.config.kind, "max_tokens": self.config.max_tokens, **parts}


def fetch_tower(config: T5Text | ClipText) -> TextTower:
    """Find or download a text tower and check its files.

    Raises:
        InputError: it cannot be had, or is no such tower.
    """
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        whole = fetch_model(
            config.model, config.revision, Files(patterns=PATTERNS, checks=(_check_tower(config),), ignored=())
        )
        encoder, tokenizer = (
            FetchedModel(model=whole.model, path=_part(whole.path, name), identity=whole.identity)
            for name in (ENCODER, TOKENIZER)
        )
        return TextTower(config=config, encoder=encoder, tokenizer=tokenizer)
    _check_tower(config)(folder)
    nothing = Files(patterns=(), checks=())
    encoder, tokenizer = (
        fetch_model(str(_part(folder, name)), config.revision, nothing) for name in (ENCODER, TOKENIZER)
    )
    return TextTower(config=config, encoder=encoder, tokenizer=tokenizer)


def _part(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _check_tower(config: T5Text | ClipText) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        part = _part(folder, ENCODER)
        if not (part / "config.json").is_file():
            raise InputError(f"text.model: {folder}: no config.json, so it is not the folder of a model")
        found = read_json(part / "config.json").get("model_type")
        if found not in TYPES[config.kind]:
            raise InputError(
                f"text.model: {part}: expected a text model of type '{TYPES[config.kind][0]}', such as"
                f" {EXAMPLES[config.kind]} has, found {found!r}"
            )
        check_weights(part)
        check_tokenizer(_part(folder, TOKENIZER))

    return check


def embed_texts(
    tower: TextTower, texts: Sequence[str], target: Target | None, target_identity: str, device: torch.device, out: Path
) -> Tensor:
    """The (N, K) float32 vectors of distinct texts: each token through `target`, then the mean over its tokens.

    They are computed once: OUT/texts.safetensors keeps them for the same texts, tower and target.
    """
    digest = digest_of({"texts": list(texts), "tower": tower.identity, "target": target_identity})
    cache = out / CACHE
    if (known := _read_cache(cache, digest)) is not None:
        log.info("%s: has the vectors of these %s texts", cache, f"{len(texts):,}")
        return known
    log.info("embedding %s texts by %s", f"{len(texts):,}", tower.encoder.model)
    set_verbosity_error()  # it warns of a CLIP's other half
    classes = {"t5": (T5EncoderModel, T5Tokenizer), "clip": (CLIPTextModel, CLIPTokenizer)}
    network_class, tokenizer_class = classes[tower.config.kind]
    tokenizer = load_part(tokenizer_class, tower.tokenizer)
    network = load_network(network_class, tower.encoder, device, choose_dtype("auto", device))
    parts: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(texts), AT_ONCE):
            tokens = tokenizer(
                list(texts[start : start + AT_ONCE]),
                padding="max_length",  # so that a vector depends on no text beside its own
                truncation=True,
                max_length=tower.config.max_tokens,
                return_tensors="pt",
            ).to(device)
            read_BP = tokens["attention_mask"]
            hidden_BPW = network(input_ids=tokens["input_ids"], attention_mask=read_BP).last_hidden_state.float()
            target_BPK = hidden_BPW if target is None else target(hidden_BPW)
            read_BP1 = read_BP[..., None].to(target_BPK.dtype)
            parts.append(((target_BPK * read_BP1).sum(1) / read_BP1.sum(1)).cpu())
    vectors_NK = torch.cat(parts)
    if not vectors_NK.isfinite().all():
        raise InputError(f"text.model: {tower.encoder.model}: gives vectors that are not finite; fetch the model again")
    vectors_NK = vectors_NK.contiguous()
    write_whole(cache, save({"vectors": vectors_NK}, {"digest": f"{digest} {_sha256(vectors_NK)}"}))
    return vectors_NK


def _read_cache(path: Path, digest: str) -> Tensor | None:
    """What was kept for the same question; None where there is nothing, or something else."""
    try:
        with safe_open(path, framework="pt") as tensors:
            metadata: Mapping[str, str] = tensors.metadata() or {}
            vectors_NK = tensors.get_tensor("vectors")
    except (OSError, SafetensorError):
        return None
    return vectors_NK if metadata.get("digest") == f"{digest} {_sha256(vectors_NK)}" else None


def _sha256(vectors_NK: Tensor) -> str:
    described = f"{vectors_NK.dtype} {tuple(vectors_NK.shape)} ".encode()
    return hashlib.sha256(described + vectors_NK.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
