"""`sonify doctor`: what a run, a training or a folder of job files needs is tried before it is paid for.

    findings = []
    for finding in examine(config="laptop", overrides=["images.path=photos"], jobs=Path("jobs")):
        print(*tell([finding]), sep="\\n")
        findings.append(finding)

Each examination yields findings as they come and goes on after a fault. What a run writes to and what it joins is
probed and left as it was: nothing of a run is made, and no other Ray is touched.
"""

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sonify import __version__
from sonify.config import Config, Section, load_settings, wrong_paths
from sonify.config.shipped import family_of, find_config
from sonify.config.text import read_text
from sonify.doctor.findings import Finding, Outcome, as_rows, one_line
from sonify.doctor.jobs import examine_jobs
from sonify.doctor.machine import examine_fit, examine_machine
from sonify.doctor.models import examine_models
from sonify.doctor.record import Examination, compare_examinations, read_examination
from sonify.errors import InputError, TransientError, WorkError, missing
from sonify.installed import PACKAGES, pin_packages, version_of
from sonify.io.machine import memory_bytes, processor, usable_cpus
from sonify.stores import Place

# What is recorded beside the findings: a later recording may differ because one of these does.
LIBRARIES = ("ray", "torch", "transformers", "diffusers", "accelerate", "faiss-cpu", "faiss-gpu", "numpy", "pyarrow")
# The sections that tell a training from a run.
OF_TRAINING, OF_RUNS = frozenset({"data", "max_steps"}), frozenset({"images", "audio"})


def examine(
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    jobs: Path | None = None,
    *,
    fetch: bool = False,
    compare: Place | None = None,
) -> Iterator[Finding]:
    """Examine a configuration, a folder of job files, or both.

    Args:
        config: of a run or of a training: a file, or the name of one that comes along.
        overrides: each `key=value`, as behind `sonify run`.
        jobs: a folder of files for clusters, such as jobs/.
        fetch: download first what is not here of the models.
        compare: what `--record` kept of an earlier examination; what is otherwise now is found at the end.

    Raises:
        InputError: the configuration or `compare` cannot be read, or there is no such folder; what the configuration
            names and is not there is a finding.
    """
    if config is None and jobs is None:
        raise InputError("doctor: expected --config F, --jobs DIR or both")
    if config is None and overrides:
        raise InputError(f"doctor: {overrides[0]} overrides a configuration, and there is none: give --config F")
    if jobs is not None and not jobs.is_dir():
        raise InputError(f"--jobs {jobs}: {'is no folder' if jobs.exists() else 'no such folder'}")
    before = read_examination(compare) if compare is not None else None
    found: list[Finding] = []
    yield from _kept(_timed(_examine_all(config, overrides, jobs, fetch)), found)
    if before is not None:
        yield from compare_examinations(before, Examination(findings=tuple(found), versions=installed_versions()))


def _examine_all(
    config: str | Path | None, overrides: Sequence[str], jobs: Path | None, fetch: bool
) -> Iterator[Finding]:
    if config is not None and _is_training(config):
        training = _load_training(config, overrides)
        yield from _examine_paths(training)
        yield from _going_on("training", lambda: _examine_training(training, fetch), "train")
    elif config is not None:
        settings = _load_run(config, overrides)
        yield from _examine_paths(settings)
        found: list[Finding] = []
        yield from _kept(_going_on("machine", lambda: examine_machine(settings)), found)
        yield from _kept(_going_on("models", lambda: examine_models(settings, fetch=fetch)), found)
        yield from examine_fit(settings, found)
    if jobs is not None:
        yield from _going_on("jobs", lambda: examine_jobs(jobs))


def _kept(findings: Iterable[Finding], into: list[Finding]) -> Iterator[Finding]:
    """The same findings, kept as they pass."""
    for finding in findings:
        into.append(finding)
        yield finding


def _examine_training(config: Section, fetch: bool) -> Iterator[Finding]:
    return import_module("train.doctor").examine_training(config, fetch=fetch)


def _timed(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Give each finding that has none the time that passed before it."""
    started = time.monotonic()
    for finding in findings:
        took = round(time.monotonic() - started, 3)
        yield finding if finding.seconds is not None else replace(finding, seconds=took)
        started = time.monotonic()


def _is_training(name: str | Path) -> bool:
    """By where a configuration is found or, of a file, by what it holds."""
    if not Path(name).is_file():
        return family_of(name) == "train"
    keys = read_text(Path(name)).values.keys()
    return bool(keys & OF_TRAINING) and not keys & OF_RUNS


def _load_run(name: str | Path, overrides: Sequence[str]) -> Config:
    return load_settings(find_config(name, "sonify"), overrides, Config, check_paths=False)


def _load_training(name: str | Path, overrides: Sequence[str]) -> Section:
    pin_packages()  # `train` comes from beside this package, and is above it
    kind = import_module("train.config").TrainConfig
    return load_settings(find_config(name, "train"), overrides, kind, check_paths=False)


def _examine_paths(config: Section) -> Iterator[Finding]:
    """Say of each input that is not there which key names it."""
    wrong = list(wrong_paths(config))
    for each in wrong:
        todo = f"mount or fetch it, or set {each.key}"
        yield Finding(about=each.key, outcome=Outcome.FAULT, found=each.what, todo=todo)
    if not wrong:
        yield Finding(about="input", outcome=Outcome.OK, found="every place that the configuration names is there")


def _going_on(about: str, examination: Callable[[], Iterable[Finding]], extra: str = "models") -> Iterator[Finding]:
    """The findings of one examination; what ends it is a finding, and the next one is tried."""
    started = time.monotonic()
    try:
        yield from examination()
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in PACKAGES or not library or find_spec(library) is not None:
            raise
        yield Finding(about=about, outcome=Outcome.FAULT, found=str(missing(library, extra)))
    except (InputError, TransientError, WorkError) as error:
        took = time.monotonic() - started
        yield Finding(about=about, outcome=Outcome.FAULT, found=one_line(error, 1000), seconds=took)


def summarise(findings: Sequence[Finding], seconds: float) -> str:
    """How many findings there are of each kind, in one line."""
    counts = {outcome: sum(finding.outcome is outcome for finding in findings) for outcome in Outcome}
    several = {Outcome.NOTE: "notes", Outcome.FAULT: "faults"}
    words = (f"{n} {outcome if n == 1 else several.get(outcome, outcome)}" for outcome, n in counts.items())
    return f"{', '.join(words)}; {seconds:.1f} s"


def make_document(findings: Sequence[Finding], seconds: float) -> dict[str, Any]:
    """What `--json` prints and `--record` keeps: of JSON's types."""
    return {
        "findings": as_rows(findings),
        "counts": dict(Counter(finding.outcome for finding in findings)),
        "versions": installed_versions(),
        "machine": describe_machine(),
        "seconds": round(seconds, 3),
    }


def installed_versions() -> dict[str, str]:
    """Of this package, and of the libraries that decide what models say, those that are here."""
    libraries = {name: found for name in LIBRARIES if (found := version_of(name))}
    return {"sonify": __version__, "python": platform.python_version(), **libraries}


def describe_machine() -> Mapping[str, Any]:
    """What this machine is, without its name."""
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "processor": processor(),
        "architecture": platform.machine(),
        "cpus": usable_cpus(),
        "memory_bytes": memory_bytes(),
    }
