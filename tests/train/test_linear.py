import copy

import pytest
import torch
from torch import nn

from train.config import Transformer
from train.linear import ConvolvedLinear, convolve_linears
from train.model import init_transformer, predict


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 7), (1, 5, 7), (1, 7), (2, 1, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_and_its_gradients_are_the_linear_layers(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(7, 6, bias=bias)
    convolved = copy.deepcopy(linear)
    convolve_linears(convolved)
    assert type(convolved) is ConvolvedLinear
    results = []
    for module in (linear, convolved):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(shape, generator=generator, requires_grad=True)
        y = module(x)
        (y * torch.randn(y.shape, generator=generator)).sum().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in module.parameters())])
    assert results[0][0].shape == results[1][0].shape
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_a_transformer_predicts_the_same_under_the_same_names() -> None:
    config = Transformer(layers=2, heads=2, head_dim=8, sample_size=8, caption_channels=12)
    usual, _ = init_transformer(config, seed=0)
    with torch.no_grad():
        for parameter in usual.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    convolved = copy.deepcopy(usual)
    convolve_linears(convolved)
    assert list(convolved.state_dict()) == list(usual.state_dict())
    given = torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999]), torch.randn(3, 5, 12)
    torch.testing.assert_close(predict(convolved, *given), predict(usual, *given), rtol=1e-4, atol=1e-5)
