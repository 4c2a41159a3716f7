"""Sound collections: which recordings there are, with their text, licence and attribution.

`corpora` has those that are published, and says what a new one takes; `forms` has those in which anyone's recordings
come.
"""

from collections.abc import Callable, Iterator, Mapping

from sonify.config import Audio, Esc50Sounds, FolderSounds, Sounds
from sonify.errors import InputError, NothingListed
from sonify.io.places import is_file
from sonify.rows import SoundRef
from sonify.sources.sounds.corpora import list_audioset, list_bbc, list_esc50, list_fsd50k
from sonify.sources.sounds.forms import METADATA_TABLES, list_folder, list_parquet, list_webdataset
from sonify.sources.sounds.opening import open_sound
from sonify.stores import Place

__all__ = ["list_sounds", "open_sound", "table_of"]

LISTERS: Mapping[str, Callable[..., list[SoundRef]]] = {
    "folder": list_folder,
    "esc50": list_esc50,
    "audioset": list_audioset,
    "fsd50k": list_fsd50k,
    "bbc": list_bbc,
    "webdataset": list_webdataset,
    "parquet": list_parquet,
}


def list_sounds(audio: Audio, must_meet: bool = True) -> Iterator[SoundRef]:
    """Yield every recording of every source, in a fixed order, those without a file (`refused`) included.

    Args:
        audio: the collections.
        must_meet: whether a table of a folder or of ESC-50 of which no row names a recording is an error; of other
            corpora it always is.

    Raises:
        NothingListed: a source holds no recording.
        InputError: its table is not one.
        TransientError: the store that it lies in cannot be reached.
    """
    for source in audio.sources:
        try:
            told = (must_meet,) if isinstance(source, FolderSounds | Esc50Sounds) else ()
            refs = LISTERS[source.kind](source, *told)
        except OSError as error:
            raise InputError(f"audio.sources: {source.path} cannot be read: {error}") from error
        if not refs:
            raise NothingListed(f"audio.sources: {source.path} holds no recording: nothing to draw from")
        yield from sorted(refs, key=lambda ref: ref.file)


def table_of(source: Sounds) -> Place:
    """The table that describes a folder's recordings; of other collections, where they lie."""
    tables = [source.path / name for name in METADATA_TABLES if isinstance(source, FolderSounds)]
    return next((table for table in tables if is_file(table)), source.path)
