import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from train.config import Transformer
from train.model import init_transformer, predict
from train.throughput import forward_flops, matmul_peak_flops

TINY = Transformer(layers=3, heads=2, head_dim=8, sample_size=6, patch_size=3, latent_channels=5, caption_channels=7)


def counted_flops(config: Transformer, tokens: int, batch: int) -> int:
    with torch.device("meta"):  # where every kernel of attention is counted
        model, _ = init_transformer(config, seed=0)
        latents = torch.empty(batch, config.latent_channels, config.sample_size, config.sample_size)
        timesteps, condition = torch.zeros(batch), torch.empty(batch, tokens, config.caption_channels)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predict(model, latents, timesteps, condition)
    return counter.get_total_flops()


def test_the_count_is_torchs() -> None:
    assert forward_flops(TINY, 11) * 2 == counted_flops(TINY, 11, batch=2)


def test_the_papers_model_needs_1215_gigaflops() -> None:
    config = Transformer()
    assert forward_flops(config, 50) == counted_flops(config, 50, batch=1)
    assert forward_flops(config, 50) == pytest.approx(1.215e12, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_a_rate_of_this_device(dtype: torch.dtype) -> None:
    assert 1e8 < matmul_peak_flops(torch.device("cpu"), dtype) < 1e15
