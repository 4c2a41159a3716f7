"""Telling a lost file from a lost disk."""

import errno
from pathlib import Path

from sonify.errors import TransientError

# What a disk or a network file system says when it is in trouble, as opposed to a file that is.
_DISK_TROUBLE = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EMFILE})


def check_mounted(root: Path, error: OSError) -> None:
    """Look whether a listed file cannot be read because everything around it is gone.

    Raises:
        TransientError: the disk is in trouble, or nothing is left under `root`: the unit is to stay undone.
    """
    if error.errno in _DISK_TROUBLE or not root.exists() or (root.is_dir() and next(root.iterdir(), None) is None):
        raise TransientError(f"{root}: {error.strerror or error}; is the disk mounted?") from error
