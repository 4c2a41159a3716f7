"""From a recording to the pool's clips: mono, at one rate, in equal 16-bit pieces."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import soxr

from sonify.config import Audio
from sonify.media.audio import StoredSound, UnreadableSound, open_recording, read_blocks
from sonify.media.mixing import FULL_SCALE
from sonify.rows import Reason

# The mean of two channels of which one is silent loses 6.02 dB, so the living one is taken there as well.
MAX_DOWNMIX_LOSS_DB = 6.0
# Recordings up to this many values (16 MiB; 47 s of stereo at 44.1 kHz) are decoded once, longer ones twice:
# all of a recording must be seen before its first clip is cut.
HELD_SAMPLES = 2**22
# Integers of 32 bits written as floats still fit; beyond it the bytes are no samples, and soxr overflows.
MAX_AMPLITUDE = 2.0**32


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRules:
    """What `audio` says of cutting beside rate and length; a shorter tail is nearly all padding, and dropped."""

    min_tail_sec: float = 1.0
    remove_dc: bool = True
    downmix: str = "mean_or_louder"


def rules_of(audio: Audio) -> CutRules:
    """By which a pool is cut."""
    return CutRules(min_tail_sec=audio.min_tail_sec, remove_dc=audio.remove_dc, downmix=audio.downmix)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutClip:
    """A piece of a recording: (clip_samples,) int16, zero-padded; `duration_sec` is before padding."""

    index: int
    start_sec: float
    duration_sec: float
    samples: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Survey:
    """What the first pass found: the channel to keep (None: the mean of all) and what to take off that signal."""

    values: int
    channel: int | None
    offset: float


def cut_recording(
    recording: StoredSound, sample_rate_hz: int, clip_seconds: float, rules: CutRules = CutRules()
) -> Iterator[CutClip]:
    """Yield the clips of a recording, in memory that does not grow with its length.

    Everything that refuses a recording is found before its first clip. At another rate, where rounding can leave a
    tail just below the least, a `min_tail_sec` of 0 gives every clip that the pool's rate gave.

    Raises:
        UnreadableSound: not a file that is read, no samples (`too_short`), NaN or infinity (`bad_samples`).
    """
    held: list[np.ndarray] = []
    with open_recording(recording) as (header, blocks):
        survey = _survey(_holding(blocks, held), rules)
    blocks = held if survey.values <= HELD_SAMPLES else read_blocks(recording)
    signal = _resampled(_mono(blocks, survey), header.sample_rate_hz, sample_rate_hz)
    clip_samples = round(clip_seconds * sample_rate_hz)
    pieces = _pieces(signal, clip_samples)
    first = next(pieces, None)
    if first is None:
        raise UnreadableSound(Reason.TOO_SHORT, f"no sample at {sample_rate_hz} Hz")
    for index, piece in enumerate(chain([first], pieces)):
        if index > 0 and piece.size < rules.min_tail_sec * sample_rate_hz:
            return
        yield CutClip(
            index=index,
            start_sec=index * clip_samples / sample_rate_hz,
            duration_sec=piece.size / sample_rate_hz,
            samples=_to_int16(piece, clip_samples),
        )


def _holding(blocks: Iterable[np.ndarray], held: list[np.ndarray]) -> Iterator[np.ndarray]:
    values = 0
    for block in blocks:
        values += block.size
        if values <= HELD_SAMPLES:
            held.append(block)
        else:
            held.clear()
        yield block


def _survey(blocks: Iterable[np.ndarray], rules: CutRules) -> _Survey:
    frames = values = 0
    sums = squares = np.zeros(1)
    for block in blocks:
        # Written so that NaN fails as well.
        if not np.abs(block).max() <= MAX_AMPLITUDE:
            raise UnreadableSound(Reason.BAD_SAMPLES, "NaN, infinity or values that are no samples")
        signals = np.vstack([block, block.mean(axis=0)]).astype(np.float64)
        frames += block.shape[1]
        values += block.size
        sums = sums + signals.sum(axis=1)
        squares = squares + np.square(signals).sum(axis=1)
    if frames == 0:
        raise UnreadableSound(Reason.TOO_SHORT, "no samples")
    means = sums / frames
    *powers, mean_power = squares / frames - means**2
    loudest = int(np.argmax(powers))
    is_lost = mean_power < powers[loudest] * 10 ** (-MAX_DOWNMIX_LOSS_DB / 10)
    channel = loudest if is_lost and rules.downmix == "mean_or_louder" else None
    offset = float(means[-1 if channel is None else channel]) if rules.remove_dc else 0.0
    return _Survey(values=values, channel=channel, offset=offset)


def _mono(blocks: Iterable[np.ndarray], survey: _Survey) -> Iterator[np.ndarray]:
    """Reduce (channels, frames) to (frames,), without its DC where that is removed.

    The DC is the recording's, not each clip's: pieces of one recording stay continuous, and a swell that is
    longer than a clip keeps its shape.
    """
    for block in blocks:
        mono = block.mean(axis=0) if survey.channel is None else block[survey.channel]
        yield mono - np.float32(survey.offset)


def _resampled(blocks: Iterator[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    if from_hz == to_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, num_channels=1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _pieces(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cut a signal that comes in blocks into pieces of `size`, the last as long as what is left."""
    parts: list[np.ndarray] = []
    for block in blocks:
        parts.append(block)
        if sum(part.size for part in parts) >= size:
            joined = np.concatenate(parts)
            whole = joined.size - joined.size % size
            yield from joined[:whole].reshape(-1, size)
            parts = [joined[whole:]]
    rest = np.concatenate(parts)
    if rest.size:
        yield rest


def _to_int16(piece: np.ndarray, clip_samples: int) -> np.ndarray:
    """Round to 16 bits and pad; what passes full scale is scaled to fit, since clipping would add sound."""
    scaled = piece * np.float32(FULL_SCALE)
    if scaled.max() > FULL_SCALE - 1 or scaled.min() < -FULL_SCALE:
        scaled *= np.float32((FULL_SCALE - 1) / np.abs(scaled).max())
    samples = np.zeros(clip_samples, np.int16)
    samples[: piece.size] = np.rint(scaled)
    return samples
