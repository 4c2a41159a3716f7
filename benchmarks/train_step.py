"""One training step of one model, three ways, in turns: diffusers' class as it comes, upstream's recipe, and ours.

Run as `python -m benchmarks.train_step`; three minutes on two cores. On a CPU the model is small (7M parameters, 128
pixels, batch 64) in float32 and the floor a ratio of 1.2 against the class as it comes with AVX-512 and 1.0 without, by
default, with equal losses; linear layers plain and as convolutions whatever is chosen here, and bfloat16 with compiled
blocks, are lines of their own. With `--device cuda` it is XL/2 at 512 pixels with 50 condition vectors in
bfloat16, where the floors are half of the measured matrix-product peak and twice upstream's recipe; it is laid out for
an H200 (`--batch` for less memory) and was not measured yet. A step is noise, prediction, loss, gradients, clipping and
AdamW, on batches that are there.

The losses of all ways are compared over STEPS steps first; every weight takes part, none is zero.

    B  images    C H W  channels, height and width of the latents    T D  times and width of the condition
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.train_step", extra="dev"))

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import interleaved, report
from sonify.models.loading import choose_device
from sonify.terminal import Parser, run_command
from train.config import Optimizer, Transformer
from train.diffusion import NUM_TIMESTEPS, add_noise, diffusion_loss
from train.execution import convolving_wins, set_execution
from train.loop import start_learner
from train.metrics import forward_flops, matmul_peak_flops
from train.model import init_transformer, predict

STEPS = 5
OPTIMIZER = Optimizer(learning_rate=1e-4, clip_norm=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is trained on what."""

    device: torch.device
    model: Transformer
    tokens: int
    batch: int


CPU = Setting(
    device=torch.device("cpu"),
    model=Transformer(layers=6, heads=4, head_dim=64, sample_size=16, caption_channels=521),
    tokens=10,
    batch=64,
)
GPU = Setting(device=torch.device("cuda"), model=Transformer(), tokens=50, batch=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way of doing a step; `step` takes its number and returns the loss, and `sync` waits for the device."""

    step: Callable[[int], Tensor]
    losses: tuple[float, ...]
    peak_gib: float | None


class Float32Attention:
    """Self-attention as upstream has it: its product and softmax in float32 whatever the rest is in."""

    def __call__(self, attention: Attention, hidden_BND: Tensor, **_unused: object) -> Tensor:
        batch, tokens, width = hidden_BND.shape
        layers = cast(list[nn.Linear], [attention.to_q, attention.to_k, attention.to_v])
        projected = (layer(hidden_BND) for layer in layers)
        heads = [each.view(batch, tokens, attention.heads, -1).transpose(1, 2).float() for each in projected]
        with torch.autocast(hidden_BND.device.type, enabled=False):
            mixed = functional.scaled_dot_product_attention(*heads)
        mixed_BND = mixed.transpose(1, 2).reshape(batch, tokens, width).to(hidden_BND.dtype)
        return cast(nn.ModuleList, attention.to_out)[0](mixed_BND)


def as_it_comes(model: PixArtTransformer2DModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), lr=OPTIMIZER.learning_rate, eps=OPTIMIZER.eps, weight_decay=OPTIMIZER.weight_decay
    )


def upstream(model: PixArtTransformer2DModel) -> torch.optim.Optimizer:
    model.enable_gradient_checkpointing()
    for name, module in model.named_modules():
        if isinstance(module, Attention) and name.endswith("attn1"):
            module.set_processor(cast(Any, Float32Attention()))
    return as_it_comes(model)


def ours(model: PixArtTransformer2DModel) -> torch.optim.Optimizer:
    """As train.pixart does it."""
    if model.device.type != "cpu":
        return ours_compiled(model)
    return ours_convolved(model) if convolving_wins(CPU.model, CPU.batch) else ours_plain(model)


def ours_plain(model: PixArtTransformer2DModel) -> torch.optim.Optimizer:
    set_execution(model, compiled=False)
    return start_learner(model, OPTIMIZER).optimizer


def ours_convolved(model: PixArtTransformer2DModel) -> torch.optim.Optimizer:
    set_execution(model, compiled=False, linears="convolved")
    return start_learner(model, OPTIMIZER).optimizer


def ours_compiled(model: PixArtTransformer2DModel) -> torch.optim.Optimizer:
    set_execution(model, compiled=True)
    return start_learner(model, OPTIMIZER).optimizer


def make_way(setting: Setting, prepare: Callable[[PixArtTransformer2DModel], torch.optim.Optimizer], bf16: bool) -> Way:
    on_gpu = setting.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    model, _ = init_transformer(setting.model, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    cast(nn.Module, model).to(setting.device).train()
    optimizer = prepare(model)

    def step(number: int) -> Tensor:
        latents, noise, timesteps, audio = make_batch(setting, number)
        noisy = add_noise(latents, noise, timesteps)
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=bf16):
            output = predict(model, noisy, timesteps, audio)
        loss = diffusion_loss(output, latents, noisy, noise, timesteps).total_B.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    losses = tuple(float(step(number)) for number in range(STEPS))
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if on_gpu else None
    return Way(step=step, losses=losses, peak_gib=peak)


def make_batch(setting: Setting, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch of its own for each number, the same for all ways."""
    generator = torch.Generator(setting.device).manual_seed(number)
    model = setting.model
    shape = (setting.batch, model.latent_channels, model.sample_size, model.sample_size)
    latents_BCHW, noise_BCHW = (torch.randn(shape, generator=generator, device=setting.device) for _ in range(2))
    timesteps_B = torch.randint(NUM_TIMESTEPS, (setting.batch,), generator=generator, device=setting.device)
    audio_BTD = torch.randn(
        setting.batch, setting.tokens, model.caption_channels, generator=generator, device=setting.device
    )
    return latents_BCHW, noise_BCHW, timesteps_B, audio_BTD


def compare(name: str, setting: Setting, ours: Way, theirs: Way, peak_flops: float) -> None:
    numbers: dict[str, Iterator[int]] = {"ours": count(STEPS), "theirs": count(STEPS)}
    seconds = interleaved(
        lambda: float(ours.step(next(numbers["ours"]))), lambda: float(theirs.step(next(numbers["theirs"])))
    )
    rates = [setting.batch / taken for taken in seconds]
    needed = 3 * forward_flops(setting.model, setting.tokens)
    differences = [abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
    report(
        name,
        rates[0],
        rates[1],
        "images/s",
        loss_difference=float(f"{max(differences):.1e}"),
        share_of_peak=round(rates[0] * needed / peak_flops, 3),
        peak_tflops=round(peak_flops / 1e12, 3),
        peak_memory_gib=ours.peak_gib and round(ours.peak_gib, 1),
        their_peak_memory_gib=theirs.peak_gib and round(theirs.peak_gib, 1),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="benchmarks.train_step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="images of a step")
    arguments = parser.parse_args(argv)

    def work() -> None:
        setting = GPU if choose_device(arguments.device).type == "cuda" else CPU
        measure(replace(setting, batch=arguments.batch) if arguments.batch else setting)

    return run_command("benchmarks.train_step", work)


def measure(setting: Setting) -> None:
    on_gpu = setting.device.type == "cuda"
    peak = matmul_peak_flops(setting.device, torch.bfloat16 if on_gpu else torch.float32)
    fast, plain, recipe = (make_way(setting, prepare, bf16=on_gpu) for prepare in (ours, as_it_comes, upstream))
    compare("train_step", setting, fast, plain, peak)
    compare("train_step_upstream", setting, fast, recipe, peak)
    if not on_gpu:
        for name, prepare in (("train_step_plain", ours_plain), ("train_step_convolved", ours_convolved)):
            compare(name, setting, make_way(setting, prepare, bf16=False), plain, peak)
        half = make_way(setting, ours_compiled, bf16=True)
        half_peak = matmul_peak_flops(setting.device, torch.bfloat16)
        compare("train_step_bf16", setting, half, plain, half_peak)
