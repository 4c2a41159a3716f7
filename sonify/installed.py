"""What is installed here and how its commands are typed: advice that can be followed as it stands.

Nothing of the toolkit is known here, so that everything else may ask.
"""

import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

# The folder that the packages lie in: of a checkout, or an environment's site-packages.
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sonify", "train", "eval")
# What `--redo` can be added to, in the form of `sonify run`.
STAGE_COMMANDS = ("run", "pool", "concepts", "pair", "render", "features")
# Options of these that are of one call only, and have a value.
WITH_VALUE = ("--redo", "--prices")


def shipped_configs() -> Path:
    """The folder of the configurations that come along: inside the package, or beside it in a checkout."""
    inside = ROOT / "sonify" / "configs"
    return inside if inside.is_dir() else ROOT / "configs"


def pin_packages() -> None:
    """Have `train` and `eval` come from beside this package, whatever of these names lies in the working folder."""
    for name in PACKAGES:
        folder = ROOT / name
        loaded = sys.modules.get(name)
        if loaded is not None and str(folder) in getattr(loaded, "__path__", ()):
            continue
        for foreign in [each for each in sys.modules if each.partition(".")[0] == name]:
            del sys.modules[foreign]
        spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert isinstance(spec, ModuleSpec), folder
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


def spell(*words: object) -> str:
    """A command of `sonify` as it must be typed here: with the program as it is found, words in quotes where needed."""
    return " ".join([_program(), *(shlex.quote(str(word)) for word in words)])


def spell_again(*more: str) -> str:
    """The command at work in the form of `sonify run`, with more options; as far as it is known how it was called."""
    words = _typed()
    if not words or words[0] not in STAGE_COMMANDS or any(word.startswith("--from") for word in words):
        return spell("run", "--config", "F", *more)
    kept, skip = [], False
    for word in words[1:]:
        if not skip and word not in (*WITH_VALUE, "--dry-run", "--probe") and word.partition("=")[0] not in WITH_VALUE:
            kept.append(word)
        skip = not skip and word in WITH_VALUE
    return spell("run", *kept, *more)


def spell_redo(stage: str) -> str:
    """How a stage is replaced: the whole command."""
    return spell_again("--redo", stage)


def how_to_install(extra: str) -> str:
    """A command that adds the libraries of an extra to this environment.

    There is no release of this name on any registry, so that none may be asked for it: what is installed from is
    named, or the libraries themselves.
    """
    if is_checkout():
        editable = f"{_pip('install')} -e {shlex.quote(f'{ROOT}[{extra}]')}"
        full = ROOT / ".venv"
        to_make = Path(sys.prefix).resolve() == full.resolve() and not (full / ".installed-full").exists()
        return f"`make setup` in {ROOT}, or `{editable}`" if to_make else f"`{editable}`"
    origin = _origin(extra)
    wanted = [origin] if origin else sorted(set(_libraries(extra)))
    return f"`{_pip('install')} {shlex.join(wanted)}`"


def version_of(library: str) -> str:
    """The version that is installed; empty where there is none."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def faiss_trouble() -> str:
    """Why the module `faiss` cannot be used here, and the commands that mend it; empty where it can.

    Several wheels bring it, for CPUs and for GPUs, and installers let them lie in one folder: the last one overwrites
    the others' files, and whichever is removed takes the shared ones with it.
    """
    spec = find_spec("faiss")
    whole = Path(spec.origin).resolve().parents[1] if spec is not None and spec.origin is not None else None
    wheels = _faiss_wheels()
    if whole is not None and len(wheels.get(whole, ())) <= 1:
        return ""
    one = how_to_install("cpu")
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        one += f" or, to search on an NVIDIA GPU, {how_to_install('gpu')}"
    if not wheels:
        return f"the library faiss is not installed: run {one}"
    folder, names = next(iter(wheels.items())) if whole is None else (whole, wheels[whole])
    if len(names) > 1:
        found = f"{' and '.join(names)} are both in {folder}, and each overwrites the other's module faiss"
    else:
        found = f"{names[0]} in {folder} has lost its faiss/__init__.py, as when another wheel of it was removed"
    return f"{found}: run `{_pip('uninstall')} {shlex.join(names)}`, then install one again: {one}"


def how_to_swap_faiss() -> str:
    """The commands that put the wheel of `faiss` for GPUs in the place of the one that is here."""
    names = sorted({name for wheels in _faiss_wheels().values() for name in wheels}) or ["faiss-cpu"]
    return f"run `{_pip('uninstall')} {shlex.join(names)}`, then install the one for GPUs: {how_to_install('gpu')}"


def _faiss_wheels() -> dict[Path, list[str]]:
    """The distributions that brought a module `faiss`, whatever they are called, by the folder that they lie in."""
    found: dict[Path, list[str]] = {}
    for folder in dict.fromkeys(Path(entry).resolve() for entry in sys.path):
        for info in sorted(folder.glob("faiss*.dist-info")):
            wheel = Distribution.at(info)
            if "faiss/__init__.py" in (wheel.read_text("RECORD") or ""):
                found.setdefault(folder, []).append(wheel.metadata["Name"])
    return found


def is_checkout() -> bool:
    """Whether the package lies where its sources are kept."""
    return (ROOT / "pyproject.toml").is_file() and (ROOT / "Makefile").is_file()


def _program() -> str:
    """`sonify` as this process was started, or as the environment has it."""
    script = Path(sys.argv[0] if sys.argv else "")
    if script.stem != "sonify":
        script = Path(sys.executable).with_name("sonify")
    if _is_module_run() or not script.is_file():
        return f"{_spell_path(Path(sys.executable))} -m sonify"
    return _spell_path(script)


def _is_module_run() -> bool:
    return bool(sys.argv) and Path(sys.argv[0]).parts[-2:] == ("sonify", "__main__.py")


def _typed() -> Sequence[str]:
    """The words behind `sonify` that started this process; none in a notebook."""
    started = bool(sys.argv) and (_is_module_run() or Path(sys.argv[0]).stem == "sonify")
    return [word for word in sys.argv[1:] if word != "--verbose"] if started else ()


def _spell_path(program: Path) -> str:
    """The shortest way to write a program's place: its name where the shell finds it, else from the working folder."""
    absolute = Path(os.path.abspath(program))
    found = shutil.which(absolute.name)
    if found is not None and os.path.abspath(found) == str(absolute):
        return absolute.name
    here = Path.cwd()
    return shlex.quote(str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute))


def _pip(verb: Literal["install", "uninstall"]) -> str:
    """The installer of this environment: its own pip, or uv, which needs none in it and asks nothing back."""
    if find_spec("pip"):
        return f"{_spell_path(Path(sys.executable))} -m pip {verb}{' --yes' if verb == 'uninstall' else ''}"
    return f"uv pip {verb} --python {shlex.quote(sys.executable)}"


def _distribution() -> Distribution | None:
    """The distribution that this very package was installed with."""
    try:
        found = distribution("sonify")
    except PackageNotFoundError:
        return None
    return found if Path(str(found.locate_file(""))).resolve() == ROOT else None


def _origin(extra: str) -> str | None:
    """What the package was installed from, with an extra, as an installer takes it; PEP 610 says where it stands."""
    found = _distribution()
    text = found.read_text("direct_url.json") if found else None
    if not text:
        return None
    known = json.loads(text)
    url = known["url"]
    if url.startswith("file://"):
        path = Path(unquote(urlsplit(url).path))
        return f"{path}[{extra}]" if path.exists() else None
    source = known.get("vcs_info")
    return f"sonify[{extra}] @ " + (f"{source['vcs']}+{url}@{source['commit_id']}" if source else url)


def _libraries(extra: str) -> Iterator[str]:
    """The requirements of an extra; those of the extras that it asks for stand among them in a wheel's metadata."""
    found = _distribution()
    for requirement in (found.requires if found else None) or ():
        wanted, _, marker = requirement.partition(";")
        if re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", marker):
            yield wanted.strip()
