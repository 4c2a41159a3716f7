"""What the released pipelines are called with, checked: numbers, seeds and arrays of whatever library holds them.

B  images or sounds, S  samples, T D  times and width of a condition
"""

import math
import sys
from typing import Any

import numpy as np
import torch

MAX_SEED = 2**63 - 1
Generators = torch.Generator | list[torch.Generator]


def as_trained(name: str, given: Any) -> torch.Tensor:
    """Round to the float16 of the training shards."""
    rounded = as_tensor(name, given).to("cpu", torch.float16).float()
    if not rounded.isfinite().all():
        raise ValueError(f"expected {name} within the {torch.finfo(torch.float16).max:g} of float16, found larger ones")
    return rounded


def as_tensor(name: str, given: Any) -> torch.Tensor:
    """Finite real numbers as a tensor: an array of either library, or lists."""
    if isinstance(given, np.ndarray):  # torch takes neither another byte order nor a view from the end
        given = np.ascontiguousarray(given, given.dtype.newbyteorder("="))
    try:
        tensor = torch.as_tensor(given)
        is_real = not tensor.is_complex() and tensor.dtype != torch.bool
        if is_real and tensor.layout == torch.strided and tensor.isfinite().all():
            return tensor
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"expected {name} as an array of numbers, found {told(given)} ({error})") from error
    raise ValueError(f"expected {name} as an array of finite, real numbers, found {told(given)}")


def as_sounds(audio_BS: Any) -> torch.Tensor:
    """Mono sounds of one length (B, S), as floats."""
    sounds_BS = as_tensor("audio_BS", audio_BS)
    if sounds_BS.ndim != 2 or not len(sounds_BS):
        raise ValueError(f"expected (B, S), mono sounds of one length, found {tuple(sounds_BS.shape)}")
    if not sounds_BS.is_floating_point():
        raise ValueError(f"expected audio_BS as floats within 1, found {sounds_BS.dtype}: divide by its full scale")
    return sounds_BS


def as_number(name: str, given: Any, low: float, high: float = math.inf) -> float:
    """A finite number, as an array of no dimension is one too."""
    value = one_of(given)
    if isinstance(value, int | float) and low <= value <= min(high, sys.float_info.max):
        return float(value)
    limits = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
    raise ValueError(f"expected {name}, a number of {limits}, found {told(given)}")


def as_count(name: str, given: Any, most: float = math.inf) -> int:
    """A whole number of at least one."""
    value = one_of(given)
    if isinstance(value, int) and 1 <= value <= most:
        return value
    limits = "at least 1" if most == math.inf else f"at least 1 and at most {most}"
    raise ValueError(f"expected {name}, a whole number of {limits}, found {told(given)}")


def as_interval(given: Any) -> tuple[float, float] | None:
    """Two noise levels, the lower first; None is all of them."""
    if given is None:
        return None
    ends = [one_of(end) for end in _listed(given) or ()]
    if len(ends) == 2 and all(isinstance(end, int | float) for end in ends) and 0 <= ends[0] <= ends[1]:
        return ends[0], ends[1]
    raise ValueError(f"expected guidance_interval as (low, high) of sigma, found {told(given)}")


def as_seeds(given: Any) -> list[int] | None:
    """A list of seeds, where any are given."""
    if given is None:
        return None
    listed = _listed(given)
    seeds = [one_of(seed) for seed in listed or ()]
    if listed is None or not all(isinstance(seed, int) and 0 <= seed <= MAX_SEED for seed in seeds):
        raise ValueError(f"expected seeds from 0 to {MAX_SEED}, one for each image, found {told(given)}")
    return seeds


def as_generators(given: Any) -> Generators | None:
    """One of torch's generators, or a list of them, where any are given."""
    if given is None or isinstance(given, torch.Generator):
        return given
    listed = _listed(given)
    if listed is None or not all(isinstance(one, torch.Generator) for one in listed):
        raise ValueError(f"expected a torch.Generator, or one for each image, found {told(given)}")
    return listed


def _listed(given: Any) -> list | None:
    """A row of things, whatever holds it; None where it is none, as a text or a single number."""
    if isinstance(given, list | tuple | range):
        return [*given]
    is_row = isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 1
    return given.tolist() if is_row else None


def one_of(given: Any) -> Any:
    """A number of numpy's or torch's as Python's; what is none, or a truth value, as None."""
    if isinstance(given, np.generic | np.ndarray | torch.Tensor) and given.ndim == 0:
        given = None if isinstance(given, torch.Tensor) and given.is_meta else given.item()
    return None if isinstance(given, bool) else given


def told(given: Any) -> str:
    """What was given, in a few words."""
    if isinstance(given, np.ndarray | torch.Tensor) and given.ndim:
        return f"{type(given).__name__} of shape {tuple(given.shape)} and {given.dtype}"
    return " ".join(repr(given).split())[:100]


def in_parts(rows: Any, size: int) -> list:
    """What is in a row, so many at once."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
