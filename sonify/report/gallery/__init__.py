"""The gallery of a run: a static folder that opens from disk, for looking at pairs and listening to them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sonify import layout
from sonify.engine.files import naming_full_disk
from sonify.errors import InputError
from sonify.report.gallery.media import write_media
from sonify.report.gallery.pages import write_pages
from sonify.report.gallery.survey import clips_of, survey_run


def build_gallery(run_dir: Path, rows: int = 2000) -> Path:
    """Write RUN/gallery, replacing an older one, and return its folder.

    Of a run with more than `rows` images, those with the lowest hash of their key are shown, always the same.

    Raises:
        InputError: nothing is rendered yet, or `rows` is below 1.
        WorkError: a shard or the pool lacks what the tables name.
    """
    if rows < 1:
        raise InputError(f"rows: expected at least 1 image to show, found {rows}")
    summary, pictures = survey_run(run_dir, rows)
    clips = clips_of(run_dir, pictures)
    with naming_full_disk(run_dir), _replacing(run_dir / layout.GALLERY) as folder:
        media = write_media(run_dir, pictures, folder)
        write_pages(folder, summary, list(zip(pictures, media, strict=True)), clips)
    return run_dir / layout.GALLERY


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder beside the target, which takes its place at the end, or is removed on an error."""
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
