"""Serving engines: the command that starts each, and the environment it starts in."""

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sonify.config.config import ServerVlm
from sonify.errors import InputError

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """An engine's command but for the port, and the name under which it serves the model."""

    command: tuple[str, ...]
    served_name: str

    def on_port(self, port: int) -> list[str]:
        """The whole command."""
        return [element.replace("{port}", str(port)) for element in self.command]


def plan_launch(config: ServerVlm) -> Launch:
    """Fill in the model and its revision. A list's engine must serve the model under the name that `{model}` gets.

    Raises:
        InputError: the command cannot be found or filled in.
    """
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


def _find(program: str, config: ServerVlm) -> str:
    # the engine's own PATH first; then beside our interpreter, where nobody has activated its environment
    own_path = config.environment.get("PATH", os.environ.get("PATH", os.defpath))
    found = shutil.which(program, path=os.pathsep.join([own_path, str(Path(sys.executable).parent)]))
    if found is None:
        raise InputError(
            f"extractor {config.name}: the engine's command {program!r} is not on this machine's PATH; "
            "install it there in an environment of its own, or give command as a list with its full path"
        )
    return found


def engine_environment(own: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """What an engine sees of a worker's environment, with the GPUs that Ray chose, and what the user adds."""
    kept = {key: value for key, value in own.items() if INHERITED.fullmatch(key)}
    return {**kept, **extra}
