"""Mistakes that are seen when input is listed, before anything is paid for: swapped folders, captions that nobody has.

All of it is for the driver, and looks at some of a large input only.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sonify.config import (
    Audio,
    CaptionsExtractor,
    Esc50Sounds,
    Extractor,
    FolderImages,
    Images,
    ParquetImages,
    Sa1bImages,
)
from sonify.errors import InputError
from sonify.io.listing import iter_inputs, list_files
from sonify.io.places import child, for_each, is_file
from sonify.io.tars import index_tar
from sonify.media.headers import HEIF_SUFFIXES, IMAGE_SUFFIXES
from sonify.sources.captions import (
    CAPTION_TABLES,
    ENDINGS,
    TEXT_ENDINGS,
    caption_beside,
    meet_captions_apart,
)
from sonify.sources.images import suffixes_of
from sonify.sources.joins import texts_beside, without_ending
from sonify.sources.sounds.forms import SOUND_SUFFIXES
from sonify.sources.userfiles import container, list_containers
from sonify.stores import Place

# Enough to meet the captions of a set in which one image in a hundred has one.
IMAGES_SEEN = 300
ARCHIVES_SEEN = 3
HOW_TO_CAPTION = (
    "put a captions.csv (file,caption) in the image folder, or a .txt, .caption or .json beside each image, or name a"
    " table with concepts.extractors.0.file"
)


def explain_swap(images: Images, audio: Audio) -> str:
    """Why nothing could be listed, where images and recordings took each other's place; empty where they did not."""
    in_images = _count_media(images.path)
    lacks_images = in_images[0] == 0 < in_images[1]
    here = f"images.path: {images.path} holds {in_images[1]:,} recordings and no image"
    for number, source in enumerate(audio.sources):
        in_source = _count_media(source.path)
        lacks_sounds = in_source[1] == 0 < in_source[0]
        there = f"audio.sources.{number}.path: {source.path} holds {in_source[0]:,} images and no recording"
        if lacks_images and lacks_sounds:
            return f"{here}, and {there}: swap the two"
        if lacks_sounds:
            return f"{there}: name a folder of recordings"
    return f"{here}: name a folder of images" if lacks_images else ""


def _count_media(place: Place) -> tuple[int, int]:
    """How many images and recordings there are below a place, or in its first archive where it has no such files."""
    try:
        images, sounds = _count(iter_inputs(place))
        if not images and not sounds and (tars := list_containers(place, ".tar").files):
            images, sounds = _count(_members(container(place, tars[0])))
    except (InputError, OSError):
        return 0, 0  # a single file, or one that is gone, of which the listing says why
    return images, sounds


def _count(names: Iterator[str] | Sequence[str]) -> tuple[int, int]:
    images = sounds = 0
    for name in names:
        images += name.lower().endswith((*IMAGE_SUFFIXES, *HEIF_SUFFIXES))
        sounds += name.lower().endswith(SOUND_SUFFIXES)
    return images, sounds


def _members(archive: Place) -> list[str]:
    return [member.name for member in index_tar(archive, archive.name)[0]]


def check_sounds(audio: Audio) -> None:
    """Refuse a corpus whose table is there, and of whose recordings none is.

    Raises:
        InputError: names it.
    """
    for source in (source for source in audio.sources if isinstance(source, Esc50Sounds)):
        if not list_files(source.path / "audio", SOUND_SUFFIXES).files:
            raise InputError(f"audio.sources: {source.path} holds no recording: expected files such as audio/*.wav")


def check_listed(images: Images, extractors: Sequence[Extractor], listed: Sequence[tuple[str, bytes]]) -> None:
    """Refuse an image set that holds no image, or for which an extractor takes captions that no image has.

    Args:
        images: the set.
        extractors: of the run.
        listed: its listing, with the captions that stand in tables.

    Raises:
        InputError: no image, no caption, or none in the place that an extractor names.
    """
    uris = [uri for uri, _ in listed]
    archives = _look_into(images, uris)
    if archives and not any(media for _, media in archives.values()):
        raise InputError(f"images.path: no archive that was looked into in {images.path} holds an image: nothing to do")
    takers = [extractor for extractor in extractors if isinstance(extractor, CaptionsExtractor)]
    if any(taker.file is None for taker in takers) and not _has_captions(images, listed, archives):
        raise InputError(f"images.path: no image in {images.path} has a caption: {_how_to_caption(images)}")
    some = uris if isinstance(images, FolderImages) else _uris_in(archives)
    for place in (taker.file for taker in takers if taker.file is not None and some):
        meet_captions_apart(place, some, images.path, whole=isinstance(images, FolderImages))


# Of each archive, the names of all members and of its images.
Looked = Mapping[str, tuple[Sequence[str], Sequence[str]]]


def _look_into(images: Images, uris: Sequence[str]) -> Looked:
    """The names in some archives; nothing of other kinds, of a store, which gives them whole only, and of damage."""
    if isinstance(images, FolderImages | ParquetImages):
        return {}
    looked: dict[str, tuple[Sequence[str], Sequence[str]]] = {}
    for uri in _spread(uris, ARCHIVES_SEEN):
        place = container(images.path, uri)
        try:
            names = _members(place) if isinstance(place, Path) else []
        except OSError:
            names = []
        if not names:
            return {}
        looked[uri] = names, [name for name in names if name.lower().endswith(suffixes_of(images))]
    return looked


def _uris_in(archives: Looked) -> list[str]:
    uris = [f"{uri}/{name.removeprefix('./')}" for uri, (_, media) in archives.items() for name in media]
    return _spread(uris, IMAGES_SEEN)


def _has_captions(images: Images, listed: Sequence[tuple[str, bytes]], archives: Looked) -> bool:
    if isinstance(images, ParquetImages):
        return images.caption_column is not None
    if isinstance(images, FolderImages):
        return _folder_has_captions(images.path, listed)
    endings = TEXT_ENDINGS if isinstance(images, Sa1bImages) else ENDINGS
    return not archives or any(texts_beside(names, media, endings) for names, media in archives.values())


def _folder_has_captions(root: Place, listed: Sequence[tuple[str, bytes]]) -> bool:
    """Whether any image has a caption: some are looked at, then, where they have none, all names."""
    if any(caption for _, caption in listed) or any(is_file(root / name) for name in CAPTION_TABLES):
        return True  # a table whose captions are empty is said when they are read
    uris = [uri for uri, _ in listed]
    some = for_each(root, lambda uri: caption_beside(child(root, uri)), _spread(uris, IMAGES_SEEN))
    if any(caption is not None for caption in some):
        return True
    stems = set(map(without_ending, uris))
    names = (name.rpartition(".") for name in iter_inputs(root))
    return any(ending.lower() in ENDINGS and stem in stems for stem, _, ending in names)


def _how_to_caption(images: Images) -> str:
    if isinstance(images, FolderImages):
        return f"{HOW_TO_CAPTION}; or let a model look"
    if isinstance(images, ParquetImages):
        return "name their column with images.caption_column, or a table with concepts.extractors.0.file"
    return "put a .txt or .caption beside each into its archive, or name a table with concepts.extractors.0.file"


def _spread(items: Sequence[str], count: int) -> list[str]:
    """So many of the items, evenly from the first to the last."""
    step = max(1, -(-len(items) // count))
    return list(items[::step])
