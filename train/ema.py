"""The exponential moving average of the weights, which is what samples are drawn from and what is released."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """average = decay * average + (1 - decay) * weights, in float32, beside the model on its device."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._average = get_ema_multi_avg_fn(decay)
        self._averages = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in learning(model).items()
        }

    def update(self, model: nn.Module) -> None:
        """Take in the model's weights, after each step of the optimizer."""
        weights = [parameter.detach().float() for parameter in self._parameters(model)]
        self._average(list(self._averages.values()), weights, None)

    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's weights with the average."""
        _copy(self._parameters(model), self._averages.values())

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Let the model have the average for a while, and then its own weights again."""
        own = [parameter.detach().clone() for parameter in self._parameters(model)]
        self.copy_to(model)
        try:
            yield
        finally:
            _copy(self._parameters(model), own)

    def state_dict(self) -> dict[str, Tensor]:
        """The average under the names of the model's parameters; it is not copied."""
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved average."""
        if state.keys() != self._averages.keys():
            odd = sorted(state.keys() ^ self._averages.keys())
            raise ValueError(f"the average is of another model: {len(odd)} tensors differ, such as {odd[0]}")
        _copy(self._averages.values(), [state[name] for name in self._averages])

    def _parameters(self, model: nn.Module) -> list[Tensor]:
        parameters = learning(model)
        assert parameters.keys() == self._averages.keys(), "the average is of another model"
        return [parameters[name] for name in self._averages]


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model that are not frozen, by their names."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
