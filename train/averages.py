"""Averages of the weights: what samples are drawn from and what is released; each is beside the model, in float32.

`Exponential` forgets at one rate. `Power` weighs step k of n by k to a power, so that it reaches back over the same
share of a run at any step: its length is the standard deviation of those weights as a share of n.

Source: EDM2, arXiv 2312.02696, section 3 and appendix C.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

WARMUP_STEPS = 9
Numbers = np.ndarray | np.float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """With `warmup`, what stays at step n is n / (n + 9) at most, and the first weights are soon forgotten.

    Up to the step where that reaches the decay, 90,000 for 0.9999, it is a power average of length 0.09 (power 8).
    """

    decay: float
    warmup: bool

    def decay_at(self, step: int) -> float:
        """What of the average stays at a step, counted from 1."""
        return min(self.decay, step / (step + WARMUP_STEPS)) if self.warmup else self.decay

    def __str__(self) -> str:
        if not self.decay:
            return "the last step's weights"
        how = f"with warm-up: at most n / (n + {WARMUP_STEPS}) at step n" if self.warmup else "without warm-up"
        return f"an exponential average, decay {self.decay} ({how})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """A power-function average of a length, EDM2's sigma_rel; the first weights have no part in it."""

    length: float

    def decay_at(self, step: int) -> float:
        """What of the average stays at a step, counted from 1."""
        return (1 - 1 / step) ** (power_of(self.length) + 1)

    def __str__(self) -> str:
        power = f"step k weighs as k to the power of {power_of(self.length):.2f}"
        return f"a power-function average of length {self.length:g} (sigma_rel of arXiv 2312.02696: {power})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Which average a release holds, and what its length was chosen by: the losses of lengths on held-out images."""

    rule: Exponential | Power
    losses: Mapping[float, float] = field(default_factory=dict)
    images: int = 0


class Average:
    """average = decay * average + (1 - decay) * weights, by the decay of each step, beside the model on its device."""

    def __init__(self, model: nn.Module, rule: Exponential | Power) -> None:
        self.rule = rule
        self._averages = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in learning(model).items()
        }

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's weights, after each step of the optimizer, counted from 1."""
        weights = [parameter.detach().float() for parameter in self._parameters(model)]
        get_ema_multi_avg_fn(self.rule.decay_at(step))(list(self._averages.values()), weights, None)

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


@cache
def power_of(length: float) -> float:
    """The power gamma by which an average of a length weighs its steps.

    Source: EDM2, appendix C; the largest root of its cubic in gamma.
    """
    assert length > 0, length
    roots = np.roots([1.0, 7.0, 16.0 - length**-2, 12.0 - length**-2])
    return float(roots.real.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How stored averages make another one: `coefficients`, which sum to 1, one for each stored average.

    misfit: the share of the wanted weights of the steps, as a norm, that cannot be made of the stored ones.
    growth: how many times as large as in one of them the rounding of the stored numbers is in the sum.
    """

    coefficients: np.ndarray
    misfit: float
    growth: float


def fit(stored: Sequence[tuple[int, float]], step: int, length: float) -> Fit:
    """The least-squares combination of stored averages, each a step and a length, for one at a step of a length.

    That the coefficients sum to 1 is ours: weights that hardly move, as in fine-tuning, are kept as they are.

    Source: EDM2, appendix C.
    """
    steps_S = np.array([at for at, _ in stored], np.float64)
    powers_S = np.array([power_of(of) for _, of in stored])
    wanted, power = np.float64(step), np.float64(power_of(length))
    products_SS = _inner(steps_S[:, None], powers_S[:, None], steps_S, powers_S)
    products_S = _inner(steps_S, powers_S, wanted, power)
    norm = float(_inner(wanted, power, wanted, power))
    # a multiplier beside them holds the sum; the scale of its row does not matter, so it is that of the others
    ones_S1 = np.full((len(stored), 1), norm)
    system = np.block([[products_SS, ones_S1], [ones_S1.T, np.zeros((1, 1))]])
    coefficients_S = np.linalg.lstsq(system, np.append(products_S, norm), rcond=None)[0][:-1]
    left = norm - 2 * coefficients_S @ products_S + coefficients_S @ products_SS @ coefficients_S
    return Fit(
        coefficients=coefficients_S,
        misfit=float(np.sqrt(max(left, 0.0) / norm)),
        growth=float(np.linalg.norm(coefficients_S)),
    )


def _inner(step_a: Numbers, power_a: Numbers, step_b: Numbers, power_b: Numbers) -> np.ndarray:
    """The inner products of two averages' weights over time."""
    ratio = (step_a / step_b) ** np.where(step_a < step_b, power_b, -power_a)
    return (power_a + 1) * (power_b + 1) * ratio / ((power_a + power_b + 1) * np.maximum(step_a, step_b))
