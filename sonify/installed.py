"""What is installed here and how its commands are typed: advice that can be followed as it stands.

Nothing of the toolkit is known here, so that everything else may ask.
"""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.parse import unquote, urlsplit

# The folder that the packages lie in: of a checkout, or an environment's site-packages.
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sonify", "train", "eval")
# What `--redo` can be added to, in the form of `sonify run`.
STAGE_COMMANDS = ("run", "pool", "concepts", "pair", "render", "features")


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
        if not skip and word not in ("--redo", "--dry-run") and not word.startswith("--redo="):
            kept.append(word)
        skip = word == "--redo"
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
        editable = f"{_pip()} -e {shlex.quote(f'{ROOT}[{extra}]')}"
        ours = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()
        return f"`make setup` in {ROOT}, or `{editable}`" if ours else f"`{editable}`"
    origin = _origin(extra)
    wanted = [origin] if origin else sorted(set(_libraries(extra)))
    return f"`{_pip()} {shlex.join(wanted)}`"


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


def _pip() -> str:
    """The installer of this environment: its own pip, or uv, which needs none in it."""
    if find_spec("pip"):
        return f"{_spell_path(Path(sys.executable))} -m pip install"
    return f"uv pip install --python {shlex.quote(sys.executable)}"


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
