"""A vision-language model in a serving engine that the worker starts, watches, replaces and ends."""

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass
from pathlib import Path

from sonify.config.models import ServerVlm
from sonify.errors import InputError, TransientError, WorkError
from sonify.io.machine import fits_sockets
from sonify.vlm import engine_guard
from sonify.vlm.endpoint import Endpoint, policy_of, service_of
from sonify.vlm.questions import Answer, NoAnswer, Question
from sonify.vlm.retrying import RetryPolicy

LOOPBACK = "127.0.0.1"
# Sources: docs.vllm.ai/en/latest/cli/serve, docs.sglang.io/advanced_features/server_arguments.html,
# lmdeploy/cli/serve.py, transformers/cli/serve.py (5.23; a revision is part of the model's name there).
COMMANDS: dict[str, tuple[str, ...]] = {
    "vllm": ("vllm", "serve", "{model}", "--host", LOOPBACK, "--port", "{port}"),
    "sglang": ("sglang", "serve", "--model-path", "{model}", "--host", LOOPBACK, "--port", "{port}"),
    "lmdeploy": ("lmdeploy", "serve", "api_server", "{model}", "--server-name", LOOPBACK, "--server-port", "{port}"),
    "transformers": ("transformers", "serve", "{model}", "--host", LOOPBACK, "--port", "{port}"),
}
# An engine gets what a machine and its libraries need: not the worker's keys, nor Ray's and our Python's settings.
INHERITED = re.compile(
    "PATH|HOME|USER|LOGNAME|LANG|TZ|TMPDIR|LD_LIBRARY_PATH|(HTTP|HTTPS|NO|ALL)_PROXY|(http|https|no|all)_proxy|"
    "(LC|XDG|SSL|CUDA|NVIDIA|HIP|ROCR|NCCL|OMP|MKL|HF|TRANSFORMERS|VLLM|SGLANG|LMDEPLOY|TORCH|TORCHINDUCTOR)_.*"
)

HEALTH_TIMEOUT_SEC = 5.0
# An engine whose requests fail is ill when it does not answer this often in a row, a second apart.
ILL_AFTER = 3
WATCH_SEC = 0.5
GRACE_SEC = 10.0
# For one call; a window that ends so many engines leaves its unit undone.
MOST_RESTARTS = 2
# Between choosing a port and an engine's opening it, another process may take it.
MOST_PORTS = 3
LOG_TAIL_BYTES, LOG_TAIL_CHARS = 8192, 600


def start_server(config: ServerVlm, log_folder: Path, policy: RetryPolicy | None = None) -> "Server":
    """Start the engine and wait until it is ready.

    Raises:
        InputError: it cannot be started, or ends by itself before it is ready.
        WorkError: it is not ready in time.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    server = Server(config, log_folder / f"{config.name}-{socket.gethostname()}-{os.getpid()}.log", policy)
    server.start()
    return server


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """An engine's command but for the port, and the name under which it serves the model."""

    command: tuple[str, ...]
    served_name: str

    def on_port(self, port: int) -> list[str]:
        """The whole command."""
        return [element.replace("{port}", str(port)) for element in self.command]


def plan_launch(config: ServerVlm) -> Launch:
    """Fill in the model and its revision. A list's engine must serve the model under the name that `{model}` gets."""
    folder = Path(config.model)
    is_folder = folder.is_dir()
    model, revision = str(folder.resolve()) if is_folder else config.model, config.revision
    if is_folder and revision is not None:
        raise InputError(f"extractor {config.name}: revision {revision} is set, but the model is a folder: {model}")
    if isinstance(config.command, str):
        command = COMMANDS[config.command]
        if revision is not None and config.command == "transformers":
            model = f"{model}@{revision}"
        elif revision is not None:
            command = (*command, "--revision", "{revision}")
    else:
        command = config.command
    filled = [element.replace("{model}", model) for element in command]
    if any("{revision}" in element for element in filled):
        if revision is None:
            raise InputError(f"extractor {config.name}: the command has {{revision}}, so revision must be set")
        filled = [element.replace("{revision}", revision) for element in filled]
    if not any("{port}" in element for element in filled):
        raise InputError(f"extractor {config.name}: the command must say where {{port}} goes: {' '.join(command)}")
    return Launch(command=(_find(filled[0], config), *filled[1:]), served_name=model)


def find_program(program: str, environment: Mapping[str, str]) -> str | None:
    """Where an engine's command lies, in the environment that a configuration gives it."""
    # the engine's own PATH first; then beside our interpreter, where nobody has activated its environment
    own_path = environment.get("PATH", os.environ.get("PATH", os.defpath))
    return shutil.which(program, path=os.pathsep.join([own_path, str(Path(sys.executable).parent)]))


def _find(program: str, config: ServerVlm) -> str:
    found = find_program(program, config.environment)
    if found is None:
        raise InputError(
            f"extractor {config.name}: the engine's command {program!r} is not on this machine's PATH; "
            "install it there in an environment of its own, or give command as a list with its full path"
        )
    return found


def engine_environment(own: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """What an engine sees of a worker's environment, with the GPUs that Ray chose, and what the user adds.

    Its processes talk through sockets in TMPDIR, which one that is too long is not for.
    """
    kept = {key: value for key, value in own.items() if INHERITED.fullmatch(key)}
    if not fits_sockets(kept.get("TMPDIR", "")):
        del kept["TMPDIR"]
    return {**kept, **extra}


class EngineFailed(Exception):
    """The engine has to be replaced."""


class RunningEngine:
    """An engine, the guard that ends it when this process ends, however that happens, and the client that asks it."""

    def __init__(self, config: ServerVlm, launch: Launch, policy: RetryPolicy, log_file: Path) -> None:
        self.port = free_port()
        self._root = f"http://{LOOPBACK}:{self.port}"
        guard = [sys.executable, "-I", engine_guard.__file__, str(GRACE_SEC), str(log_file)]
        self._guard = subprocess.Popen(  # noqa: S603 - the user's own command, without a shell
            [*guard, *launch.on_port(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=engine_environment(os.environ, config.environment),
        )
        self._guard.wait()  # it goes on as a process of its own
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._lifeline, self._reports = self._guard.stdin, self._guard.stdout
        self._ended: str | None = None
        self.client = Endpoint(service_of(config, f"{self._root}/v1", launch.served_name), policy)

    def ended(self, within_sec: float = 0.0) -> str | None:
        """How the engine ended; None while it runs."""
        if self._ended is None and select.select([self._reports], [], [], within_sec)[0]:
            line = os.read(self._reports.fileno(), 1024).decode(errors="replace").strip()
            self._ended = line or "ended with its guard"
        return self._ended

    def is_healthy(self) -> bool:
        """Whether its health page says so or, where it has none, whether it lists its models."""
        status = self.client.status_of(f"{self._root}/health", HEALTH_TIMEOUT_SEC)
        if status in (404, 405):
            status = self.client.status_of(f"{self._root}/v1/models", HEALTH_TIMEOUT_SEC)
        return status == 200

    def stop(self) -> None:
        """End the client, and the engine with all its processes, and wait for that."""
        self.client.close()
        self._lifeline.close()
        deadline = time.monotonic() + GRACE_SEC + 5
        while select.select([self._reports], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if not os.read(self._reports.fileno(), 1024):
                break
        self._reports.close()


class Server:
    """A `LoadedVlm`; an engine that dies or hangs while it is asked is replaced."""

    def __init__(self, config: ServerVlm, log_file: Path, policy: RetryPolicy | None = None) -> None:
        self._config = config
        self._log_file = log_file
        self._policy = policy or policy_of(config)
        self._launch = plan_launch(config)
        self._engine: RunningEngine | None = None
        self._changing = threading.Lock()
        self._closing = threading.Event()

    def __call__(self, questions: Sequence[Question]) -> list[Answer | NoAnswer]:
        """Answer questions, in their order."""
        reason = ""
        for _ in range(1 + MOST_RESTARTS):
            engine = self._running()
            try:
                return self._ask(engine, questions)
            except EngineFailed as failed:
                reason = str(failed)
                self._drop(engine)
        raise TransientError(f"extractor {self._config.name}: {MOST_RESTARTS} restarts did not help: {reason}")

    def start(self) -> None:
        """Start the engine unless it runs, and wait until it is ready."""
        with self._changing:
            if self._engine is None:
                self._engine = self._start()

    def close(self) -> None:
        """End the engine, also one that is being started."""
        self._closing.set()
        with self._changing:
            if self._engine is not None:
                self._engine.stop()
            self._engine = None

    def _running(self) -> RunningEngine:
        try:
            self.start()
        except (InputError, WorkError) as error:  # it did start before
            raise TransientError(f"the engine does not start again: {error}") from error
        assert self._engine is not None
        return self._engine

    def _drop(self, engine: RunningEngine) -> None:
        with self._changing:
            if self._engine is engine:  # another thread may have replaced it already
                engine.stop()
                self._engine = None

    def _ask(self, engine: RunningEngine, questions: Sequence[Question]) -> list[Answer | NoAnswer]:
        answers = engine.client.submit(questions)
        ill = 0
        try:
            while not wait([answers], timeout=WATCH_SEC).done:
                if ended := engine.ended():
                    raise EngineFailed(self._obituary(f"the engine ended by itself ({ended})"))
                ill = ill + 1 if engine.client.is_struggling and not engine.is_healthy() else 0
                if ill >= ILL_AFTER:
                    raise EngineFailed(self._obituary("the engine hangs"))
            return answers.result()
        except TransientError as error:
            raise EngineFailed(str(error)) from error
        except CancelledError:
            raise EngineFailed("the engine was replaced") from None
        finally:
            answers.cancel()

    def _start(self) -> RunningEngine:
        for attempt in range(1, 1 + MOST_PORTS):
            engine = RunningEngine(self._config, self._launch, self._policy, self._log_file)
            try:
                self._await_ready(engine)
            except BaseException as error:
                engine.stop()
                if isinstance(error, InputError) and attempt < MOST_PORTS and is_taken(engine.port):
                    continue
                raise
            return engine
        raise AssertionError

    def _await_ready(self, engine: RunningEngine) -> None:
        """Wait for the engine; one of a known kind is known to serve the model under its name."""
        deadline = time.monotonic() + self._config.start_timeout_sec
        while not engine.is_healthy():
            if ended := engine.ended(WATCH_SEC):
                raise InputError(self._obituary(f"the engine ended before it was ready ({ended})"))
            if self._closing.is_set():
                raise TransientError(f"extractor {self._config.name}: closed before the engine was ready")
            if time.monotonic() > deadline:
                waited = f"{self._config.start_timeout_sec:g} s (start_timeout_sec)"
                raise WorkError(self._obituary(f"the engine is not ready after {waited}"))
        if not isinstance(self._config.command, str):
            engine.client.find_model()

    def _obituary(self, what: str) -> str:
        """One line with what the engine said last."""
        said = last_lines(self._log_file)
        return f"extractor {self._config.name}: {what}; its log {self._log_file} ends: {said}"


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def is_taken(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def last_lines(log_file: Path) -> str:
    """The end of a log as one line."""
    with log_file.open("rb") as log:
        log.seek(max(0, log_file.stat().st_size - LOG_TAIL_BYTES))
        text = log.read().decode("utf-8", "replace")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return " | ".join(line for line in lines if line)[-LOG_TAIL_CHARS:] or "(nothing)"
