"""How the transformer computes on the device where it is; what it computes stays the same, to the rounding.

On a GPU each block is compiled. On a CPU in float32 the linear layers may be computed as convolutions, which is faster
where MKL has no code for the processor's widest units, and slower elsewhere: so it is measured when a run begins.

B  images    N  tokens    K  channels of a token
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._dynamo import lookup_backend
from torch._functorch import config as functorch_config
from torch.nn import functional

from sonify.config.text import read_text
from sonify.errors import InputError
from train.config import CONFIG, TrainConfig, Transformer

log = logging.getLogger(__name__)

Linears = Literal["plain", "convolved"]

MEASURED_SECONDS = 1.0
ROUNDS = 3  # at the least, however slow the machine
GAIN = 1.05  # below it the two differ by no more than a shared machine does from one second to the next
MEASURED_TOKENS = 4096  # at the most: from there on the ratio stays as it is


def set_execution(
    model: PixArtTransformer2DModel,
    *,
    compiled: bool,
    recompute: bool = False,
    budget: float | None = None,
    linears: Linears = "plain",
) -> None:
    """Choose how the model computes on the device where it is.

    `budget` is the configuration's `activation_memory_budget`, of compiled blocks.
    """
    if recompute:
        model.enable_gradient_checkpointing()
    if compiled:
        compile_blocks(model, budget)
    if linears == "convolved":
        convolve_linears(model)


def compile_blocks(model: PixArtTransformer2DModel, budget: float | None = None) -> None:
    """Compile each block in place: parameters keep their names, and one compilation serves all blocks, or two where
    those in the middle see fewer tokens.
    """
    # the first block would else get bfloat16, transposed, and the others float32 as it lies: and two graphs be compiled
    model.pos_embed.register_forward_hook(lambda _module, _input, output: output.float().contiguous())
    # DDP's buckets would cut a block into several graphs, to send gradients early; blocks are apart as it is
    dynamo_config.optimize_ddp = False
    compiler = "inductor" if budget is None else partial(_compile_within, budget)  # one, or each block would be its own
    for block in model.transformer_blocks:
        block.compile(backend=compiler, dynamic=False)  # else a second size would make a third, of any size


def _compile_within(budget: float, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Inductor, with a setting of its whole process for as long as this graph takes: other networks do not meet it."""
    with functorch_config.patch(activation_memory_budget=budget):
        return lookup_backend("inductor")(graph, inputs)


def choose_linears(config: TrainConfig, device: torch.device, *, is_main: bool = True) -> Linears:
    """How the linear layers of a run compute: as it says already, as it is told, or as is measured here to be faster.

    All processes have the main one's choice.

    Raises:
        InputError: the run began in another way than it is told now, or in one that this device has not.
    """
    choice: list[Linears | InputError] = ["plain"]
    if is_main:
        try:
            choice = [_choose(config, device)]
        except InputError as error:  # the others wait for an answer
            choice = [error]
    if torch.distributed.is_initialized():
        broadcast_object_list(choice)
    (chosen,) = choice
    if isinstance(chosen, InputError):
        raise chosen
    return chosen


def _choose(config: TrainConfig, device: torch.device) -> Linears:
    possible = device.type == "cpu" and config.precision == "fp32" and not config.compile
    if possible and not (config.run_dir / CONFIG).is_file() and any((config.run_dir / "checkpoints").glob("step-*")):
        raise InputError(
            f"{config.run_dir}: has checkpoints and no {CONFIG}, which says how its linear layers compute; put it back"
            " from the release in pipeline/, or take another run_dir"
        )
    before = recorded_linears(config.run_dir)
    told = None if config.linears == "auto" else config.linears
    if before and told and before != told:
        raise InputError(f"linears: the run in {config.run_dir} began with {before} ones, and is told {told} now")
    chosen = before or told
    if chosen == "convolved" and not possible:
        began = f"the run in {config.run_dir} began with convolved ones, which" if before else "convolved ones"
        raise InputError(
            f"linears: {began} are for a CPU, precision fp32 and compile false; found {device.type},"
            f" {config.precision} and compile {str(config.compile).lower()}: go on there, or take another run_dir"
        )
    if chosen or not possible:
        return chosen or "plain"
    measured = "convolved" if convolving_wins(config.model, config.batch.per_device) else "plain"
    log.info("linears: %s, which this CPU computes faster; the run goes on with it", measured)
    return measured


def recorded_linears(run_dir: Path) -> Linears | None:
    """How the linear layers of a run that is there compute; a run of a version before this key convolved them."""
    file = run_dir / CONFIG
    if not file.is_file():
        return None
    values = read_text(file).values
    on_cpu = values.get("precision") == "fp32" and values.get("compile") is False and not torch.cuda.is_available()
    said = values.get("linears", "convolved" if on_cpu else "plain")
    return said if said in ("plain", "convolved") else None


def convolving_wins(model: Transformer, per_device: int) -> bool:
    """Whether this CPU multiplies a model's matrices faster as convolutions, forward and backward: a second's work.

    Without AVX-512 there is nothing to win (measured on Zen 3: 71 against 76 GFLOP/s), and nothing is tried.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    width, tokens = model.width, model.tokens
    images = min(per_device, max(2, MEASURED_TOKENS // tokens))
    with torch.random.fork_rng(devices=[]):
        tokens_BNK = torch.randn(images, min(tokens, MEASURED_TOKENS), width, requires_grad=True)
        plain, convolved = nn.Linear(width, 4 * width), ConvolvedLinear(width, 4 * width)
    return _ratio(lambda: plain(tokens_BNK).sum().backward(), lambda: convolved(tokens_BNK).sum().backward()) > GAIN


def _ratio(first: Callable[[], object], second: Callable[[], object]) -> float:
    """The seconds of the first over those of the second, the fastest of each, taken in turns."""
    fastest = [float("inf"), float("inf")]
    end, rounds = time.perf_counter() + MEASURED_SECONDS, -1  # the first loads the libraries
    while rounds < ROUNDS or time.perf_counter() < end:
        for n, work in enumerate((first, second)):
            start = time.perf_counter()
            work()
            if rounds >= 0:
                fastest[n] = min(fastest[n], time.perf_counter() - start)
        rounds += 1
    return fastest[0] / fastest[1]


class ConvolvedLinear(nn.Linear):
    """Computes what `nn.Linear` does, to the rounding of float32; parameters and their names are the same.

    On a CPU it is twice as fast: PyTorch gives the matrix products of linear layers to MKL, which has no AVX-512 code
    for AMD's processors, and convolutions to oneDNN, which has; a linear layer is a convolution with a kernel of one
    pixel. Measured on two cores of an EPYC (Zen 5), forward and backward, 4,096 tokens: 171-196 GFLOP/s and 344-413.
    """

    def forward(self, input: Tensor) -> Tensor:
        if len(input) == 1:  # on one thread PyTorch gives a single image to its slow convolution
            return super().forward(input)
        return convolve(input, self.weight, self.bias)


def convolve(input_BNK: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply (B, N, K) or (B, K) by a weight of (channels out, K); nothing is copied, as the strides are the same."""
    rows_BNK = input_BNK if input_BNK.ndim == 3 else input_BNK[:, None]
    pixels_BK1N = rows_BNK[:, None].permute(0, 3, 1, 2)
    output_BK1N = functional.conv2d(pixels_BK1N, weight[:, :, None, None], bias)
    return output_BK1N.permute(0, 2, 3, 1).reshape(*input_BNK.shape[:-1], len(weight))


def convolve_linears(model: nn.Module) -> None:
    """Let every linear layer of a model compute as a convolution, in place; for float32 on a CPU.

    Compiling the blocks as well gains nothing (measured): convolutions between compiled code have their inputs copied.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            assert module.weight.device.type == "cpu", "for the CPU only"
            module.__class__ = ConvolvedLinear
