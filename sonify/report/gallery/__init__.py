"""The gallery of a run: a static folder that opens from disk, for looking at pairs and listening to them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sonify import layout
from sonify.errors import InputError
from sonify.io.write import naming_full_disk
from sonify.report.gallery.media import write_media
from sonify.report.gallery.pages import write_pages
from sonify.report.gallery.survey import clips_of, survey_run
from sonify.stores import Place

PAGE = "index.html"


def build_gallery(run_dir: Place, rows: int = 2000, out: Path | None = None) -> Path:
    """Write a gallery, by default RUN/gallery, replacing an older one, and return its folder.

    Of a run with more than `rows` images, those with the lowest hash of their key are shown, always the same.

    Raises:
        InputError: nothing is rendered yet, `rows` is below 1, or the folder cannot be written.
        WorkError: a shard or the pool lacks what the tables name.
    """
    if rows < 1:
        raise InputError(f"rows: expected at least 1 image to show, found {rows}")
    if out is None and not isinstance(run_dir, Path):
        raise InputError(f"{run_dir}: a browser opens a gallery from a disk: name a folder with --out")
    target = out or Path(str(run_dir)) / layout.GALLERY
    summary, pictures = survey_run(run_dir, rows)
    clips = clips_of(run_dir, pictures)
    with naming_full_disk(target.parent), _replacing(target) as folder:
        media = write_media(run_dir, pictures, folder)
        write_pages(folder, summary, list(zip(pictures, media, strict=True)), clips)
    return target


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder beside the target, which takes its place at the end, or is removed on an error.

    Raises:
        InputError: the folder cannot be made, or what is there is no gallery.
    """
    if target.exists() and any(target.iterdir()) and not (target / PAGE).is_file():
        raise InputError(f"{target}: holds something else than a gallery; choose another place")
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        new.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); choose a place with --out") from error
    try:
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
