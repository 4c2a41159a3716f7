"""Evaluation sets that a run is compared with: a folder of files, tar archives or tables, read as any input is."""

import logging
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import PurePosixPath

import numpy as np

from sonify.config import (
    Audio,
    Config,
    FolderImages,
    FolderSounds,
    ParquetImages,
    ParquetSounds,
    WebDatasetImages,
    WebDatasetSounds,
)
from sonify.errors import InputError
from sonify.io.places import list_files
from sonify.media.audio import UnreadableSound
from sonify.media.clips import cut_recording
from sonify.media.likeness import NearHashes, perceptual_hash
from sonify.media.mixing import pcm_sha256
from sonify.media.pixels import UnreadableImage
from sonify.rows import Rejected, SoundRef, SourceImage
from sonify.sources.images import IMAGE_SUFFIXES, list_images, read_images
from sonify.sources.sounds import list_sounds, open_sound
from sonify.sources.sounds.forms import SOUND_SUFFIXES
from sonify.sources.userfiles import list_containers
from sonify.stages.make_pool import names_of
from sonify.stores import Place

log = logging.getLogger(__name__)

NAME = "evaluation"
# What says nothing outside its own folder: a bare number, a row of a table.
_NUMBER = re.compile(r"(row-)?\d*")


class EvaluationImages:
    """An evaluation set's images: names, hashes to search, digests."""

    def __init__(self, place: Place) -> None:
        self.names: list[str] = []
        self.by_sha256: dict[str, str] = {}
        self.unreadable = 0
        hashes: list[np.ndarray] = []
        for found in _images(place):
            try:
                if isinstance(found, Rejected):
                    raise UnreadableImage(found.reason, found.detail)
                hashes.append(perceptual_hash(found.data))
            except UnreadableImage as error:
                self.unreadable += 1
                log.debug("%s: %s %s", found.key, error.reason, error.detail)
                continue
            self.names.append(found.uri)
            self.by_sha256.setdefault(sha256(found.data).hexdigest(), found.uri)
        if not hashes:
            raise InputError(f"{place}: none of its {self.unreadable} images can be read")
        self.near = NearHashes(hashes)


class EvaluationSounds:
    """An evaluation set's recordings: all their names, and the digests of their clips."""

    def __init__(self, place: Place, config: Config) -> None:
        self.count = self.unreadable = 0
        self.by_name: dict[str, str] = {}
        self.by_sha256: dict[str, str] = {}
        audio = _sounds(place, config.audio.clip_seconds, config.audio.sample_rate)
        for ref, clips in _clips(audio):
            self.count += 1
            self.unreadable += not clips
            for name in names_of(ref):
                self.by_name.setdefault(name, ref.file)
            for clip in clips:
                self.by_sha256.setdefault(clip, ref.file)

    def match(self, ref: SoundRef, clips: list[str]) -> tuple[str, str] | None:
        """The evaluation file that a file of the pool is shared with, and how that is known; the surest way first."""
        for clip in clips:
            if clip in self.by_sha256:
                return self.by_sha256[clip], "samples"
        origin, _, upload = ref.recording.partition("/")
        uploads = {ref.recording, upload} - {""} if origin != ref.corpus else set()
        for by, names in (("upload", uploads), ("name", names_of(ref) - uploads)):
            known = sorted(name for name in names if name in self.by_name and (by == "upload" or _tells(name)))
            if known:
                return self.by_name[known[0]], by
        return None


def _tells(name: str) -> bool:
    return _NUMBER.fullmatch(PurePosixPath(name).stem) is None


def _images(place: Place) -> Iterator[SourceImage | Rejected]:
    """Every image of a folder's files and tar archives; of its Parquet tables where it has neither.

    Raises:
        InputError: there is none.
    """
    sets: list[FolderImages | WebDatasetImages | ParquetImages] = []
    if list_files(place, IMAGE_SUFFIXES):
        sets.append(FolderImages(kind="folder", path=place))
    if list_containers(place, ".tar"):
        sets.append(WebDatasetImages(kind="webdataset", path=place))
    if not sets and list_containers(place, ".parquet"):
        sets.append(ParquetImages(kind="parquet", path=place))
    if not sets:
        raise InputError(f"{place}: expected evaluation images, found none, nor a .tar or .parquet file of them")
    for images in sets:
        for refs in list_images(images, seed=0):
            yield from read_images(images, refs, seed=0)


def _sounds(place: Place, clip_seconds: float, sample_rate_hz: int) -> Audio:
    """The recordings of a folder's files and tar archives; of its Parquet tables where it has neither.

    Raises:
        InputError: there is none.
    """
    sources: list[FolderSounds | WebDatasetSounds | ParquetSounds] = []
    if list_files(place, SOUND_SUFFIXES):
        sources.append(FolderSounds(kind="folder", path=place, name=NAME))
    if list_containers(place, ".tar"):
        sources.append(WebDatasetSounds(kind="webdataset", path=place, name=f"{NAME}-tar"))
    if not sources and list_containers(place, ".parquet"):
        sources.append(ParquetSounds(kind="parquet", path=place, name=NAME))
    if not sources:
        raise InputError(f"{place}: expected evaluation sounds, found none, nor a .tar or .parquet file of them")
    return Audio(sources=tuple(sources), clip_seconds=clip_seconds, sample_rate=sample_rate_hz)


def _clips(audio: Audio) -> Iterator[tuple[SoundRef, tuple[str, ...]]]:
    """Every recording with the sha256 of its clips, cut as a pool cuts them; none where it cannot be read."""
    for ref in list_sounds(audio):
        try:
            if ref.refused:
                yield ref, ()
                continue
            cuts = cut_recording(open_sound(audio.sources, ref.corpus, ref.file), audio.sample_rate, audio.clip_seconds)
            yield ref, tuple(pcm_sha256(cut.samples) for cut in cuts)
        except UnreadableSound:
            yield ref, ()
