"""How much arithmetic the transformer needs, and how much the device can do."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from train.config import Transformer
from train.linear import convolve

TIMESTEP_CHANNELS = 256  # of the sinusoids that the timestep's embedding begins with
PEAK_SECONDS = 0.3
PEAK_SIZE = {"cpu": 1024, "cuda": 8192}  # of square matrices; large enough for the peak, small enough for the time


def forward_flops(config: Transformer, num_condition_tokens: int) -> int:
    """Return the floating-point operations of one image's forward pass; training needs three times as many.

    Matrix products only, attention's among them; a multiplication with its addition counts as two.
    """
    width = config.heads * config.head_dim
    patch = config.patch_size**2 * config.latent_channels
    tokens = (config.sample_size // config.patch_size) ** 2
    block = (
        4 * tokens * width**2  # self-attention: queries, keys, values, output
        + 2 * tokens**2 * width
        + 2 * tokens * width**2  # cross-attention: queries, output
        + 2 * num_condition_tokens * width**2  # its keys and values
        + 2 * tokens * num_condition_tokens * width
        + 8 * tokens * width**2  # feed-forward, four times as wide inside
    )
    timestep = TIMESTEP_CHANNELS * width + width**2 + 6 * width**2
    condition = num_condition_tokens * width * (config.caption_channels + width)
    patches = tokens * width * (patch + 2 * patch)  # in, and out with the variance
    return 2 * (config.layers * block + timestep + condition + patches)


def matmul_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations a second of large matrix products, in under a second.

    MFU here is the share of this peak. Elsewhere it is a share of the data sheet's, which no product reaches, and
    comes out lower.
    """
    size = PEAK_SIZE["cuda" if device.type == "cuda" else "cpu"]
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    products: list[Callable[[], Tensor]] = [lambda: left @ right]
    if device.type == "cpu":  # linear layers run as convolutions there, which may be the faster product
        products.append(lambda: convolve(left.view(4, -1, size), right, None))
    return 2 * size**3 / min(_fastest_sec(product, device) for product in products)


def _fastest_sec(product: Callable[[], Tensor], device: torch.device) -> float:
    product()  # the first loads the library
    _wait(device)
    fastest, end = float("inf"), time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        product()
        _wait(device)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
