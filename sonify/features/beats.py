"""BEATs: a transformer over patches of a log-mel spectrogram, under the names of its published weights.

The network is as its authors' code has it at inference: 12 layers with their norms behind them, the residual scaled
(DeepNet), a convolution and a gated bias of relative positions that tell where a patch is. What it classifies by is
not built.

B  sounds, S  samples, F  frames, M  mel bands, L  patches, T  columns of time, R  rows of frequency
H  heads, K  samples of the convolution, D  width

Source: Chen et al., BEATs (arXiv 2212.09058); microsoft/unilm, beats, MIT licence.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from sonify.errors import InputError
from sonify.features.kaldi import FRAME, KaldiLogMel
from sonify.models.fetch import FetchedModel
from sonify.models.loading import check_layers, place_network

MODEL_TYPE = "beats"
WEIGHTS = "model.safetensors"
MEL_BANDS = 128
INT16 = 2.0**15  # of a sample, as Kaldi takes it
MEAN, DEVIATION = 15.41663, 6.55582  # of the log-mel in AudioSet
POVEY = 0.85  # Kaldi's window is Hann's to this power
GATES = 8  # numbers that each head's gate is made of, for both of its halves
# What is not in every BEATs, and is in all that are published.
FIXED: Mapping[str, Any] = {
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "conv_bias": False,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}
BIAS = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
SHARED = re.compile(re.escape(BIAS).replace(r"\{\}", "[1-9][0-9]*"))
UNHEARD = "predictor."  # what a fine-tuned one classifies by
MAX_SIZE, MAX_LAYERS = 1 << 16, 64  # far more than any has


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatsSizes:
    """The sizes of a BEATs, by their published names."""

    input_patch_size: int = 16
    embed_dim: int = 512
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    conv_pos: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800


def read_sizes(config: Mapping[str, Any]) -> BeatsSizes:
    """The sizes that a configuration names, all of them.

    Raises:
        ValueError: one is missing or none that can be, or it is a BEATs of another build than those published.
    """
    for name, expected in FIXED.items():
        if config.get(name) != expected:
            raise ValueError(f"expected {name} {expected}, found {config.get(name)!r}: another network than BEATs")
    found = {field.name: config.get(field.name) for field in fields(BeatsSizes)}
    for name, size in found.items():
        limit = MAX_LAYERS if name == "encoder_layers" else MAX_SIZE
        if type(size) is not int or not 1 <= size <= limit:
            raise ValueError(f"expected {name} as a number from 1 to {limit}, found {size!r}")
    sizes = BeatsSizes(**found)  # pyright: ignore[reportArgumentType] - whole numbers, as seen above
    for name in ("encoder_attention_heads", "conv_pos_groups"):
        if sizes.encoder_embed_dim % getattr(sizes, name):
            raise ValueError(f"expected {name} to divide encoder_embed_dim, found {asdict(sizes)}")
    if MEL_BANDS % sizes.input_patch_size:
        raise ValueError(f"expected input_patch_size to divide {MEL_BANDS} bands, found {sizes.input_patch_size}")
    if sizes.num_buckets < 4 or sizes.num_buckets % 2 or sizes.max_distance <= sizes.num_buckets // 4:
        raise ValueError(
            f"expected an even num_buckets, and a max_distance above its quarter, found {sizes.num_buckets} and"
            f" {sizes.max_distance}"
        )
    return sizes


class Beats(ModelMixin):  # which diffusers saves with a pipeline
    """Normalised log-mel spectrograms, (B, F, M), to what layers give for their (B, L) patches, time after time."""

    def __init__(self, sizes: BeatsSizes) -> None:
        super().__init__()
        patch, width = sizes.input_patch_size, sizes.encoder_embed_dim
        self.sizes = sizes
        self.patch_embedding = nn.Conv2d(1, sizes.embed_dim, patch, stride=patch, bias=False)
        self.layer_norm = nn.LayerNorm(sizes.embed_dim)
        self.post_extract_proj = nn.Linear(sizes.embed_dim, width) if sizes.embed_dim != width else None
        self.encoder = _Encoder(sizes)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In what it computes."""
        return self.patch_embedding.weight.dtype

    def forward(self, log_mel_BFM: torch.Tensor, layers: Sequence[int] = ()) -> torch.Tensor:
        """(B, L, D of each layer in a row); of the last one where none is named."""
        patches = self.patch_embedding(log_mel_BFM.unsqueeze(1))
        hidden_BLD = self.layer_norm(patches.flatten(2).transpose(1, 2))
        if self.post_extract_proj is not None:
            hidden_BLD = self.post_extract_proj(hidden_BLD)
        return self.encoder(hidden_BLD, tuple(layers) or (self.sizes.encoder_layers,))

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write config.json and model.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model_type": MODEL_TYPE, **FIXED, **asdict(self.sizes)}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] - no hub, no shards, no quantisation
        cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **_: Any
    ) -> "Beats":
        """Read what `save_pretrained` writes, or published weights in that form.

        Raises:
            ValueError: it is no BEATs, another one than its configuration says, or damaged.
            OSError: a file cannot be read.
        """
        sizes = read_sizes(json.loads((Path(folder) / "config.json").read_bytes()))
        with torch.device("meta"):
            network: Any = cls(sizes)
        tensors = own_tensors(network, _read_tensors(Path(folder) / WEIGHTS))
        network.load_state_dict(tensors, assign=True)
        # the library's own `to` warns of layers that are kept in float32, of which there are none
        moved: Any = nn.Module.to(network, torch_dtype or torch.float32)
        return moved.requires_grad_(requires_grad=False).eval()


class _Encoder(nn.Module):
    def __init__(self, sizes: BeatsSizes) -> None:
        super().__init__()
        self.pos_conv = nn.Sequential(_PositionConv(sizes))
        self.layer_norm = nn.LayerNorm(sizes.encoder_embed_dim)
        self.layers = nn.ModuleList(_Layer(sizes, has_bias=n == 0) for n in range(sizes.encoder_layers))

    def forward(self, hidden_BLD: torch.Tensor, layers: tuple[int, ...]) -> torch.Tensor:
        hidden_BLD = self.layer_norm(hidden_BLD + functional.gelu(self.pos_conv(hidden_BLD.transpose(1, 2))).mT)
        first: Any = self.layers[0]
        bias_HLL = first.self_attn.relative_bias(
            hidden_BLD.shape[1], hidden_BLD.device
        )  # one for all layers; each has its own gate
        given: list[torch.Tensor] = []
        for n, layer in enumerate(self.layers[: max(layers)], start=1):
            hidden_BLD = layer(hidden_BLD, bias_HLL)
            if n in layers:
                given.append(hidden_BLD)
        return torch.cat(given, -1)


class _PositionConv(nn.Module):
    """A convolution over (B, D, L) whose weights have a length of their own for each of K (torch's old weight norm)."""

    def __init__(self, sizes: BeatsSizes) -> None:
        super().__init__()
        width, self._groups = sizes.encoder_embed_dim, sizes.conv_pos_groups
        self.weight_g = nn.Parameter(torch.ones(1, 1, sizes.conv_pos))
        self.weight_v = nn.Parameter(torch.empty(width, width // self._groups, sizes.conv_pos))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight_v, std=math.sqrt(4 / (sizes.conv_pos * width)))

    def forward(self, hidden_BDL: torch.Tensor) -> torch.Tensor:
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        size = weight.shape[-1]
        convolved = functional.conv1d(hidden_BDL, weight, self.bias, padding=size // 2, groups=self._groups)
        return convolved[..., : hidden_BDL.shape[-1]]  # an even size gives one more


class _Layer(nn.Module):
    def __init__(self, sizes: BeatsSizes, *, has_bias: bool) -> None:
        super().__init__()
        width = sizes.encoder_embed_dim
        self.self_attn = _Attention(sizes, has_bias=has_bias)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, sizes.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(sizes.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self._alpha = (2 * sizes.encoder_layers) ** 0.25

    def forward(self, hidden_BLD: torch.Tensor, bias_HLL: torch.Tensor) -> torch.Tensor:
        hidden_BLD = self.self_attn_layer_norm(hidden_BLD * self._alpha + self.self_attn(hidden_BLD, bias_HLL))
        forward = self.fc2(functional.gelu(self.fc1(hidden_BLD)))
        return self.final_layer_norm(hidden_BLD * self._alpha + forward)


class _Attention(nn.Module):
    """Attention with a bias of relative positions, which each query opens more or less."""

    def __init__(self, sizes: BeatsSizes, *, has_bias: bool) -> None:
        super().__init__()
        width, self._heads = sizes.encoder_embed_dim, sizes.encoder_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.grep_linear = nn.Linear(width // self._heads, GATES)
        self.grep_a = nn.Parameter(torch.ones(1, self._heads, 1, 1))
        self._buckets, self._farthest = sizes.num_buckets, sizes.max_distance
        self.relative_attention_bias = nn.Embedding(sizes.num_buckets, self._heads) if has_bias else None

    def forward(self, hidden_BLD: torch.Tensor, bias_HLL: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            project(hidden_BLD).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        # two halves of four numbers each
        first, second = self.grep_linear(query).unflatten(-1, (2, -1)).sum(-1).sigmoid().chunk(2, -1)
        gate_BHL1 = first * (second * self.grep_a - 1) + 2
        heard = functional.scaled_dot_product_attention(query, key, value, gate_BHL1 * bias_HLL)
        return self.out_proj(heard.transpose(1, 2).flatten(2))

    def relative_bias(self, length: int, device: torch.device) -> torch.Tensor:
        """What each head adds by how far the second of two patches lies behind the first, far ones in steps."""
        assert self.relative_attention_bias is not None
        half = self._buckets // 2  # those before, and those behind
        exact = half // 2
        distance = torch.arange(length)[None] - torch.arange(length)[:, None]
        near = distance.abs()
        # on the CPU: a logarithm that is rounded otherwise is another bucket
        share = (near.clamp(min=1).float() / exact).log() / math.log(self._farthest / exact)
        far = (exact + (share * (half - exact)).long()).clamp(max=half - 1)
        bucket = torch.where(near < exact, near, far) + half * (distance > 0)
        return self.relative_attention_bias(bucket.to(device)).permute(2, 0, 1)


def own_tensors(network: Beats, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a network out of those published for it: without its predictor, and its bias only once.

    Raises:
        ValueError: some are missing, unknown or of another shape or type, or layers have a bias of their own.
    """
    wanted = network.state_dict()
    first = found.get(BIAS.format(0))
    for name in filter(SHARED.fullmatch, found):
        if first is not None and not torch.equal(found[name], first):
            raise ValueError(f"{name} is not that of the first layer: another network than BEATs")
    own = {name: tensor for name, tensor in found.items() if not (SHARED.fullmatch(name) or name.startswith(UNHEARD))}
    lacking, unknown = sorted(wanted.keys() - own.keys()), sorted(own.keys() - wanted.keys())
    bent = sorted(name for name in wanted.keys() & own.keys() if wanted[name].shape != own[name].shape)
    if lacking or unknown or bent:
        example = (bent or lacking or unknown)[0]
        shapes = f" ({list(own[example].shape)} instead of {list(wanted[example].shape)})" if bent else ""
        raise ValueError(
            f"the tensors are not those of the BEATs that its configuration describes: {len(lacking)} are missing,"
            f" {len(unknown)} unknown, {len(bent)} of another shape, such as {example[:100]}{shapes}"
        )
    if odd := next((name for name, tensor in own.items() if not tensor.is_floating_point()), None):
        raise ValueError(f"expected weights as floating-point numbers, found {own[odd].dtype} in {odd}")
    return own


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"{file.name} is not of safetensors, or damaged ({error})") from error


def load_beats(fetched: FetchedModel, device: torch.device, dtype: torch.dtype) -> Beats:
    """Load a BEATs, fetched as `BEATS_FILES`.

    Raises:
        InputError: it is none, another one than its configuration says, damaged, or does not fit on the GPU.
    """
    try:
        network = Beats.from_pretrained(fetched.path, dtype)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{fetched.path}: {error}; make it again with `python -m eval.convert_weights beats`, or take another model"
        ) from error
    return place_network(network, device, fetched)


class BeatsFeatures:
    """Sounds at 16 kHz, all of one length, to (B, T, D) float32 features on the network's device.

    A patch is 16 frames of time and 16 bands: 31 x 8 for five seconds, all within the sound. With `frequency: all` each
    is a vector, the rows of one time together, lowest first, then those of the next (AST's are the other way round);
    with `mean` one is the mean over the rows of one time. With `layers` a vector is what these layers give, one after
    the other; without, it is the last layer's.

    Raises:
        InputError: a layer that the network does not have.
    """

    def __init__(self, network: Beats, frequency: Literal["mean", "all"], layers: Sequence[int] = ()) -> None:
        check_layers(layers, network.sizes.encoder_layers, "BEATs")
        scale = 1 / (2 * DEVIATION)
        window = torch.hann_window(FRAME, periodic=False).pow(POVEY)
        self._network = network
        self.log_mel = KaldiLogMel(MEL_BANDS, window, scale, -MEAN * scale)
        self._frequency = frequency
        self._layers = tuple(layers)
        self._patch = network.sizes.input_patch_size

    def num_columns(self, num_samples: int) -> int:
        """How many columns of time a sound of that length has."""
        return self.log_mel.num_frames(num_samples) // self._patch

    @torch.no_grad()
    def __call__(self, waveforms_BS: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Listen to (B, S) float32 samples between -1 and 1; a tensor is heard where it lies."""
        if self.num_columns(waveforms_BS.shape[1]) < 1:
            raise ValueError(f"a sound of {waveforms_BS.shape[1]} samples is too short for BEATs")
        # an offloaded network is nowhere
        is_placed, dtype = isinstance(waveforms_BS, torch.Tensor), self._network.dtype
        device = waveforms_BS.device if is_placed else self._network.device
        waveforms_BS = torch.as_tensor(waveforms_BS, dtype=torch.float32).to(device) * INT16
        hidden_BLD = self._network(self.log_mel.to(device)(waveforms_BS).to(dtype), self._layers).float()
        if self._frequency == "all":
            return hidden_BLD
        return hidden_BLD.unflatten(1, (-1, MEL_BANDS // self._patch)).mean(2)
