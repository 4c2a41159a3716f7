"""Files that users bring: names that are no text, and a lost file told from a lost disk."""

import errno
import logging
from collections.abc import Iterable
from pathlib import Path

from sonify.errors import TransientError

log = logging.getLogger(__name__)

# What a disk or a network file system says when it is in trouble, as opposed to a file that is.
_DISK_TROUBLE = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EMFILE})


def check_mounted(root: Path, error: OSError) -> None:
    """Look whether a listed file cannot be read because everything around it is gone.

    Raises:
        TransientError: the disk is in trouble, or nothing is left under `root`: the unit is to stay undone.
    """
    if error.errno in _DISK_TROUBLE or not root.exists() or (root.is_dir() and next(root.iterdir(), None) is None):
        raise TransientError(f"{root}: {error.strerror or error}; is the disk mounted?") from error


def is_utf8(name: str) -> bool:
    """Whether a name can be written as text; a file system's may be any bytes."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def with_readable_names(names: Iterable[str]) -> list[str]:
    """Leave out files whose names are not UTF-8, which no table can hold, and say so."""
    found = list(names)
    readable = [name for name in found if is_utf8(name)]
    if len(readable) < len(found):
        lost = next(name for name in found if not is_utf8(name))
        log.warning("%d files are left out: their names are not UTF-8 (%r)", len(found) - len(readable), lost)
    return readable
