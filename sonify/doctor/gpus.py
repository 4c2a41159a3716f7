"""The GPUs of a machine: what the driver has, what torch and FAISS make of it, and what the stages of a run ask for."""

import os
import re
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sonify.config import ClapEncoder, Config, ServerVlm, Tagger, TransformersVlm
from sonify.doctor.findings import Finding, Outcome
from sonify.errors import InputError, missing
from sonify.installed import faiss_trouble, version_of
from sonify.io.machine import OLDEST_DRIVERS, given_gpus, nvidia_driver, why_no_cuda
from sonify.models.fetch import named
from sonify.retrieval.encoders import clap_of
from sonify.retrieval.search import check_gpu, check_gpu_list
from sonify.stages.table import (
    encoder_resources,
    listener_resources,
    model_resources,
    network_resources,
    pairing_resources,
)
from sonify.vlm.backends import model_name

SMI_SECONDS = 10.0  # for all that it is asked
SMI_FIELDS = "index,name,driver_version,memory.total,memory.free"
# What container runtimes and schedulers say of GPUs that were reserved; `all` stands in every CUDA image.
RESERVATIONS = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "NVIDIA_VISIBLE_DEVICES")
_LATE: set[str] = set()  # programs that hung: examinations that follow do not wait again
NOT_RESERVED = ("", "all", "none", "void", "nodevfiles")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, as the driver tells it."""

    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """What of GPUs is to be seen from here: by the driver, by whoever reserved them, and by torch.

    `given` is how many of them this process was given. `torch` and `torch_cuda` are empty where it is not installed,
    or built for CPUs.
    """

    driver: str = ""
    driver_cuda: str = ""
    found: tuple[Gpu, ...] = ()
    device_files: int = 0
    given: int = 0
    reserved_by: str = ""
    torch: str = ""
    torch_cuda: str = ""
    torch_gpus: int = 0

    @property
    def traces(self) -> str:
        """Why one expects GPUs here; empty where there is no trace of any."""
        if self.found:
            return f"{len(self.found)} x {self.found[0].name}"
        if self.reserved_by:
            return f"reserved by {self.reserved_by}"
        return f"{self.device_files} device files /dev/nvidia*" if self.device_files else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one worker of a part of the configuration takes; `needs_gpu` says that it does not do without.

    `model` is as a run records it, with its revision.
    """

    key: str
    name: str
    cpus: float
    gpus: float
    needs_gpu: bool = False
    in_torch: bool = True
    model: str = ""


def asks_of(config: Config) -> list[Ask]:
    """What the workers of a run take, by the part of the configuration that says so, as its stages have it."""
    vlms = [(f"concepts.extractors.{n}", each) for n, each in enumerate(config.concepts.extractors)]
    vlms += [("concepts.checker", config.concepts.checker)] if config.concepts.checker else []
    asks = [
        _ask(key, model_resources(vlm), vlm.name, model_name(vlm), in_torch=isinstance(vlm, TransformersVlm))
        for key, vlm in vlms
        if isinstance(vlm, TransformersVlm | ServerVlm)
    ]
    retrieval = config.retrieval
    clap = clap_of(retrieval.encoder)
    if clap is not None:
        model = named(clap.model, clap.revision) if isinstance(clap, ClapEncoder) else str(clap.checkpoint)
        asks.append(_ask("retrieval.encoder", encoder_resources(retrieval.encoder), model=model))
    confirm = retrieval.confirm
    if isinstance(confirm, Tagger):
        name, model = (confirm.model, "") if confirm.is_tflite else ("", named(confirm.model, confirm.revision))
        resources = listener_resources(confirm)
        asks.append(_ask("retrieval.confirm", resources, name, model, in_torch=not confirm.is_tflite))
    if config.features is not None:
        model = named(*config.features.ear[1:])
        asks.append(_ask("features", network_resources(config.features), model=model))
    if retrieval.search.device == "cuda":
        asks.append(_ask("retrieval.search", pairing_resources(retrieval), "the search", in_torch=False))
    return asks


def _ask(key: str, resources: Mapping[str, Any], name: str = "", model: str = "", *, in_torch: bool = True) -> Ask:
    gpus = resources.get("num_gpus", 0)
    return Ask(
        key=key,
        name=name or key,
        cpus=resources.get("num_cpus", 1),
        gpus=gpus,
        needs_gpu=gpus > 0 and not resources.get("gpu_optional", False),
        in_torch=in_torch,
        model=model,
    )


def examine_gpus(config: Config, elsewhere: bool = False) -> Iterator[Finding]:
    """Examine this machine's GPUs for a run; `elsewhere` says that its workers are on other machines."""
    asks = asks_of(config)
    wanted = any(ask.gpus > 0 for ask in asks)
    seen = look_for_gpus(with_torch=any(ask.in_torch for ask in asks)) if wanted else Gpus()
    yield judge_gpus(seen, asks, elsewhere=elsewhere)
    yield _examine_faiss(config, elsewhere)


def look_for_gpus(*, with_torch: bool) -> Gpus:
    """Ask the driver, the environment and, where it is needed, torch, whose import takes seconds."""
    listed, header = _ask_smi()
    found, driver = parse_gpus(listed)
    torch, torch_cuda, torch_gpus = _ask_torch() if with_torch and find_spec("torch") else ("", "", 0)
    return Gpus(
        driver=driver or nvidia_driver(),
        driver_cuda=parse_cuda(header),
        found=found,
        device_files=sum(1 for path in Path("/dev").glob("nvidia*") if path.name[len("nvidia") :].isdecimal()),
        given=len(given_gpus()),
        reserved_by=_reserved_by(),
        torch=torch,
        torch_cuda=torch_cuda,
        torch_gpus=torch_gpus,
    )


def _ask_smi() -> tuple[str, str]:
    """NVIDIA's list of GPUs and its table; nothing where there is no program of it, or where it fails or is late."""
    program = shutil.which("nvidia-smi")
    if program is None or program in _LATE:
        return "", ""
    deadline = time.monotonic() + SMI_SECONDS
    listed = _say(program, deadline, f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits")
    return listed, _say(program, deadline) if program not in _LATE else ""


def _say(program: str, deadline: float, *words: str) -> str:
    try:
        process = subprocess.Popen(  # noqa: S603 - found on PATH, and only asked
            [program, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    except OSError:
        return ""
    with process:
        try:
            said, _ = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _LATE.add(program)
            return ""
        finally:  # what it may have started, too, which would hold its output open
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    return said.decode(errors="replace") if process.returncode == 0 else ""


def parse_gpus(listed: str) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs of `nvidia-smi --query-gpu=index,name,driver_version,memory.total,memory.free`, and the driver.

    Memory is in MiB, and `[N/A]` or the like where a part of a GPU has none of its own.
    """
    found: list[Gpu] = []
    driver = ""
    for line in listed.splitlines():
        match [word.strip() for word in line.split(",")]:
            case [_, name, str(drives), total, free] if re.fullmatch(r"\d+(\.\d+)+", drives):
                sizes = [int(size) << 20 if size.isdecimal() else 0 for size in (total, free)]
                found.append(Gpu(name=name, memory_bytes=sizes[0], free_bytes=sizes[1]))
                driver = drives
    return tuple(found), driver


def parse_cuda(header: str) -> str:
    """The newest CUDA that a driver knows, of the head of `nvidia-smi`'s table; empty where it says none."""
    found = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+\.\d+)", header)
    return found[1] if found else ""


def _reserved_by() -> str:
    given = given_gpus()
    if given:
        return f"CUDA_VISIBLE_DEVICES={','.join(given)}"
    for name in RESERVATIONS:
        value = os.environ.get(name, "").strip()
        if value.lower() not in NOT_RESERVED:
            return f"{name}={value}"
    return ""


def _ask_torch() -> tuple[str, str, int]:
    """Its version, the CUDA that it is built for, and how many GPUs it finds."""
    import torch  # noqa: PLC0415 - takes seconds, and the light installation has none

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the driver is too old: said in our words
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.__version__, torch.version.cuda or "", count


def judge_gpus(seen: Gpus, asks: Sequence[Ask], *, elsewhere: bool = False) -> Finding:
    """What the GPUs that were seen mean for what is asked for."""
    facts: dict[str, Any] = {**asdict(seen), "asks": [asdict(ask) for ask in asks]}
    asking = [ask for ask in asks if ask.gpus > 0]
    in_torch = [ask for ask in asking if ask.in_torch]
    driver = f"driver {seen.driver}" + (f", which knows CUDA {seen.driver_cuda}" if seen.driver_cuda else "")

    def finding(outcome: Outcome, found: str, todo: str = "") -> Finding:
        return Finding(about="gpu", outcome=outcome, found=found, todo=todo, facts=facts)

    if not asking:
        return finding(Outcome.OK, "nothing in the configuration asks for one")
    if in_torch and not seen.torch:
        return finding(Outcome.FAULT, str(missing("torch", "models", in_torch[0].key)))
    if seen.traces and in_torch and not seen.torch_gpus:
        why = why_no_cuda(seen.torch_cuda or None, seen.driver)
        todo = f"{how_to_mend(seen)}; `device: cpu` of a run does without"
        return finding(Outcome.FAULT, f"{seen.traces}, and torch {seen.torch} finds none: {why}", todo)
    if not seen.traces:
        return _judge_none(finding, asking, elsewhere)
    count = seen.torch_gpus or seen.given or max(len(seen.found), seen.device_files)
    beyond = next((ask for ask in asking if ask.gpus > count), None)
    if beyond is not None and count and not elsewhere:
        return finding(
            Outcome.FAULT,
            f"{beyond.name} asks for {beyond.gpus:g}, and there are {count}",
            f"lower what {beyond.key} asks for, or take a machine with more",
        )
    of_torch = f"; torch {seen.torch} finds {seen.torch_gpus} by CUDA {seen.torch_cuda}" if in_torch else ""
    return finding(Outcome.OK, f"{seen.traces}; {driver}{of_torch}")


def _judge_none(finding: Any, asking: Sequence[Ask], elsewhere: bool) -> Finding:
    names = ", ".join(dict.fromkeys(ask.name for ask in asking))
    if elsewhere:
        return finding(Outcome.NOTE, "none on this machine; those of the cluster are told under `ray`")
    needing = [ask for ask in asking if ask.needs_gpu]
    if needing:
        names = ", ".join(dict.fromkeys(ask.name for ask in needing))
        return finding(
            Outcome.FAULT,
            f"none on this machine, and {names} cannot do without",
            "start it where there are some; a run can name their cluster instead: engine.address=HOST:6379",
        )
    return finding(Outcome.NOTE, f"none on this machine: {names} will run on CPUs")


def how_to_mend(seen: Gpus) -> str:
    """What to do where a machine has GPUs and torch finds none of them."""
    if not seen.torch_cuda:
        return "install a torch that is built for CUDA"
    oldest = OLDEST_DRIVERS.get(int(seen.torch_cuda.partition(".")[0]))
    of_cuda = f", or install a torch that is built for CUDA {seen.driver_cuda} at most" if seen.driver_cuda else ""
    needed = f" {oldest} or newer" if oldest else ""
    return f"have driver{needed} on the machine and in the container{of_cuda}"


def judge_gpu_memory(found: Sequence[Gpu], asks: Sequence[Ask], needed: Mapping[str, int]) -> Iterator[Finding]:
    """Compare a GPU's memory with what is known of each worker, by its key: its weights as stored, its search's tiles.

    Activations and caches come on top, and are not known here.
    """
    smallest = min((gpu.memory_bytes for gpu in found if gpu.memory_bytes), default=0)
    for ask in asks if smallest else ():
        size = needed.get(ask.key, 0)
        if not size or not ask.gpus:
            continue
        share = int(smallest * ask.gpus)
        facts = {"needed_bytes": size, "share_bytes": share}
        text = f"{size / 1e9:.1f} GB before it computes, and {ask.gpus:g} GPUs of {smallest / 1e9:.1f} GB for a worker"
        todo = f"raise {ask.key}.gpus, or take less" if size > share else ""
        outcome = Outcome.FAULT if size > smallest * max(ask.gpus, 1) else Outcome.NOTE if todo else Outcome.OK
        yield Finding(about=f"gpu memory, {ask.name}", outcome=outcome, found=text, todo=todo, facts=facts)


def _examine_faiss(config: Config, elsewhere: bool) -> Finding:
    """The search is exact by FAISS, whichever device it is on."""
    device = config.retrieval.search.device
    trouble = faiss_trouble()
    if not trouble and device == "cuda" and not elsewhere:
        try:
            check_gpu_list(config.retrieval.top_k)
            check_gpu()
        except InputError as error:
            trouble = str(error)
    if trouble:
        return Finding(about="faiss", outcome=Outcome.FAULT, found=trouble)
    wheels = {name: wheel for name in ("faiss-cpu", "faiss-gpu") if (wheel := version_of(name))}
    found = ", ".join(f"{name} {wheel}" for name, wheel in wheels.items()) or "a build of its own"
    return Finding(about="faiss", outcome=Outcome.OK, found=f"{found}; retrieval.search.device: {device}", facts=wheels)
