"""The exceptions that the command line turns into exit codes 2 and 3; anything else is an error of ours."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec

from sonify.installed import faiss_trouble, how_to_install


class InputError(Exception):
    """The user's config, path, file or command is wrong: one line, exit 2.

    The message says what, where, what was expected, what was found and what to do.
    """


class NothingListed(InputError):
    """A place was read, and holds nothing of what was sought there."""


class ConcernsAll(InputError):
    """What the user named refuses every question alike: no other unit would fare better, so the first stops the run."""


class WorkError(Exception):
    """Something is wrong with the work: damage, too many faults, units given up. One line, exit 3."""


class DiskFull(WorkError):
    """The disk under the run directory has no room left; nothing partial is visible, the run resumes."""


class TransientError(Exception):
    """A cause outside the rows (network, server): the unit stays undone and no row is rejected."""


def require(*libraries: str, extra: str = "models", what: str = "") -> None:
    """Refuse to go on without libraries of an extra, which the light installation has not.

    Args:
        libraries: names as they are imported.
        extra: which extra brings them.
        what: what needs them, such as a key, in front of the message.
    """
    for library in libraries:
        if find_spec(library) is None:
            raise missing(library, extra, what)


def missing(library: str, extra: str, what: str = "") -> InputError:
    """A library that is not installed: which one, and the command that brings it."""
    return InputError(f"{what and f'{what}: '}the library {library} is not installed: run {how_to_install(extra)}")


def require_faiss() -> None:
    """Refuse to go on where the module `faiss` is not there, or in pieces; whoever imports it asks first."""
    if trouble := faiss_trouble():
        raise InputError(trouble)


def did_you_mean(found: str, known: Iterable[str], alike: float = 0.6) -> str:
    """What somebody may have meant by a word that is none of those known, as the end of a message; or nothing."""
    names = {name.lower(): name for name in known}
    close = get_close_matches(found.lower(), names, n=1, cutoff=alike)
    return f"; did you mean {names[close[0]]}?" if close else ""
