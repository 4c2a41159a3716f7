"""What the towers have in common: weights that are checked and hashed before they are read, and batches.

B  inputs, D  width of a vector
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sonify.errors import InputError
from sonify.io.commits import digest_of
from sonify.io.write import sha256_of
from sonify.models.fetch import FetchedModel, weight_files
from sonify.models.loading import choose_device, computing
from sonify.stores import Place

BATCH = 32
# What float32 holds exactly; I64 are counters.
WIDENED = ("F16", "BF16", "F32", "I64")
HALVES = (torch.float16, torch.bfloat16)
# Of transformers; by name, as a hub's cache has more files of a model or fewer, by what else has fetched them.
SETTINGS = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    "added_tokens.json",
)
Input = TypeVar("Input")
Shapes = Mapping[str, tuple[int, ...]]
Forward = Callable[[Tensor], Tensor]


def hash_file(weights: Place, expected: str | None) -> tuple[Path, str]:
    """The file on this machine, and its sha256; where one is expected, it is that.

    Raises:
        InputError: it is not a file on this machine, or another one than was asked for.
    """
    if not isinstance(weights, Path) or not weights.is_file():
        raise InputError(f"{weights}: expected a file of weights on this machine, found none")
    found = sha256_of(weights)
    if expected is not None and found != expected:
        raise InputError(
            f"{weights}: expected weights of sha256 {expected}, found {found}; take the file that was asked for, or"
            " mend `sha256`"
        )
    return weights, found


def hash_models(*models: FetchedModel) -> str:
    """One hash for the weights of a tower: of one file its sha256, as its hub shows it, else of the files' sha256."""
    digests = [sha256_of(file) for model in models for file in weight_files(model.path)]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(f"{one}\n" for one in digests).encode()).hexdigest()
    )


def hash_settings(model: FetchedModel) -> str:
    """A digest of what changes vectors beside the weights: how the network is built, and how inputs are prepared."""
    digests = [[name, sha256_of(model.path / name)] for name in SETTINGS if (model.path / name).is_file()]
    return f"settings {digest_of(digests)[:12]}"


def check_tensors(path: Path, wanted: Shapes, network: str, optional: Sequence[str] = ()) -> None:
    """Refuse a safetensors file, by its header, that has not all that a network has, in its shapes, and no more.

    Raises:
        InputError: it is damaged, or holds something else.
    """
    with _opened(path) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
        check_shapes(str(path), found, wanted, network, optional)
        kinds = {name: file.get_slice(name).get_dtype() for name in found}
    if odd := next((name for name in sorted(kinds) if kinds[name] not in WIDENED), None):
        raise InputError(
            f"{path}: {odd} is of type {kinds[odd]}; expected {', '.join(WIDENED)}: take weights that are not quantised"
        )


def read_tensors(path: Path, wanted: Shapes, network: str, optional: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a safetensors file that `check_tensors` lets pass, in float32.

    Raises:
        InputError: it is damaged, or holds something else.
    """
    check_tensors(path, wanted, network, optional)
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - as above
    # copied: where in the file a tensor begins would change the last bits of its products
    return {name: tensor.float() if tensor.dtype in HALVES else tensor.clone() for name, tensor in tensors.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file, or damaged ({error}); fetch or convert it again") from error


def check_shapes(where: str, found: Shapes, wanted: Shapes, network: str, optional: Sequence[str] = ()) -> None:
    """Refuse weights that are not a network's, by their names and shapes."""
    lacking = sorted(wanted.keys() - found.keys() - set(optional))
    foreign = sorted(found.keys() - wanted.keys())
    bent = sorted(name for name in wanted.keys() & found.keys() if tuple(wanted[name]) != tuple(found[name]))
    if not (lacking or foreign or bent):
        return
    if bent:
        example = f"{bent[0]} is {list(found[bent[0]])} instead of {list(wanted[bent[0]])}"
    else:
        example = f"{lacking[0]} is not there" if lacking else f"{foreign[0][:100]} is unknown"
    raise InputError(
        f"{where}: expected the {len(wanted)} tensors of {network}, found {len(found)}: {len(lacking)} are missing,"
        f" {len(foreign)} unknown, {len(bent)} of another shape ({example}); take the weights of that network"
    )


class Embedding(Generic[Input]):
    """Takes inputs to vectors in batches, with a network that is loaded at the first of them.

    A batch holds inputs of equal shape, since that is what a network takes; every vector is its own input's alone.
    """

    def __init__(self, prepare: Callable[[Input], Tensor], load: Callable[[torch.device], Forward]) -> None:
        self._prepare = prepare

        @cache
        def loaded() -> tuple[torch.device, Forward]:
            device = choose_device("auto")
            return device, load(device)

        self._loaded = loaded

    def __call__(self, inputs: Sequence[Input]) -> np.ndarray:
        """Return (B, D) float32."""
        assert inputs, "nothing to embed"
        device, forward = self._loaded()
        rows = []
        with computing(torch.get_num_threads()):
            for start in range(0, len(inputs), BATCH):
                prepared = [self._prepare(one) for one in inputs[start : start + BATCH]]
                for _, alike in groupby(prepared, key=lambda one: one.shape):
                    rows.append(forward(torch.stack(list(alike)).to(device)).float().cpu().numpy())
        return np.concatenate(rows)
