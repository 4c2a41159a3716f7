"""Networks of the published sizes with random weights: training features, CLAP, and a vision-language model."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.utils import logging
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    AutoModelForImageTextToText,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    GenerationConfig,
    LlavaConfig,
    RobertaTokenizer,
)

from benchmarks.features import SD_VAE, make_sounds
from benchmarks.gpu.report import Figure
from benchmarks.gpu.room import Room, repeat
from sonify.config import ClapEncoder, Features, TransformersVlm
from sonify.features.ast import AstFeatures
from sonify.features.vae import encode
from sonify.models.loading import computing
from sonify.retrieval.clap import SAMPLE_RATE_HZ, Clap, TransformersTowers
from train.device import peak_bytes, reset_peak
from train.memory import GB

SECONDS = 5  # of a clip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROMPT_TOKENS = 64  # of a question, beside the image's


def features(room: Room) -> Iterator[Figure]:
    """`sonify features`: batches as shipped, in each precision; what is shipped is marked."""
    logging.set_verbosity_error()  # diffusers warns of every cast
    settings = Features()
    batch, size = settings.batch_size, room.sizes.pixels
    torch.manual_seed(0)
    ast: Any = ASTModel(ASTConfig(**room.sizes.ast)).eval()
    shape: dict[str, Any] = {**SD_VAE, "block_out_channels": room.sizes.vae_channels}
    vae: Any = AutoencoderKL(**shape).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    sounds = make_sounds(batch)

    def listening(dtype: torch.dtype) -> Callable[[], object]:
        features = AstFeatures(copy.deepcopy(ast).to(room.device, dtype), ASTFeatureExtractor(), settings.frequency)
        return lambda: features(sounds).cpu()

    def looking(dtype: torch.dtype) -> Callable[[], object]:
        network = copy.deepcopy(vae).to(room.device, dtype)
        return lambda: [encode(network, pixels).mean_BCHW.cpu()]

    for name, make, unit in (("AST", listening, "sounds/s"), ("VAE", looking, "images/s")):
        for spelt, dtype in DTYPES.items():
            with computing(torch.get_num_threads()):
                rate = batch / repeat(make(dtype), room)
            note = f"batches of {batch}" + (f", {size} pixels" if make is looking else "")
            note += ", as shipped" if spelt == settings.dtype else ""
            yield Figure(name=f"{name}, {spelt}", value=round(rate, 2), unit=unit, note=note)


def clap(room: Room) -> Iterator[Figure]:
    """CLAP of the size of `laion/clap-htsat-unfused`, as `sonify` embeds clips and texts."""
    torch.manual_seed(0)
    network: Any = ClapModel(ClapConfig(**room.sizes.clap)).eval()
    extractor: Any = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    tokenizer = RobertaTokenizer(vocab={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}, merges=[])
    settings = ClapEncoder(kind="clap", device="cuda" if room.device.type == "cuda" else "cpu")
    clap = Clap(TransformersTowers(network.to(room.device), extractor, tokenizer), settings, room.device)
    batch = settings.batch_size
    random = np.random.default_rng(0)
    sounds = [random.integers(-3000, 3000, SECONDS * SAMPLE_RATE_HZ).astype(np.int16) for _ in range(batch)]
    rate = batch / repeat(lambda: list(clap.embed_segments(iter(sounds))), room)
    yield Figure(name="clips", value=round(rate, 2), unit="clips/s", note=f"float32, batches of {batch}")
    turn = iter(range(10**9))  # a text that is known is not embedded again

    def embed_texts() -> None:
        now = next(turn)
        clap([f"sound {now * batch + n:09d}" for n in range(batch)])

    rate = batch / repeat(embed_texts, room)
    yield Figure(name="texts", value=round(rate, 2), unit="texts/s", note=f"16 tokens, float32, batches of {batch}")


def llava(room: Room) -> Iterator[Figure]:
    """LLaVA-1.5's shapes in transformers (`backend: transformers`), which a serving engine is faster than."""
    config = LlavaConfig(**room.sizes.llava)
    batch, image_tokens = TransformersVlm.model_fields["batch_size"].default, config.image_seq_length
    torch.manual_seed(0)
    reset_peak(room.device)
    with room.device:  # drawn where it will be: seven billion numbers take a CPU minutes
        network: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
    size = sum(parameter.nbytes for parameter in network.parameters())
    yield Figure(name="weights", value=round(size / GB, 3), unit="GB", note="bfloat16")
    vision: Any = config.vision_config
    words = torch.randint(3, 50, (batch, PROMPT_TOKENS))
    tokens = torch.cat([torch.full((batch, image_tokens), config.image_token_id), words], 1).to(room.device)
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size).to(room.device, torch.bfloat16)
    answer = room.sizes.answer
    greedy = GenerationConfig(do_sample=False, max_new_tokens=answer, min_new_tokens=answer, pad_token_id=0)

    def ask() -> None:
        with torch.inference_mode():
            made = network.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                pixel_values=pixels,
                generation_config=greedy,
            )
        assert made.shape[1] == tokens.shape[1] + answer, made.shape

    seconds = repeat(ask, room)
    note = f"in batches of {batch}, {image_tokens} + {PROMPT_TOKENS} tokens asked"
    yield Figure(name=f"an answer of {answer} tokens", value=round(seconds / batch, 4), unit="s", note=note)
    yield Figure(name="tokens", value=round(batch * answer / seconds, 1), unit="tokens/s", note=note)
    if (peak := peak_bytes(room.device)) is not None:
        yield Figure(name="allocated at the peak", value=round(peak / GB, 2), unit="GB")
