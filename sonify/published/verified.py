"""The whole of a published folder, looked at before any work: what is wrong with it ends the command at once."""

from array import array
from collections.abc import Collection, Iterator

import numpy as np

from sonify.config import Config
from sonify.errors import InputError
from sonify.media.fingerprint import fingerprint
from sonify.publish.rows import CHECKSUMS, CLIPS, DATA, PublishedPair
from sonify.published.foreign import hash_files
from sonify.published.reading import PublishedFolder, read_clips, read_pairs, read_shards


def verify_published(folder: PublishedFolder, config: Config) -> None:
    """Hash every file that is read from the folder, and look at each of its rows: half a minute for a million scenes.

    Raises:
        InputError: a file is missing, another than listed, or says what no publication does.
    """
    for name, found in hash_files(folder.place, sorted(folder.files)):
        if found != folder.files[name]:
            raise InputError(f"{folder.place}/{name}: another sha256 than {CHECKSUMS} says: get the folder again")
    clips = _verify_clips(folder, config)
    _verify_pairs(folder, config.scenes, clips)
    for _ in read_shards(folder):
        pass


def _verify_clips(folder: PublishedFolder, config: Config) -> frozenset[str]:
    """Look at each clip and return their names, of which each is there once."""
    silence = np.zeros(round(config.audio.clip_seconds * config.audio.sample_rate), np.int16)
    expected = len(fingerprint(silence, config.audio.sample_rate))
    names: set[str] = set()
    for unit in folder.clips:
        for clip in read_clips(folder, unit):
            where = f"{folder.place}/{folder.clips[unit]}: clip {clip.clip[:100]!r}"
            if clip.clip in names:
                raise InputError(f"{where}: is there twice")
            if len(clip.fingerprint) != expected:
                raise InputError(f"{where}: expected a fingerprint of {expected} bytes, found {len(clip.fingerprint)}")
            names.add(clip.clip)
    return frozenset(names)


def _verify_pairs(folder: PublishedFolder, scenes: tuple[str, ...], clips: Collection[str]) -> None:
    """Look at each scene: its clips are there, and its image is in no other unit."""
    hashes = array("q")  # 8 bytes an image; two of 10 million share one by chance three times in a million
    for unit, pairs in _images(folder, scenes):
        lost = next((s.clip for pair in pairs for s in pair.sources if s.clip not in clips), None)
        if lost is not None:
            raise InputError(
                f"{folder.place}/{DATA}: unit {unit}: image {pairs[0].image[:100]!r} is heard with the clip"
                f" {lost[:100]!r}, which {CLIPS}/ does not have: get the folder again"
            )
        hashes.append(hash(pairs[0].image))
    found, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
    twice = set(found[counts > 1].tolist())
    if twice:
        again = [(unit, pairs[0].image) for unit, pairs in _images(folder, scenes) if hash(pairs[0].image) in twice]
        units = ", ".join(unit for unit, image in again if image == again[0][1])
        raise InputError(f"{folder.place}/{DATA}: image {again[0][1][:100]!r} is in several units: {units[:200]}")


def _images(folder: PublishedFolder, scenes: tuple[str, ...]) -> Iterator[tuple[str, tuple[PublishedPair, ...]]]:
    for unit in folder.data:
        yield from ((unit, pairs) for pairs in read_pairs(folder, unit, scenes))
