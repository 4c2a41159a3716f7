"""A published folder as files: made beside its place, sealed by checksums, and put there as a whole."""

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sonify.dataset.format import CHECKSUMS, RECORD, read_checksums, write_checksums
from sonify.errors import InputError
from sonify.io.places import is_utf8
from sonify.io.write import naming_full_disk, sync_folder

log = logging.getLogger(__name__)

# What huggingface-hub keeps in a folder that it uploads, so as to go on where it was.
UPLOAD_STATE = ".cache"
# What the system says of a place where nothing can be made.
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP)
_NO_PLACE += (errno.EROFS,)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes the place of `out` when all went well; nothing is ever there half.

    Raises:
        InputError: `out` holds something else than a publication, or cannot be written.
        DiskFull: no room is left.
    """
    out = _resolve(out)
    partial, replaced = (out.with_name(f".{out.name}.{what}") for what in ("partial", "replaced"))
    with naming_full_disk(out.parent):
        _prepare(out, partial, replaced)
        try:
            yield partial
            _seal(partial)
            _swap(partial, out, replaced)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _resolve(out: Path) -> Path:
    """Follow links, so that they stay; Parquet's library takes names that are UTF-8 only."""
    resolved = Path(os.path.realpath(out))
    if not is_utf8(str(resolved)):
        raise InputError(f"--out {str(out)!r}: the name is not UTF-8; choose another place")
    if not resolved.name or resolved.is_symlink():
        what = "a link that leads to itself" if resolved.name else "the root of a disk"
        raise InputError(f"--out {out}: expected a folder that can be made, found {what}; choose another place")
    return resolved


def _prepare(out: Path, partial: Path, replaced: Path) -> None:
    try:
        if replaced.exists() and not out.exists():  # killed between the two renames
            replaced.rename(out)
        _check_replaceable(out)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another place") from error


def _check_replaceable(out: Path) -> None:
    """An earlier publication is a folder of which every file stands in its checksums."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    known = _listed(out)
    foreign = next((name for name in files_of(out) if name not in known), None) if out.is_dir() else out.name
    if foreign is not None or RECORD not in known:
        what = f"it holds {foreign}" if foreign else f"it has no {RECORD}"
        raise InputError(
            f"--out {out}: expected no folder, an empty one or an earlier publication, and {what}; choose another place"
        )


def _listed(out: Path) -> frozenset[str]:
    checksums = out / CHECKSUMS
    try:
        return frozenset({CHECKSUMS, *read_checksums(checksums.read_bytes())}) if checksums.is_file() else frozenset()
    except ValueError:
        return frozenset()


def files_of(folder: Path) -> Iterator[str]:
    """A publication's files, relative to it, in order, without what an upload keeps there."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] != UPLOAD_STATE and not (path.is_dir() and not path.is_symlink()):
            yield relative.as_posix()


def _seal(folder: Path) -> None:
    """Write the checksums of all files, as `sha256sum` does, and bring everything to the disk."""
    hashes = {name: _sync_and_hash(folder / name) for name in sorted(files_of(folder))}
    (folder / CHECKSUMS).write_bytes(write_checksums(hashes))
    _sync_and_hash(folder / CHECKSUMS)
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(inner)


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _swap(partial: Path, out: Path, replaced: Path) -> None:
    shutil.rmtree(replaced, ignore_errors=True)
    try:
        if out.exists():
            if any(out.iterdir()):
                log.info("%s: replaces the publication that is there", out)
            out.rename(replaced)
        partial.rename(out)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):  # what a mounted disk says
            raise
        raise InputError(f"--out {out}: cannot be replaced ({error.strerror}); choose a folder in it") from error
    sync_folder(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)
