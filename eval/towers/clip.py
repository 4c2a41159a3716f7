"""OpenAI's CLIP: pictures by timm, texts by transformers, in one space.

B  inputs, P  places of a text
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeGuard

import timm
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from eval.towers.config import Clip
from eval.towers.pixels import clip_square, cmmd_square
from eval.towers.tower import Tower, Way
from eval.towers.weights import Embedding, Forward, check_tensors, hash_models, hash_settings, read_tensors
from sonify.errors import InputError, did_you_mean
from sonify.io.commits import digest_of
from sonify.models.fetch import (
    TOKENIZER,
    WEIGHTS,
    FetchedModel,
    Files,
    check_tokenizer,
    check_type,
    check_weights,
    fetch_model,
    named,
    read_json,
)
from sonify.models.loading import cannot_load, load_network, load_part

PICTURES = Files(patterns=("config.json", WEIGHTS[0]), checks=(check_weights,))
TEXTS = Files(
    patterns=(*TOKENIZER, "*.safetensors"),
    checks=(check_type("clip", "openai/clip-vit-base-patch32"), check_weights, check_tokenizer),
)
EXAMPLE = "timm/vit_base_patch32_clip_quickgelu_224.openai"
QUICK = "_clip_quickgelu_"
CMMD_SIDE = 336
# What a folder's `model_args` may change of an architecture: its size, never what it is made of or loads.
SIZES = {"img_size", "patch_size", "embed_dim", "depth", "num_heads"}
MAX_SIZE = 8192  # beyond all that is published; a billion blocks would be built for days


@dataclass(frozen=True, slots=True, kw_only=True)
class _Eye:
    """A picture's tower that is fetched and not yet loaded."""

    fetched: FetchedModel
    architecture: str
    width: int
    sizes: dict[str, int]

    @property
    def named(self) -> str:
        """What a vector depends on beside weights and picture: heads, for one, change no shape."""
        return f"network {digest_of([self.architecture, self.width, self.sizes])[:12]}"

    def build(self) -> nn.Module:
        """The network without weights."""
        sizes: dict[str, Any] = dict(self.sizes)
        return timm.create_model(self.architecture, pretrained=False, num_classes=self.width, **sizes)

    @property
    def weights(self) -> Path:
        return self.fetched.path / WEIGHTS[0]


def open_clip(section: Clip, expected: Mapping[str, int] | None = None) -> Tower:
    """CLIP's embeddings, not normalised; of texts too where `text` names a CLIP of transformers.

    The tower of 336 pixels is CMMD's, and prepares pictures as CMMD does: the centre square comes first.

    Raises:
        InputError: a model cannot be had, is none of CLIP's, has the wrong activation, other sizes than are expected,
            or the two share no space.
    """
    eye = _fetch_eye(section)
    sizes = _check_eye(eye)
    if expected is not None and sizes != expected:
        wanted, found = (", ".join(f"{name} {size}" for name, size in each.items()) for each in (expected, sizes))
        raise InputError(
            f"{section.model}: expected the CLIP of {wanted}, found {found}; `towers.yaml`, which comes along, names it"
        )
    side = sizes["side"]
    preparation = cmmd_square(side) if side == CMMD_SIDE else clip_square(side)
    images = Way(
        preprocessing=f"{preparation.id}, {eye.named}", embed=Embedding(preparation.prepare, partial(_load_eye, eye))
    )
    fetched, names, texts = [eye.fetched], [named(section.model, section.revision)], None
    if section.text is not None:
        words = fetch_model(section.text, section.text_revision, TEXTS)
        texts = _open_texts(words, eye)
        fetched, names = [*fetched, words], [*names, named(section.text, section.text_revision)]
    name = f"CLIP {eye.architecture}"
    return Tower(name=name, model=" + ".join(names), sha256=hash_models(*fetched), images=images, texts=texts)


def _fetch_eye(section: Clip) -> _Eye:
    """Find out which architecture is meant, before anything is downloaded, and get its weights."""
    if Path(section.model).is_dir():
        fetched = fetch_model(section.model, section.revision, PICTURES)
        settings = read_json(fetched.path / "config.json") if (fetched.path / "config.json").is_file() else {}
        architecture = str(settings.get("architecture", ""))
        _check_architecture(architecture, f"{section.model}, whose config.json names `architecture` {architecture!r}")
    else:
        name = section.model.removeprefix("timm/")
        architecture = name.partition(".")[0]
        _check_architecture(architecture, section.model)
        fetched = fetch_model(_repository(name), section.revision, PICTURES)
        settings = read_json(fetched.path / "config.json")
    width, sizes = settings.get("num_classes"), settings.get("model_args", {})
    if not _is_size(width):
        raise InputError(f"{fetched.path / 'config.json'}: expected the width of the space as `num_classes`")
    if not isinstance(sizes, dict) or sizes.keys() - SIZES or not all(_is_size(size) for size in sizes.values()):
        raise InputError(f"{fetched.path / 'config.json'}: expected `model_args` of {', '.join(sorted(SIZES))} only")
    return _Eye(fetched=fetched, architecture=architecture, width=width, sizes=sizes)


def _is_size(found: object) -> TypeGuard[int]:
    return type(found) is int and 0 < found <= MAX_SIZE


def _check_architecture(architecture: str, where: str) -> None:
    known = timm.list_models(f"*{QUICK}*")
    if architecture in known:
        return
    quick = architecture.replace("_clip_", QUICK)
    if quick in known:
        raise InputError(
            f"{where}: timm builds that with plain GELU, and OpenAI's weights were trained with QuickGELU; take {quick}"
            f"{' (`architecture` in the config.json of a folder)' if ' ' in where else ''}"
        )
    hint = did_you_mean(architecture, known)
    raise InputError(f"{where}: expected a CLIP of timm's, such as {EXAMPLE}, or the folder of one{hint}")


def _repository(name: str) -> str:
    """Where timm itself gets the weights of a name: the quickgelu names have no repositories of their own."""
    known = timm.list_pretrained(f"*{QUICK}*.openai")
    settings = timm.get_pretrained_cfg(name) if name in known else None
    if settings is None:
        raise InputError(f"timm/{name}: expected weights of OpenAI's, which are {', '.join(known)}")
    return str(settings.hf_hub_id)


def _check_eye(eye: _Eye) -> dict[str, int]:
    """Refuse weights that are not the architecture's, before other towers have worked for hours; its sizes."""
    try:
        with torch.device("meta"):
            network: Any = eye.build()
    except Exception as error:  # of sizes that do not go together timm raises whatever its code meets
        raise cannot_load(eye.fetched, error) from error
    check_tensors(eye.weights, _shapes(network), eye.architecture)
    patch, side = network.patch_embed.patch_size[0], network.patch_embed.img_size[0]
    return {"patch": patch, "side": side, "width": network.embed_dim, "depth": len(network.blocks), "space": eye.width}


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _load_eye(eye: _Eye, device: torch.device) -> Forward:
    network = eye.build()
    network.load_state_dict(read_tensors(eye.weights, _shapes(network), eye.architecture))
    return network.to(device).eval()


def _open_texts(fetched: FetchedModel, eye: _Eye) -> Way:
    config = load_part(CLIPTextConfig, fetched)
    if config.projection_dim != eye.width:
        raise InputError(
            f"{fetched.model}: its texts are vectors of {config.projection_dim}, and pictures of {eye.fetched.model}"
            f" vectors of {eye.width}: they share no space; take both of one CLIP"
        )
    places: int = config.max_position_embeddings

    @cache
    def tokenizer() -> CLIPTokenizer:
        return load_part(CLIPTokenizer, fetched)

    def prepare(text: str) -> Tensor:
        """The (P,) tokens; what follows the end is not seen, and always as long, so that sums are the same."""
        tokens = tokenizer()(text, padding="max_length", truncation=True, max_length=places, return_tensors="pt")
        return tokens["input_ids"][0]

    def load(device: torch.device) -> Forward:
        network = load_network(CLIPTextModelWithProjection, fetched, device, torch.float32)
        return lambda tokens_BP: network(input_ids=tokens_BP).text_embeds

    return Way(preprocessing=f"raw text, {places} tokens, {hash_settings(fetched)}", embed=Embedding(prepare, load))
