import pytest
import torch
from torch import nn

from train.config import Optimizer
from train.optimizer import learning_rate_at, make_optimizer


def test_the_papers_rate_follows_from_the_square_root_rule() -> None:
    assert learning_rate_at(1000, Optimizer(), total_batch=640) == pytest.approx(3.162e-5, rel=1e-4)
    assert learning_rate_at(1000, Optimizer(), total_batch=256) == 2.0e-5


def test_the_rate_rises_linearly_and_stays() -> None:
    config = Optimizer(learning_rate=1.0, reference_batch=1, warmup_steps=4)
    assert [learning_rate_at(step, config, 1) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_without_warmup_the_first_step_has_the_whole_rate() -> None:
    assert learning_rate_at(1, Optimizer(learning_rate=0.5, reference_batch=4, warmup_steps=0), 4) == 0.5


def test_every_parameter_decays_and_moves_by_the_rate() -> None:
    model = nn.Linear(2, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    config = Optimizer(learning_rate=0.01, weight_decay=0.5)
    optimizer = make_optimizer(model, config)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        # Adam's first step is the gradient's sign (here 1 everywhere) times the rate
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.01 * 0.5) - 0.01)


def test_the_settings_are_the_configurations() -> None:
    (group,) = make_optimizer(nn.Linear(1, 1), Optimizer(betas=(0.8, 0.95), eps=1e-7)).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-7, 3.0e-2)
