"""What says that two sounds, or two pictures, are the same although their files differ.

A sound's fingerprint is a coarse spectrogram, by which another encoding of a recording is known from another recording.
Where nobody says which two to compare, its hashes are looked up: each says on which side of `SOUND_BITS` planes the
course of the spectrum lies, once for each of some delays, so that copies agree in nearly all bits of one of them.
A picture's perceptual hash is 64 bits: which of its 64 lowest frequencies are above their median. Sizes, JPEG qualities
and colours leave it as it is, mirroring and wide crops do not. Of 494 photographs 445 are different ones: of their
121,722 pairs none is nearer than 12 bits, while copies at half the size, JPEG quality 50 and in grey are all within 6
bits; of copies that lost 5 % of width and height 77 % are within 6 bits, 93 % within 8, 98 % within 10.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from sonify.errors import require_faiss
from sonify.media.pixels import decode_rgb

BANDS = 16
LOWEST_HZ, HIGHEST_HZ = 60.0, 7000.0  # lossy encoders keep this much at any sensible rate
WINDOW_SEC = 0.064
STEP_SEC = 0.01
STEPS_IN_HOP = 5  # one frame of a fingerprint in 50 ms
MAX_SHIFT_STEPS = 40  # encoders delay by some 50 ms at most, and cuts differ by more
# Below the loudest value by more, encoders throw away what is there.
RANGE_DB = 60.0
FULL = 255
# Half a second of sound: below it an attack and its decay look alike in all recordings.
MIN_FRAMES = 10
# Of a frame's own mean, that much is taken away: a short sound is mostly its onset, as every other short sound is.
# Without it, one of 1,400 pairs of other sounds of the same class passed 0.95; with it the highest is 0.868, and the
# lowest of 700 encodings of the same sound 0.966 (ESC-50; MP3, Vorbis, AAC, Opus, 22.05 kHz, 30 ms later).
MEAN_SHARE = 0.7

SOUND_BITS = 1024
DELAYS_STEPS = (-4, -2, 0, 2, 4)  # of a hash each; encoders delay by 50 ms at most, and 10 ms make no difference
# The spectrum's course is seen through Hann windows of 100 ms, 50 ms apart.
COURSE_STEPS, COURSE_HOP = 10, 5
# Copies differ in fewer bits, and sounds that are only alike in more: see the table in docs/measurements.md.
MOST_BITS_APART = 154
# Hashes that agree in all bits of one of these parts are compared.
KEY_BITS = 20
# Of hashes with the same key each is compared with so many: copies of one sound are all found through each other.
COMPARED = 64

HASH_BITS = 64
# The hash sees 32 x 32 pixels; a larger JPEG is decoded at a fraction of its size: 1.7 ms for a picture of 640 pixels,
# 5 ms for one of 1500 x 2250 (12 ms at 256, which finds no more).
_SEEN_SIDE_PX = 128
_PAIRS_AT_ONCE = 1 << 17  # 16 MB of hashes on each side


def fingerprint(samples: np.ndarray, sample_rate_hz: int) -> bytes:
    """Return frames of `BANDS` bytes for (S,) int16 samples: 1.6 KB for 5 s."""
    levels = _levels(samples, sample_rate_hz)[::STEPS_IN_HOP]
    return np.rint(levels * FULL).astype(np.uint8).tobytes()


def correlation(reference: bytes, samples: np.ndarray, sample_rate_hz: int) -> float:
    """Return how far a clip agrees with a fingerprint where they agree best: 1 is the same sound, 0 is no relation.

    Each band's own mean is taken away, as recordings of one kind share a spectrum, and most of each frame's. Frames
    that are silent in both say nothing.
    """
    levels = _levels(samples, sample_rate_hz)
    frames = -(-len(levels) // STEPS_IN_HOP)
    if len(reference) != frames * BANDS:
        raise ValueError(f"expected a fingerprint of {frames * BANDS} bytes, found {len(reference)}")
    expected = np.frombuffer(reference, np.uint8).reshape(-1, BANDS) / FULL
    positions = np.arange(frames) * STEPS_IN_HOP
    best = 0.0
    for shift in range(-MAX_SHIFT_STEPS, MAX_SHIFT_STEPS + 1):
        inside = (positions + shift >= 0) & (positions + shift < len(levels))
        best = max(best, _agreement(expected[inside], levels[positions[inside] + shift]))
    return best


def _agreement(left: np.ndarray, right: np.ndarray) -> float:
    heard = left.any(axis=1) | right.any(axis=1)
    if heard.sum() < MIN_FRAMES:
        return 0.0
    left, right = _centred(left[heard]), _centred(right[heard])
    norm = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float((left * right).sum()) / norm if norm else 0.0


def _centred(levels: np.ndarray) -> np.ndarray:
    around_bands = levels - levels.mean(axis=0)
    return around_bands - MEAN_SHARE * around_bands.mean(axis=1, keepdims=True)


def _levels(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """(frames, bands) levels at the step of the alignment: 1 is the loudest value, 0 is `RANGE_DB` below it."""
    size = round(WINDOW_SEC * sample_rate_hz)
    hop = round(STEP_SEC * sample_rate_hz)
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1)) ** 2
    mel = power @ _filters(sample_rate_hz, size)
    loudest = mel.max(initial=0.0)
    if not loudest:
        return np.zeros_like(mel)
    floor = loudest * 10 ** (-RANGE_DB / 10)
    return 1 + 10 / RANGE_DB * np.log10(np.maximum(mel, floor) / loudest)


@lru_cache(maxsize=4)
def _filters(sample_rate_hz: int, size: int) -> np.ndarray:
    """(bins, bands) triangles on the mel scale."""
    low, high = (1127 * np.log1p(hz / 700) for hz in (LOWEST_HZ, min(HIGHEST_HZ, 0.45 * sample_rate_hz)))
    edges = np.linspace(low, high, BANDS + 2)
    mel = 1127 * np.log1p(np.fft.rfftfreq(size, 1 / sample_rate_hz) / 700)[:, np.newaxis]
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None)


def sound_hashes(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Return (`DELAYS_STEPS`, `SOUND_BITS` / 8) uint8 for (S,) int16 samples; all zero where too little is heard."""
    levels = _levels(samples, sample_rate_hz)
    heard = np.asarray(levels.any(axis=1))
    width = SOUND_BITS // 8
    if np.count_nonzero(heard[::STEPS_IN_HOP]) < MIN_FRAMES:
        return np.zeros((len(DELAYS_STEPS), width), np.uint8)
    course = np.zeros_like(levels)
    course[heard] = _centred(levels[heard])
    edge = max(DELAYS_STEPS)
    padded = np.pad(course, ((edge, edge + COURSE_STEPS), (0, 0)))
    seen = np.tensordot(
        np.lib.stride_tricks.sliding_window_view(padded, COURSE_STEPS, axis=0), np.hanning(COURSE_STEPS + 2)[1:-1], 1
    )
    positions = np.arange(0, len(levels), COURSE_HOP) + edge
    delayed = np.stack([seen[positions + delay].ravel() for delay in DELAYS_STEPS])
    return np.packbits(delayed @ _planes(delayed.shape[1]) > 0, axis=1)


@lru_cache(maxsize=2)
def _planes(dimensions: int) -> np.ndarray:
    """(D, bits) of 1 and -1, the same everywhere."""
    drawn = np.frombuffer(hashlib.shake_256(b"planes").digest(dimensions * SOUND_BITS // 8), np.uint8)
    return np.unpackbits(drawn).reshape(dimensions, SOUND_BITS) * 2.0 - 1.0


def near_sounds(hashes: np.ndarray) -> np.ndarray:
    """Return the (P, 2) pairs of N sounds that are copies of each other, or enough of them to link all that are.

    Pairs are found by a key that they share, so work grows with N and not with its square: of copies that differ in
    10 % of their bits 0.2 % are missed, of those in 15 %, 13 %.

    Args:
        hashes: (N, `DELAYS_STEPS`, `SOUND_BITS` / 8) uint8.
    """
    count, delays = hashes.shape[:2]
    some = np.flatnonzero(hashes.any(axis=(1, 2)))
    rows = hashes[some].reshape(-1, SOUND_BITS // 8)
    words = rows.view(np.uint64)
    sound = np.repeat(some, delays)
    found: list[np.ndarray] = []
    for keys in _keys(rows):
        order = np.argsort(keys, kind="stable")
        left = np.arange(len(order) - 1)
        for distance in range(1, COMPARED + 1):
            left = left[left + distance < len(order)]
            left = left[keys[order[left]] == keys[order[left + distance]]]
            if not len(left):
                break
            found.append(_copies_among(words, sound, order[left], order[left + distance]))
    pairs = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
    numbers = np.unique(pairs[:, 0] * count + pairs[:, 1])
    return np.stack([numbers // count, numbers % count], axis=1)


def _keys(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Each part of (M, bytes) hashes as (M,) numbers."""
    weights = 1 << np.arange(KEY_BITS, dtype=np.uint32)
    for start in range(0, SOUND_BITS - KEY_BITS + 1, KEY_BITS):
        first, end = start // 8, -(-(start + KEY_BITS) // 8)
        bits = np.unpackbits(hashes[:, first:end], axis=1)[:, start - 8 * first :][:, :KEY_BITS]
        yield bits @ weights


def _copies_among(words: np.ndarray, sound: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of pairs of hashes those of copies, as (P, 2) sounds, the lower number first."""
    other = sound[left] != sound[right]
    left, right = left[other], right[other]
    near: list[np.ndarray] = []
    for start in range(0, len(left), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        apart = np.bitwise_count(words[left[some]] ^ words[right[some]]).sum(axis=1, dtype=np.int64)
        near.append(np.flatnonzero(apart <= MOST_BITS_APART) + start)
    copies = np.concatenate(near) if near else np.zeros(0, np.int64)
    return np.sort(np.stack([sound[left[copies]], sound[right[copies]]], axis=1), axis=1)


def perceptual_hash(data: bytes) -> np.ndarray:
    """The (8,) uint8 hash of an image file.

    Raises:
        UnreadableImage: damaged, too large, or neither JPEG, PNG nor WebP.
    Source: imagehash's `phash`.
    """
    from imagehash import phash  # noqa: PLC0415 - the extra `publish`; fingerprints do without it

    return np.packbits(phash(decode_rgb(data, _SEEN_SIDE_PX)).hash.ravel())


class NearHashes:
    """Finds for each hash the nearest of N, exactly, by counting bits."""

    def __init__(self, hashes: Sequence[np.ndarray]) -> None:
        require_faiss()
        import faiss  # noqa: PLC0415 - only who searches needs one of the extras that bring it

        self._index = faiss.IndexBinaryFlat(HASH_BITS)
        self._index.add(np.stack(hashes))

    def nearest(self, hashes: Sequence[np.ndarray]) -> list[tuple[int, int]]:
        """For each hash the distance in bits to the nearest of N, and its number."""
        if not hashes:
            return []
        distances, numbers = self._index.search(np.stack(hashes), 1)
        return list(zip(distances[:, 0].tolist(), numbers[:, 0].tolist(), strict=True))
