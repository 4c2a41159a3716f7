import pytest
import torch
from torch import nn

from train.config import Transformer
from train.ema import Ema
from train.execution import compile_blocks
from train.model import init_transformer


def set_weights(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def weights(model: nn.Module) -> list[float]:
    return [float(parameter.flatten()[0].detach()) for parameter in model.parameters()]


def model_of(value: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    set_weights(model, value)
    return model


def test_the_average_is_the_geometric_one() -> None:
    model = model_of(8.0)
    ema = Ema(model, decay=0.5)
    for value in (4.0, 2.0):
        set_weights(model, value)
        ema.update(model)
    ema.copy_to(model)
    assert weights(model) == [0.25 * 8 + 0.25 * 4 + 0.5 * 2] * 4


def test_slow_averages_keep_their_digits_beside_weights_of_half_precision() -> None:
    model = model_of(1.0).bfloat16()
    ema = Ema(model, decay=0.9999)
    set_weights(model, 2.0)
    for _ in range(10):
        ema.update(model)
    for average in ema.state_dict().values():
        assert average.dtype == torch.float32
        torch.testing.assert_close(average, torch.full_like(average, 2 - 0.9999**10))


def sample_and_be_interrupted(model: nn.Module, ema: Ema) -> None:
    with ema.applied_to(model):
        assert weights(model) == [2.0] * 4
        raise KeyboardInterrupt


def test_the_model_gets_its_own_weights_back() -> None:
    model = model_of(1.0)
    ema = Ema(model, decay=0.5)
    set_weights(model, 3.0)
    ema.update(model)
    with pytest.raises(KeyboardInterrupt):
        sample_and_be_interrupted(model, ema)
    assert weights(model) == [3.0] * 4
    assert [float(average.flatten()[0]) for average in ema.state_dict().values()] == [2.0] * 4


def test_a_saved_average_goes_on_as_if_never_stopped() -> None:
    model, other = model_of(1.0), model_of(5.0)
    ema, resumed = Ema(model, decay=0.9), Ema(other, decay=0.9)
    resumed.load_state_dict({name: average.clone() for name, average in ema.state_dict().items()})
    set_weights(model, 2.0)
    for average in (ema, resumed):
        average.update(model)
    for name, average in ema.state_dict().items():
        assert torch.equal(average, resumed.state_dict()[name])


def test_another_models_average_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.bias"):
        Ema(model_of(1.0), decay=0.9).load_state_dict(Ema(nn.Sequential(nn.Linear(2, 2)), decay=0.9).state_dict())


def test_compiled_blocks_keep_the_names() -> None:
    config = Transformer(layers=1, heads=1, head_dim=8, sample_size=4, caption_channels=3)
    transformer, _ = init_transformer(config, seed=0)
    ema = Ema(transformer, decay=0.9)
    compile_blocks(transformer)
    ema.update(transformer)
    assert list(ema.state_dict()) == [name for name, _ in transformer.named_parameters()]
    assert set(ema.state_dict()) == set(transformer.state_dict())
