"""What is asked of a device, whichever it is: all that speaks to CUDA beside the models themselves."""

import gc

import torch


def wait_for(device: torch.device) -> None:
    """Let a device finish what it was given: a GPU works while the program goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_bytes(device: torch.device) -> int | None:
    """The memory that a GPU has; None on a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Let `peak_bytes` begin anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most that torch had allocated since then; None on a CPU, whose allocator does not count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def forget(device: torch.device) -> None:
    """Give back what nobody holds any more, and what was compiled for it."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
