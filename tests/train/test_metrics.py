import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from train.config import Transformer
from train.metrics import METRICS, MetricsFile, forward_flops, matmul_peak_flops, read_metrics
from train.model import init_transformer, predict

LINE = {"step": 1, "loss": 0.5}


@pytest.mark.parametrize("damage", [b"\0\0\0}\n", b'{"foo": 1}\n', b"\xff\xfe}\n", b'{"step": 2, "lo', b"[1]\n"])
def test_a_line_that_a_power_cut_damaged_is_left_out(tmp_path, damage):
    (tmp_path / METRICS).write_bytes(json.dumps(LINE).encode() + b"\n" + damage)
    assert read_metrics(tmp_path) == [LINE]
    MetricsFile(tmp_path, first_step=5).write({"step": 6, "loss": 0.25})
    assert read_metrics(tmp_path) == [LINE, {"step": 6, "loss": 0.25}]


def test_lines_of_steps_that_are_done_again_go(tmp_path):
    file = MetricsFile(tmp_path, first_step=0)
    for step in (1, 2, 3):
        file.write({"step": step, "loss": 0.5})
    MetricsFile(tmp_path, first_step=2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


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
