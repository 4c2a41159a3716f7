"""Loads fetched models into torch, and refuses what transformers would only warn of."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
import transformers
from transformers import PreTrainedModel

from sonify.errors import InputError
from sonify.io.machine import given_gpus, nvidia_driver, why_no_cuda
from sonify.models.fetch import FetchedModel, check_attention

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Network = TypeVar("Network", bound=torch.nn.Module)


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that is asked for; `auto` is the GPU where there is one.

    Raises:
        InputError: torch finds no GPU where one was asked for, or was given to this process by Ray, Slurm or a user.
    """
    if device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    why = why_no_cuda(torch.version.cuda, nvidia_driver())
    if device == "cuda":
        raise InputError(
            f"device: cuda was asked for, and torch finds no GPU here ({why}); use `device: auto` or `cpu`"
        )
    if given := given_gpus():  # a GPU that is paid for must not stand idle beside the CPU's work
        raise InputError(
            f"device: auto, and this worker was given GPU {', '.join(given)} (CUDA_VISIBLE_DEVICES), but torch finds no"
            f" GPU: {why}; mend that, or set `device: cpu`"
        )
    return torch.device("cpu")


def choose_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The precision that is asked for; `auto` is bfloat16 on a GPU, float32 on a CPU."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, dtype)


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Full float32 and repeatable sums; set each time, since another stage in this process may differ."""
    torch.set_num_threads(threads)
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), exact:
        yield


def load_network(auto_class: Any, fetched: FetchedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model class's weights for inference.

    Raises:
        InputError: the library cannot build it, it does not fit on the GPU, its settings ask for code of a repository,
            or weights are missing: the library would fill in random numbers.
    """
    check_attention(fetched.path)
    transformers.logging.disable_progress_bar()  # every worker's own bars would be written over each other
    network, report = read_network(auto_class, fetched, dtype=dtype, trust_remote_code=False)
    check_whole(network, report, fetched)
    return place_network(network, device, fetched)


def read_network(network_class: Any, fetched: FetchedModel, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """Let transformers or diffusers build a network of a folder's safetensors; the network, and the library's report.

    Raises:
        InputError: the library cannot.
    """
    try:
        return network_class.from_pretrained(
            fetched.path,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # `check_whole` names them: the library would not
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # of a damaged folder the library raises whatever its code meets
        raise cannot_load(fetched, error) from error


def check_whole(network: torch.nn.Module, report: Mapping[str, Any], fetched: FetchedModel) -> None:
    """Refuse weights that lack a tensor, by the report that transformers and diffusers give when they load one."""
    # a mismatch is a name, or a name with both shapes
    mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    if wrong := sorted({*report["missing_keys"], *mismatched}):
        raise InputError(
            f"{fetched.path}: {len(wrong)} of the tensors of {type(network).__name__} are not in the weights, or in"
            f" another shape, such as {wrong[0]}; fetch the model again, or take one of this type"
        )


def check_layers(layers: Sequence[int], has: int, name: str) -> None:
    """Refuse the number of a layer that a network does not have."""
    if lacking := [n for n in layers if not 1 <= n <= has]:
        raise InputError(
            f"features.layers: expected numbers from 1 to {has}, the layers of this {name}, found {lacking}"
        )


def place_network(network: Network, device: torch.device, fetched: FetchedModel) -> Network:
    """Bring a network to its device, for inference."""
    try:
        return network.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise InputError(f"{fetched.model}: does not fit on the GPU; take a larger one, or a smaller model") from error


def load_part(auto_class: Any, fetched: FetchedModel) -> Any:
    """Load a processor, tokenizer or feature extractor.

    Raises:
        InputError: a file is missing or damaged, or a library that it needs is.
    """
    try:
        return auto_class.from_pretrained(fetched.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise cannot_load(fetched, error) from error


def cannot_load(fetched: FetchedModel, error: Exception) -> InputError:
    """What a library's own complaint about a model's files becomes."""
    why = " ".join(str(error).split())[:300]
    return InputError(f"{fetched.path}: the library cannot load {fetched.model} ({type(error).__name__}: {why})")
