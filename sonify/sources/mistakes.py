"""Mistakes that are seen when input is listed, before anything is paid for: swapped folders, captions that nobody has.

All of it is for the driver, when a run begins. Of archives, and of the files beside images, some are opened; a table
is read whole, and so are the names in a folder, where nothing else says that there is a caption.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

from sonify.config import (
    Audio,
    CaptionsExtractor,
    Extractor,
    FolderImages,
    Images,
    ParquetImages,
    Sa1bImages,
)
from sonify.errors import InputError, NothingListed
from sonify.io.listing import is_junk, iter_inputs
from sonify.io.places import child, for_each, is_file
from sonify.io.tars import index_tar
from sonify.media.headers import HEIF_SUFFIXES, IMAGE_SUFFIXES
from sonify.rows import ImageRef
from sonify.sources.captions import (
    ENDINGS,
    TEXT_ENDINGS,
    caption_beside,
    meet_captions_apart,
)
from sonify.sources.images import suffixes_of
from sonify.sources.joins import texts_beside, without_ending
from sonify.sources.sounds.forms import is_sound
from sonify.sources.tables import CAPTION_TABLES
from sonify.sources.userfiles import container, list_containers
from sonify.stores import Place

Item = TypeVar("Item")

# Enough to meet the captions of a set in which one image in a hundred has one.
IMAGES_SEEN = 300
ARCHIVES_SEEN = 3
HOW_TO_CAPTION = (
    "put a captions.csv (file,caption) in the image folder, or a .txt, .caption or .json beside each image, or name a"
    " table with concepts.extractors.0.file"
)


def explain_swap(images: Images, audio: Audio) -> str:
    """Why a listing found nothing, where images and recordings took each other's place; empty where they did not."""
    in_images = _count_media(images.path)
    lacks_images = in_images.images == 0 < in_images.sounds
    here = f"images.path: {images.path} holds {in_images.say_sounds()} and no image"
    for number, source in enumerate(audio.sources):
        in_source = _count_media(source.path)
        lacks_sounds = in_source.sounds == 0 < in_source.images
        there = f"audio.sources.{number}.path: {source.path} holds {in_source.say_images()} and no recording"
        if lacks_images and lacks_sounds:
            return f"{here}, and {there}: swap the two"
        if lacks_sounds:
            return f"{there}: name a folder of recordings"
    return f"{here}: name a folder of images" if lacks_images else ""


@dataclass(frozen=True, slots=True)
class _Media:
    """How many images and recordings there are below a place, as files and in archives; `whole`: no archive is left."""

    images: int = 0
    sounds: int = 0
    whole: bool = True

    def say_images(self) -> str:
        return self._say(self.images, "image")

    def say_sounds(self) -> str:
        return self._say(self.sounds, "recording")

    def _say(self, number: int, noun: str) -> str:
        return f"{'' if self.whole else 'at least '}{number:,} {noun}{'' if number == 1 else 's'}"


def _count_media(place: Place) -> _Media:
    try:
        found = list_containers(place, ".tar")
        looked = spread(found.files, ARCHIVES_SEEN)
        names = chain(found.others, *(_members(container(place, tar)) for tar in looked))
        kinds = Counter(map(_kind_of, names))
    except (InputError, OSError):
        return _Media()  # a single file, or one that is gone, of which the listing says why
    return _Media(kinds["image"], kinds["sound"], whole=len(looked) == len(found.files))


def _kind_of(name: str) -> str:
    if name.lower().endswith((*IMAGE_SUFFIXES, *HEIF_SUFFIXES)):
        return "image"
    return "sound" if is_sound(name) else ""


def _members(archive: Place) -> list[str]:
    return [member.name for member in index_tar(archive, archive.name)[0] if not is_junk(member.name)]


def check_listed(images: Images, extractors: Sequence[Extractor], listed: Sequence[ImageRef]) -> None:
    """Refuse an image set that holds no image, or for which an extractor takes captions that no image has.

    Args:
        images: the set.
        extractors: of the run.
        listed: its listing, with the captions that stand in tables.

    Raises:
        NothingListed: no image in the archives.
        InputError: no caption, or none in the place that an extractor names.
    """
    archives = _look_into(images, listed)
    if archives and not any(media for _, media in archives.values()):
        raise NothingListed(
            f"images.path: no archive that was looked into in {images.path} holds an image: nothing to do"
        )
    takers = [extractor for extractor in extractors if isinstance(extractor, CaptionsExtractor)]
    if any(taker.file is None for taker in takers) and not _has_captions(images, listed, archives):
        raise InputError(f"images.path: no image in {images.path} has a caption: {_how_to_caption(images)}")
    apart = [taker.file for taker in takers if taker.file is not None]
    some = [ref.uri for ref in listed] if apart and isinstance(images, FolderImages) else _uris_in(archives)
    for place in apart if some else ():
        meet_captions_apart(place, some, images.path, whole=isinstance(images, FolderImages))


# Of each archive, the names of all members and of its images.
Looked = Mapping[str, tuple[Sequence[str], Sequence[str]]]


def _look_into(images: Images, listed: Sequence[ImageRef]) -> Looked:
    """The names in some archives; nothing of other kinds, of a store, which gives them whole only, and of damage."""
    if isinstance(images, FolderImages | ParquetImages):
        return {}
    looked: dict[str, tuple[Sequence[str], Sequence[str]]] = {}
    for uri in (ref.uri for ref in spread(listed, ARCHIVES_SEEN)):
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
    return spread(uris, IMAGES_SEEN)


def _has_captions(images: Images, listed: Sequence[ImageRef], archives: Looked) -> bool:
    if isinstance(images, ParquetImages):
        return images.caption_column is not None
    if isinstance(images, FolderImages):
        return _folder_has_captions(images.path, listed)
    endings = TEXT_ENDINGS if isinstance(images, Sa1bImages) else ENDINGS
    return not archives or any(texts_beside(names, media, endings) for names, media in archives.values())


def _folder_has_captions(root: Place, listed: Sequence[ImageRef]) -> bool:
    """Whether any image has a caption: some are looked at, then, where they have none, all names."""
    if any(ref.caption for ref in listed) or any(is_file(root / name) for name in CAPTION_TABLES):
        return True  # a table whose captions are empty is said when they are read
    some = for_each(root, lambda ref: caption_beside(child(root, ref.uri)), spread(listed, IMAGES_SEEN))
    if any(caption is not None for caption in some):
        return True
    stems = {without_ending(ref.uri) for ref in listed}
    names = (name.rpartition(".") for name in iter_inputs(root))
    return any(ending.lower() in ENDINGS and stem in stems for stem, _, ending in names)


def _how_to_caption(images: Images) -> str:
    if isinstance(images, FolderImages):
        return f"{HOW_TO_CAPTION}; or let a model look"
    if isinstance(images, ParquetImages):
        return "name their column with images.caption_column, or a table with concepts.extractors.0.file"
    return "put a .txt or .caption beside each into its archive, or name a table with concepts.extractors.0.file"


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most so many, from all over."""
    return [items[n * len(items) // count] for n in range(count)] if len(items) > count else list(items)
