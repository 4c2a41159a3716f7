"""Ray as the run would have it: joined or started, timed, asked what its workers would find, and left again.

All of it is done by a process of its own: what Ray cannot do, it tries for minutes, and some of it ends the process.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from sonify import __version__
from sonify.config import Config, Engine
from sonify.doctor.engines import EngineProgram, examine_program
from sonify.doctor.findings import Finding, Outcome, one_line
from sonify.doctor.gpus import Ask
from sonify.errors import InputError, WorkError
from sonify.installed import ROOT
from sonify.stores import to_run_dir

# What one may expect; scripts that wait for Ray wait longer.
EXPECTED_SECONDS = 15.0
START_SECONDS = 120.0
# For a worker's place and its look around, engines' versions included.
LOOK_SECONDS = 90.0
END_SECONDS = 15.0
MOST_NODES = 8

ROW = "doctor: "  # before each row; libraries may print lines of their own
# `-P`: the working folder, where `sonify.py` may lie, is not on its path.
PROCESS = "import sys; sys.path.insert(0, sys.argv[1]); from sonify.doctor.cluster import answer; answer(sys.argv[2])"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a worker found around it; `device` says why torch cannot use the GPU that it was given."""

    node: str
    version: str
    gpus: int
    device: str = ""
    engines: tuple[Mapping[str, Any], ...] = ()


def examine_ray(config: Config, asks: Sequence[Ask], programs: Sequence[EngineProgram]) -> Iterator[Finding]:
    """Start or join the Ray of a run and look around in its workers."""
    engine = config.engine
    if engine.kind != "ray":
        yield Finding(about="ray", outcome=Outcome.OK, found=f"not used: engine.kind is {engine.kind}")
        return
    question = {
        "engine": engine.model_dump(mode="json"),
        "run_dir": str(config.run_dir),
        "asks": [asdict(ask) for ask in asks],
        "programs": [asdict(program) for program in programs],
    }
    started = time.monotonic()
    rows, error = _ask(json.dumps(question), START_SECONDS + (LOOK_SECONDS if asks or programs else 0))
    took = time.monotonic() - started
    if not rows or "started" not in rows[0]:
        said = rows[0]["error"] if rows else error
        yield Finding(about="ray", outcome=Outcome.FAULT, found=said, seconds=took)
        return
    yield _judge_start(rows[0]["started"])
    for row in rows[1:]:
        yield from _findings_of(row)
    if error:
        yield Finding(about="ray", outcome=Outcome.FAULT, found=f"workers: {error}")


def _ask(question: str, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """What the process says, a row of JSON each, and how it ended where that is not well."""
    process = subprocess.Popen(  # noqa: S603 - this interpreter
        [sys.executable, "-P", "-c", PROCESS, str(ROOT), question],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    error = ""
    try:
        said, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        error = f"no answer in {seconds:g} s"
        process.terminate()
        try:
            said, errors = process.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # what it started ends with it
            said, errors = process.communicate()
    except BaseException:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        process.kill()
        raise
    rows = [json.loads(line.removeprefix(ROW)) for line in said.splitlines() if line.startswith(ROW)]
    if not error and process.returncode:
        last = one_line(" | ".join(errors.split("\n")[-4:]).strip(" |")[-300:])
        error = f"the process that tried Ray ended with {process.returncode}: {last or '(nothing said)'}"
    return rows, error


def _judge_start(facts: Mapping[str, Any]) -> Finding:
    seconds = facts["start_seconds"]
    what = f"joined {facts['address']}" if facts["address"] else "starts on this machine"
    found = f"{what} in {seconds:.1f} s: {facts['resources']}"
    slow = seconds > EXPECTED_SECONDS
    return Finding(
        about="ray",
        outcome=Outcome.NOTE if slow else Outcome.OK,
        found=found,
        todo=f"more than {EXPECTED_SECONDS:g} s: have scripts wait longer for it" if slow else "",
        facts=facts,
        seconds=seconds,
    )


def _findings_of(row: Mapping[str, Any]) -> Iterator[Finding]:
    """Of what a row of the process says."""
    if "crowded" in row:
        yield Finding(about="ray", outcome=Outcome.FAULT, found=row["crowded"], todo=row["todo"])
    elif "unseen" in row:
        about = f"ray, {row['node']}"
        yield Finding(about=about, outcome=Outcome.NOT_TRIED, found=row["unseen"])
    elif "broken" in row:
        todo = "have the same packages on all nodes, or submit the run as a job with its working folder"
        about, found = f"ray, {row['node']}", f"a worker does not start, or finds no sonify: {row['broken']}"
        yield Finding(about=about, outcome=Outcome.FAULT, found=found, todo=todo)
    else:
        look = row["look"]
        about = f"ray, {look['node']}"
        seconds = row["seconds"]
        if look["device"]:
            yield Finding(about=about, outcome=Outcome.FAULT, found=look["device"], facts=look, seconds=seconds)
        elif look["version"] != __version__:
            found = f"its workers have sonify {look['version']}, and here is {__version__}"
            todo = "have one version on all nodes: the same input would give other bytes"
            yield Finding(about=about, outcome=Outcome.FAULT, found=found, todo=todo, facts=look, seconds=seconds)
        else:
            gpus = f", torch uses {look['gpus']} GPU{'s' * (look['gpus'] != 1)}" if look["gpus"] else ""
            found = f"a worker starts and finds sonify {look['version']}{gpus}"
            yield Finding(about=about, outcome=Outcome.OK, found=found, facts=look, seconds=seconds)
        for finding in look["engines"]:
            named = {"about": f"{about}, {finding['about']}", "outcome": Outcome(finding["outcome"])}
            yield Finding(**finding | named | {"shown": tuple(finding["shown"])})


# --- in the process that tries it


def answer(question: str) -> None:
    """Print what is found, a row of JSON each; SIGTERM ends it in good order."""
    from sonify.engine.cluster import connect, found_resources, live_nodes, named_address  # noqa: PLC0415 - Ray

    asked = json.loads(question)
    engine = Engine.model_validate(asked["engine"])
    asks = [Ask(**ask) for ask in asked["asks"]]
    programs = [EngineProgram(**program) for program in asked["programs"]]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    started = time.monotonic()
    try:
        end = connect(engine, to_run_dir(asked["run_dir"]))
    except (InputError, WorkError) as error:
        _say({"error": one_line(error, 1000)})
        return
    try:
        named = named_address(engine)
        facts = {
            "start_seconds": round(time.monotonic() - started, 3),
            "address": named.address if named else "",
            "resources": found_resources(),
            "nodes": len(live_nodes()),
        }
        _say({"started": facts})
        for row in _crowded(engine, asks):
            _say(row)
        for row in _look_around(asks, programs, is_joined=named is not None):
            _say(row)
    finally:
        end()


def _say(row: Mapping[str, Any]) -> None:
    sys.stdout.write(f"{ROW}{json.dumps(row)}\n")
    sys.stdout.flush()


def _crowded(engine: Engine, asks: Sequence[Ask]) -> Iterator[dict[str, Any]]:
    """The workers for which no node has room; a cluster that grows may yet have it."""
    import ray  # noqa: PLC0415 - takes a second

    from sonify.engine.cluster import Resources, found_resources, room_for  # noqa: PLC0415

    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    for ask in asks if not engine.autoscale else ():
        gpus = ask.gpus if has_gpus or ask.needs_gpu else 0
        wanted = Resources(ask.cpus, gpus)
        if room_for(wanted) < 1:
            text = f"{ask.name}: a worker asks for {wanted}, and Ray has {found_resources()}, none with room for one"
            yield {"crowded": text, "todo": f"lower {ask.key}.cpus or gpus, or add a node"}


def _look_around(
    asks: Sequence[Ask], programs: Sequence[EngineProgram], *, is_joined: bool
) -> Iterator[dict[str, Any]]:
    """One worker on each of some nodes: on those with GPUs where the run asks for any."""
    import ray  # noqa: PLC0415
    from ray.exceptions import GetTimeoutError, RayError  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    nodes = [node for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node["Resources"].get("GPU", 0) > 0]
    on_gpus = [ask for ask in asks if ask.gpus > 0] if with_gpus else []
    in_torch = any(ask.in_torch for ask in on_gpus) and bool(find_spec("torch"))
    share = min([1.0, *(ask.gpus for ask in on_gpus)]) if on_gpus else 0
    chosen = (with_gpus if on_gpus else nodes)[:MOST_NODES]
    started = time.monotonic()
    looks: dict[str, Any] = {}
    for node in chosen:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": share, "scheduling_strategy": place, "max_retries": 0}
        name = f"node {node['NodeManagerAddress']}"
        # the programs of this very machine were examined before
        looks[name] = ray.remote(look_here).options(**options).remote(name, programs if is_joined else (), in_torch)
    for name, look in looks.items():
        left = max(0.1, LOOK_SECONDS - 10 - (time.monotonic() - started))
        try:
            found: Any = ray.get(look, timeout=left)
        except GetTimeoutError:
            yield {"unseen": f"no worker has a place, or answers, in {LOOK_SECONDS - 10:g} s", "node": name}
        except RayError as error:
            yield {"broken": one_line(str(error)[-300:]), "node": name}
        else:
            yield {"look": asdict(found), "seconds": round(time.monotonic() - started, 3)}


def look_here(node: str, programs: Sequence[EngineProgram], in_torch: bool) -> Seen:
    """What a worker finds around it."""
    device, gpus = "", 0
    if in_torch:
        import torch  # noqa: PLC0415

        from sonify.models.loading import choose_device  # noqa: PLC0415

        try:
            gpus = torch.cuda.device_count() if choose_device("auto").type == "cuda" else 0
        except InputError as error:
            device = str(error)
    engines = tuple(asdict(examine_program(program)) for program in programs)
    return Seen(node=node, version=__version__, gpus=gpus, device=device, engines=engines)
