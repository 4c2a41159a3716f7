"""What is fuzzed: a function of any bytes that fails where a promise about untrusted data is broken."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np

from sonify.config.sections import PRESENCES
from sonify.errors import ConcernsAll
from sonify.io.tars import BLOCK, MAX_NAME_BYTES, index_members, read_member
from sonify.keys import KEY_PATTERN
from sonify.media.audio import (
    MAX_CHANNELS,
    MAX_SAMPLE_RATE_HZ,
    MIN_SAMPLE_RATE_HZ,
    UnreadableSound,
    open_recording,
    read_header,
)
from sonify.media.pixels import MAX_PIXELS, UnreadableImage, decode_rgb, inspect_image
from sonify.rows import Concept, Reason
from sonify.vlm.answers import MAX_CAPTION_CHARS, MAX_DESCRIPTION_CHARS, parse_concepts
from sonify.vlm.json_answers import parse_json
from sonify.vlm.questions import Answer
from sonify.vlm.repair import Unusable
from sonify.vlm.replies import Reply, Service, read_reply
from sonify.vlm.retrying import TryFailed
from sonify.vlm.vocabulary import PROMINENCES

MAX_CPU_SEC = 5.0  # for some kilobytes, on a busy machine and with every branch counted
SERVICE = Service(url="http://here/v1", model="eye", max_new_tokens=9, concurrency=1)
MAX_BLOCK_VALUES = 2**22  # one decoded frame may be larger than a block; it is never megabytes for each header byte


def tars(data: bytes) -> None:
    """Any bytes as an archive: members lie within it, one behind the other; anything else is rejected and counted."""
    with _little_time():
        members, rejected = index_members(io.BytesIO(data), "a.tar")
    # A header for each; beside them, damage is one row.
    assert len(members) + len(rejected) <= len(data) // BLOCK + 1
    assert len({member.name for member in members}) == len(members)
    end = 0
    for member in members:
        assert member.offset >= end + BLOCK
        end = member.offset + member.size_bytes
        assert 0 <= member.size_bytes <= len(data) - member.offset
        assert len(member.name.encode("utf-8", "surrogateescape")) <= MAX_NAME_BYTES
        assert read_member(io.BytesIO(data), member) == data[member.offset : end]
    for row in rejected:
        assert KEY_PATTERN.fullmatch(row.key)
        assert row.reason in (Reason.UNSUPPORTED, Reason.DUPLICATE_KEY, Reason.DAMAGED_ARCHIVE)
    assert sum(row.reason == Reason.DAMAGED_ARCHIVE for row in rejected) <= 1


def answers(data: bytes) -> None:
    """Any bytes as what a model says: concepts within their limits, or a reason in one short line."""
    text = data.decode("utf-8", "surrogateescape")  # JSON can say unpaired surrogates too
    with _little_time():
        result = parse_concepts(text, 5, (640, 480))
    if isinstance(result, Unusable):
        assert result.reason in Reason
        assert len(result.detail) <= 80
        assert len(result.detail.splitlines()) <= 1
        return
    assert 1 <= len(result.concepts) <= 5
    assert len(result.caption) <= MAX_CAPTION_CHARS
    assert len(result.caption.splitlines()) <= 1
    assert len({concept.concept for concept in result.concepts}) == len(result.concepts)
    for concept in result.concepts:
        _check_concept(concept)


def told(data: bytes) -> None:
    """Any bytes as an answer to the JSON question: concepts within their limits, or a reason in one short line."""
    text = data.decode("utf-8", "surrogateescape")
    with _little_time():
        result = parse_json(text, 5, finished=len(data) % 2 == 0, english=len(data) % 3 > 0)
    if isinstance(result, Unusable):
        assert len(result.detail) <= 80
        assert len(result.detail.splitlines()) <= 1
        return
    heard = [concept for concept in result.concepts if concept.presence in ("", "visible") and concept.sounding]
    assert len(heard) <= 5
    assert 1 <= len(result.concepts) <= len(heard) + 5
    assert len(result.caption.splitlines()) <= 1
    assert len({concept.concept for concept in result.concepts}) == len(result.concepts)
    result.caption.encode()
    for concept in result.concepts:
        _check_concept(concept)
        assert concept.presence in ("", *PRESENCES)
        assert 0.0 <= concept.confidence <= 1.0
        assert not concept.box or (len(concept.box) == 4 and 0 <= min(concept.box) <= max(concept.box) <= 1)


def replies(data: bytes) -> None:
    """Any bytes as what a server sends: an answer, or in a printable line a refusal, trouble, what concerns all."""
    try:
        with _little_time():
            result = read_reply(Reply(status=200, body=data), "sonify-0", SERVICE)
    except (TryFailed, ConcernsAll) as error:
        said = str(error)
    else:
        said = "" if isinstance(result, Answer) else result.detail
    assert said.isprintable()


def _check_concept(concept: Concept) -> None:
    assert concept.concept == concept.concept.strip() != ""
    assert len(concept.description) <= MAX_DESCRIPTION_CHARS
    assert concept.prominence in ("", *PROMINENCES.values())
    assert 0.0 <= concept.area <= 1.0
    for text in (concept.concept, concept.description):
        assert len(text.splitlines()) <= 1
        text.encode()  # a table holds UTF-8: no unpaired surrogate


def sounds(data: bytes) -> None:
    """Any bytes as a recording: a header within its limits and bounded blocks, or a refusal with its reason."""
    refusal = None
    with _little_time():
        try:
            _read_sound(data)
        except UnreadableSound as error:
            refusal = error
    assert refusal is None or (refusal.detail and refusal.reason in (Reason.UNREADABLE, Reason.UNSUPPORTED))


def _read_sound(data: bytes) -> None:
    header = read_header(data)
    assert 1 <= header.channels <= MAX_CHANNELS
    assert MIN_SAMPLE_RATE_HZ <= header.sample_rate_hz <= MAX_SAMPLE_RATE_HZ
    with open_recording(data) as (again, blocks):
        assert again == header
        for block in islice(blocks, 8):
            assert block.dtype == np.float32
            assert block.shape[0] == header.channels
            assert 0 < block.size <= MAX_BLOCK_VALUES


def images(data: bytes) -> None:
    """Any bytes as an image: within its limits and decoded to RGB, or a refusal with its reason."""
    refusal = None
    with _little_time():
        try:
            _read_image(data)
        except UnreadableImage as error:
            refusal = error
    reasons = (Reason.UNREADABLE, Reason.UNSUPPORTED, Reason.TOO_LARGE)
    assert refusal is None or (refusal.detail and refusal.reason in reasons)


def _read_image(data: bytes) -> None:
    info = inspect_image(data)
    assert 0 < info.width * info.height <= MAX_PIXELS
    picture = decode_rgb(data, 16)
    assert picture.mode == "RGB"
    assert min(picture.size) == min(info.width, info.height, 16)


@contextmanager
def _little_time() -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < MAX_CPU_SEC


TARGETS: dict[str, Callable[[bytes], None]] = {
    "tars": tars,
    "answers": answers,
    "told": told,
    "replies": replies,
    "sounds": sounds,
    "images": images,
}
