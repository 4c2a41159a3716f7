"""The serving engines that workers start: where their commands are, and what they say of their version."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from sonify.config import Config, ServerVlm
from sonify.doctor.findings import Finding, Outcome, one_line
from sonify.vlm.server import COMMANDS, engine_environment, find_program

# An engine imports torch first.
VERSION_SECONDS = 60.0
# How a version is asked for; `--version` where none stands here.
# Sources: sglang/cli/main.py (`sglang version`), transformers/cli/transformers.py (5.23: `transformers version`).
VERSION_WORDS = {"sglang": ("version",), "transformers": ("version",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProgram:
    """The program of one extractor's engine; `words` ask it for its version, `is_known` that we know they do."""

    name: str
    program: str
    words: tuple[str, ...]
    is_known: bool
    environment: Mapping[str, str] = field(default_factory=dict)


def programs_of(config: Config) -> Iterator[EngineProgram]:
    """The programs that a run's workers will start, each once."""
    vlms = [*config.concepts.extractors, *([config.concepts.checker] if config.concepts.checker else [])]
    seen: set[tuple[str, str]] = set()
    for vlm in vlms:
        if not isinstance(vlm, ServerVlm):
            continue
        is_known = isinstance(vlm.command, str)
        program = COMMANDS[vlm.command][0] if isinstance(vlm.command, str) else vlm.command[0]
        if (program, vlm.environment.get("PATH", "")) not in seen:
            seen.add((program, vlm.environment.get("PATH", "")))
            words = VERSION_WORDS.get(program, ("--version",)) if is_known else ("--version",)
            yield EngineProgram(
                name=vlm.name, program=program, words=words, is_known=is_known, environment=vlm.environment
            )


def examine_program(asked: EngineProgram, elsewhere: bool = False) -> Finding:
    """Find a program and ask for its version; nothing else of it is run."""
    about = f"engine of {asked.name}"
    found = find_program(asked.program, asked.environment)
    if found is None:
        if elsewhere:
            text = f"{asked.program} is not on this machine's PATH; the workers are on other machines"
            return Finding(about=about, outcome=Outcome.NOTE, found=text)
        return Finding(
            about=about,
            outcome=Outcome.FAULT,
            found=f"{asked.program} is not on PATH",
            todo="install it in an environment of its own (`bash jobs/engines.sh DIR` does, for vLLM and LMDeploy), and"
            " give `command` as a list with its full path, or set environment.PATH",
        )
    code, said = _ask_version([found, *asked.words], engine_environment(os.environ, asked.environment))
    facts = {"program": found, "version": said if code == 0 else "", "exit_code": code}
    if code == 0:
        return Finding(about=about, outcome=Outcome.OK, found=f"{found}: {said or '(says nothing)'}", facts=facts)
    how = f"does not say its version in {VERSION_SECONDS:g} s" if code is None else f"ends with exit status {code}"
    text = f"{found} {' '.join(asked.words)} {how}{said and f': {said}'}"
    if not asked.is_known:
        return Finding(about=about, outcome=Outcome.NOTE, found=text, facts=facts)
    todo = "see what it says in a shell: an engine that cannot say its version will not start"
    return Finding(about=about, outcome=Outcome.FAULT, found=text, todo=todo, facts=facts)


def _ask_version(command: list[str], environment: Mapping[str, str]) -> tuple[int | None, str]:
    """The exit status, None where there is none in time, and the last line that tells something."""
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own command, without a shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    except OSError as error:
        return -1, error.strerror or str(error)
    with process:
        try:
            output, _ = process.communicate(timeout=VERSION_SECONDS)
        except subprocess.TimeoutExpired:
            return None, ""
        finally:  # what it may have started, too, which would hold its output open
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"\d+\.\d+", line)] if process.returncode == 0 else lines
    return process.returncode, one_line((telling or lines or [""])[-1], 200)
