"""What the tests of the In-the-wild system build: the golden file's parts, and tiny networks of the real classes."""

import gzip
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from eval.baselines.wild.act import COUNTER, POSITIONS, act_shapes
from eval.baselines.wild.attention import Heard
from eval.towers.wav2clip import HANN, wav2clip_shapes
from tests.eval.towers.built import golden, seeded_weights
from tests.tiny_networks import edit_weights
from train.tiny import write_tiny_sd

START, END = 49406, 49407


def facts(name: str) -> Any:
    """A part of the golden file."""
    return golden("in_the_wild")[1][name]


def uniform(seed: int, *shape: int) -> torch.Tensor:
    """The golden files' u(seed, shape)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def golden_heard(n: int = 0) -> Heard:
    """A caption of the golden file with its probabilities and nouns' scores."""
    words = facts("word_weights")
    caption, p, nouns = (words[key][n] for key in ("captions", "word_probability", "noun_score"))
    return Heard(words=tuple(caption.split()), probabilities=tuple(p), noun_scores=tuple(nouns), nouns_by="flair")


class GoldenTokenizer:
    """The tokens of the golden caption, which CLIP's own vocabulary does not give for all of its words."""

    model_max_length, bos_token_id, eos_token_id = 77, START, END

    def encode(self, word: str, *, add_special_tokens: bool) -> Sequence[int]:
        assert not add_special_tokens
        return facts("token_weights")["tokens_of_word"][golden_heard().words.index(word)]


def published_tokenizer() -> CLIPTokenizer:
    """CLIP's own, from the vocabulary that an installed package carries."""
    spec = find_spec("laion_clap")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "clap_module" / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    merges: Any = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocab = {token: n for n, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    made: Any = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    return made


def golden_text_tower() -> CLIPTextModel:
    """The text tower of the golden conditioning."""
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        hidden_act="quick_gelu", bos_token_id=START, eos_token_id=END,
    )  # fmt: skip
    network = CLIPTextModel(config).eval().requires_grad_(False)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if "position_ids" not in name}
    network.load_state_dict(seeded_weights(shapes, 6000), strict=False)
    return network


def golden_sound() -> np.ndarray:
    """The two seconds at 32 kHz of the golden log-mel: a tone of 440 Hz, and one that rises."""
    t = np.arange(64_000) / 32_000
    return (0.3 * np.sin(2 * np.pi * 440 * t) + 0.1 * np.sin(2 * np.pi * (200 + 900 * t) * t)).astype(np.float32)


def write_wav2clip(path: Path) -> Path:
    """Wav2CLIP's network with seeded weights."""
    shapes = {name: shape for name, shape in wav2clip_shapes().items() if name != HANN and "batches" not in name}
    save_file(seeded_weights(shapes, 1000), path)
    return path


def write_act(folder: Path, vocabulary: Sequence[str]) -> tuple[Path, Path]:
    """ACT's network with seeded weights, and its vocabulary."""
    shapes = {n: shape for n, shape in act_shapes(len(vocabulary)).items() if n not in (POSITIONS, COUNTER)}
    save_file(seeded_weights(shapes, 9000), folder / "act.safetensors")
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in vocabulary))
    return folder / "act.safetensors", folder / "words.txt"


def write_sd(folder: Path) -> Path:
    """The tiny Stable Diffusion with a last norm as trained ones have it: where it is new, the mean of all that the
    text tower gives is zero, and to bring something back to that mean is to divide by zero."""
    write_tiny_sd(folder)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        bias = next(name for name in tensors if name.endswith("final_layer_norm.bias"))
        tensors[bias] = 0.1 + 0.1 * uniform(11, *tensors[bias].shape)

    edit_weights(folder / "text_encoder" / "model.safetensors", change)
    return folder


def write_whisper(folder: Path) -> Path:
    """A Whisper of one layer and 1 s of sound, whose tokens are bytes."""
    letters = list(bytes_to_unicode().values())
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    vocab = {token: n for n, token in enumerate([*letters, *special])}
    tokenizer: Any = WhisperTokenizer(vocab=vocab, merges=[], language=None, task=None)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    config = WhisperConfig(
        vocab_size=len(vocab), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=80, max_source_positions=50,
        max_target_positions=64, decoder_start_token_id=vocab["<|startoftranscript|>"],
        bos_token_id=vocab["<|endoftext|>"], eos_token_id=vocab["<|endoftext|>"], pad_token_id=vocab["<|endoftext|>"],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = WhisperForConditionalGeneration(config)
    network.generation_config.suppress_tokens = None
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
    return folder
