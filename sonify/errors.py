"""The exceptions that the command line turns into exit codes 2 and 3; anything else is an error of ours."""

from importlib.util import find_spec


class InputError(Exception):
    """The user's config, path, file or command is wrong: one line, exit 2.

    The message says what, where, what was expected, what was found and what to do.
    """


class ConcernsAll(InputError):
    """What the user named refuses every question alike: no other unit would fare better, so the first stops the run."""


class WorkError(Exception):
    """Something is wrong with the work: damage, too many faults, units given up. One line, exit 3."""


class DiskFull(WorkError):
    """The disk under the run directory has no room left; nothing partial is visible, the run resumes."""


class TransientError(Exception):
    """A cause outside the rows (network, server): the unit stays undone and no row is rejected."""


def require(*libraries: str, extra: str = "models") -> None:
    """Refuse to go on without libraries of an extra, which the light installation has not."""
    for library in libraries:
        if find_spec(library) is None:
            raise InputError(f"the library {library} is not installed: pip install 'sonify[{extra}]'")
