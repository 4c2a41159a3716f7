"""The form of a published folder, written and read: a row a scene, a clip, a shard; how all were made; checksums.

It is made beside its place, sealed by its checksums, and put there as a whole. What of other people's text stands in a
page that people read is made harmless here (`plain`, `escape`, `code_block`).

DIR/data/<split>-<unit>.parquet    PublishedPair
DIR/clips/<unit>.parquet           PublishedClip, of the clips that are heard
DIR/shards/shards.parquet          PublishedShard
DIR/sonify.json                    PublishedRecord
DIR/checksums.sha256               of all other files, as `sha256sum` writes them
DIR/audio/<split>-<unit>.parquet   image, scene and sound, only where it was asked for and every licence allows it
DIR/images/<split>-<unit>.parquet  image and picture, likewise
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sonify import layout
from sonify.errors import InputError
from sonify.io.places import is_utf8
from sonify.io.write import naming_place, replacing, sha256_of, sync_folder
from sonify.rows import Clip, Pair

log = logging.getLogger(__name__)

DATA = "data"
CLIPS = "clips"
AUDIO = "audio"
IMAGES = "images"
PICTURE = "picture"  # the column of IMAGES beside `image`, which is a key in every table
SHARDS = "shards/shards.parquet"
RECORD = "sonify.json"
CHECKSUMS = "checksums.sha256"
FORMAT = 1  # columns that came later have a default, which stands for them where a folder lacks them
PAPER = "2501.05413"  # whose method it follows, on arXiv
COPY_KINDS = ("exact", "equivalent", "repaired")  # of `SourceClip.copy`
LOUDNESS_STEP_LU = 0.5  # of `Statistics.target_lufs`
# What huggingface-hub keeps in a folder that it uploads, so as to go on where it was.
UPLOAD_STATE = ".cache"

_UNIT = "([A-Za-z0-9_-]{1,100})"
DATA_FILE = re.compile(rf"{DATA}/({'|'.join(layout.SPLITS)})-{_UNIT}\.parquet")
CLIPS_FILE = re.compile(rf"{CLIPS}/{_UNIT}\.parquet")
_CHECKSUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")
# Control characters, half surrogates, line separators; and what makes a line read from right to left.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SPECIAL = re.compile(r"[\\`*_\[\]|~$#]")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPair(Pair):
    """A row of `pairs/` with what rendering did to it, and under what conditions it may be used.

    `conditions` are the union over its clips and its image; `contradictions` say which of them exclude each other.
    `image_licence` is what the publisher said of the image.
    """

    mix_gain_db: float
    peak_dbfs: float
    mix_sha256: str
    image_licence: str
    conditions: tuple[str, ...]
    contradictions: tuple[str, ...]
    redistributable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedClip(Clip):
    """A row of `pool/clips` that some scene uses, with the conditions of its licence.

    `fingerprint` tells a transcode of the clip from another sound; see `sonify.media.likeness`.
    """

    conditions: tuple[str, ...]
    fingerprint: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedShard:
    """A rendered archive, so that another rendering can be compared; `complete` where no row of it was left out."""

    path: str
    split: str
    unit: str
    size_bytes: int
    sha256: str
    samples: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counts over what is published. Mappings with numbers as keys have them as text: they are written as JSON."""

    images: Mapping[str, int]  # by split
    scenes: Mapping[str, int]  # by split
    concepts: Mapping[str, int]  # how often each of the 1,000 most frequent is heard, most often first
    distinct_concepts: int
    sources_in_scene: Mapping[str, int]  # scenes by their number of sources
    copies: Mapping[str, int]  # sources by `SourceClip.copy`
    target_lufs: Mapping[str, int]  # sources by target loudness, in steps of LOUDNESS_STEP_LU, named by the lower end
    clip_uses: Mapping[str, int]  # clips by how often they are heard
    clips: Mapping[str, int]  # by corpus
    recordings: Mapping[str, int]  # by corpus
    licences: Mapping[str, int]  # clips by licence as the corpora write it
    conditions: Mapping[str, int]  # scenes by their conditions, joined by " + "; "none" where there are none
    contradictions: Mapping[str, int]  # scenes by contradiction
    redistributable: int  # scenes
    left_out: Mapping[str, int]  # scenes by reason: "excluded", "licence"
    evidence: Mapping[str, Any] = field(default_factory=dict)  # counts of sources and refused concepts: `Evidence`
    duplicates: Mapping[str, int] = field(
        default_factory=dict
    )  # where copies are joined: `DuplicateCounts` of the pool
    lowered: int = 0  # scenes that were lowered as a whole, so as to keep the ceiling
    cut_off: int = 0  # scenes that reach full scale without that, where samples beyond it are cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRecord:
    """How the dataset was made: `DIR/sonify.json`.

    `config` is the resolved configuration without places of the publisher's machine; `models` and `versions` are those
    of run.json; `prompts` are the words that models were asked, by extractor. `rendered_from` is the sha256 of the
    checksums of the dataset that the run rendered again, and empty for a run of one's own. `acted` is what the rules of
    the draw came to, as `ActedRules` has it, and empty where that was not recorded.
    """

    format: int
    scenes: tuple[str, ...]
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    models: Mapping[str, str]
    prompts: Mapping[str, str]
    rendered_from: str
    statistics: Statistics
    acted: Mapping[str, Any] = field(default_factory=dict)


def data_file(split: str, unit: str) -> str:
    """Where the scenes of a unit lie."""
    return f"{DATA}/{split}-{unit}.parquet"


def clips_file(unit: str) -> str:
    """Where those clips of a unit of the pool lie that are heard."""
    return f"{CLIPS}/{unit}.parquet"


def write_checksums(files: Mapping[str, str]) -> bytes:
    """Names and their sha256 as `sha256sum` writes them."""
    return "".join(f"{sha256}  {name}\n" for name, sha256 in files.items()).encode()


def read_checksums(data: bytes) -> dict[str, str]:
    """The sha256 of each name in such a list.

    Raises:
        ValueError: a line is none of such a list; says which.
    """
    files: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        match = _CHECKSUM.fullmatch(line)
        if match is None:
            raise ValueError(f"expected a sha256 and a name in each line, found {line[:100]!r}")
        files[match[2]] = match[1]
    return files


def plain(text: str, longest: int) -> str:
    """One line of at most that many characters, without what cannot be shown."""
    line = " ".join(_UNSHOWN.sub(" ", text).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def escape(text: str, longest: int = 200) -> str:
    """Text for a place inside a line or a table's cell: no HTML, no markup, no link under another name.

    An address stays one: it is shown as where it leads.
    """
    line = "".join(_ENTITIES.get(character, character) for character in plain(text, longest))
    return _SPECIAL.sub(lambda found: f"\\{found.group()}", line)


def code_block(text: str) -> str:
    """Text as it is, indented: no line of it can end the block."""
    return "\n".join(f"    {_UNSHOWN.sub(' ', line)}" for line in text.splitlines())


def files_of(folder: Path) -> Iterator[str]:
    """A publication's files, relative to it, in order, without what an upload keeps there."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] != UPLOAD_STATE and not (path.is_dir() and not path.is_symlink()):
            yield relative.as_posix()


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill, which is sealed and takes the place of `out` when all went well.

    Raises:
        InputError: `out` holds something else than a publication, or cannot be written.
        DiskFull: no room is left.
    """
    out = _resolve(out)
    with replacing(out) as folder:
        with naming_place(out):
            _check_replaceable(out)
        yield folder
        seal(folder)
        if out.exists() and any(out.iterdir()):
            log.info("%s: replaces the publication that is there", out)


def _resolve(out: Path) -> Path:
    """Follow links, so that they stay; Parquet's library takes names that are UTF-8 only."""
    resolved = Path(os.path.realpath(out))
    if not is_utf8(str(resolved)):
        raise InputError(f"--out {str(out)!r}: the name is not UTF-8; choose another place")
    if not resolved.name or resolved.is_symlink():
        what = "a link that leads to itself" if resolved.name else "the root of a disk"
        raise InputError(f"--out {out}: expected a folder that can be made, found {what}; choose another place")
    return resolved


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


def seal(folder: Path) -> None:
    """Write the checksums of all files, as `sha256sum` does, and bring everything to the disk."""
    hashes = {name: sha256_of(folder / name) for name in sorted(files_of(folder))}
    (folder / CHECKSUMS).write_bytes(write_checksums(hashes))
    for name in (*hashes, CHECKSUMS):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(inner)
