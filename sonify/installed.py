"""Libraries that the light installation has not."""

from importlib.util import find_spec

from sonify.errors import InputError


def require(*libraries: str, extra: str = "models") -> None:
    """Refuse to go on without libraries of an extra.

    Raises:
        InputError: one is not installed.
    """
    for library in libraries:
        if find_spec(library) is None:
            raise InputError(f"the library {library} is not installed: pip install 'sonify[{extra}]'")
