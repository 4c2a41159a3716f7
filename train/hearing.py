"""Sounds of whatever form as a released model hears them: clips of one length, at the loudness of training.

A release holds this code, so it needs numpy and torch alone: what reads, resamples and levels here is written out, and
its rules are those of the toolkit's pool.

S  samples, N  channels of a recording, W  windows of it
"""

import functools
import importlib
import importlib.util
import math
import os
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sonify.config.models import AST_SAMPLE_RATE_HZ
from train.arguments import as_number, as_sounds, as_trained, in_parts, one_of, told

Level = Literal["window", "recording"]
LEVELS = ("window", "recording")
# One recording, or several: files, arrays, or what `datasets` has for one.
Recording = str | os.PathLike | np.ndarray | torch.Tensor | dict

# How the clips of training are cut and levelled.
FULL_SCALE = 32768
MIN_TAIL_SEC = 1.0
MAX_DOWNMIX_LOSS_DB = 6.0
MAX_GAIN_DB = 30.0
PEAK_DBFS = -1.0
BLOCK_SEC, BLOCKS_A_BLOCK = 0.4, 4  # BS.1770 measures blocks of 0.4 s, one every 0.1 s
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0
OFFSET_LU = -0.691
RATES_HZ = (1_000, 192_000)
MAX_CHANNELS = 64
# A windowed sinc of 64 zero crossings on each side: torchaudio's `kaiser_best`, fitted there to resampy's.
ZERO_CROSSINGS, ROLLOFF, KAISER_BETA = 64, 0.9475937167399596, 14.769656459379492
PHASES_AT_ONCE = 64  # places between two samples whose weights are made together: 44,101 Hz has 16,000 of them


def cut_recordings(
    config: Mapping[str, Any],
    audio: Recording | Sequence[Recording],
    sampling_rate: int | None,
    level: Level | None,
    target_lufs: float | None,
) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Clips (W, S) float32 at 16 kHz as a model hears them; of each, its recording and the second it begins at.

    `config` says what the model was trained on: `clip_seconds`, `level` and `loudness_lufs`. A tail under one second,
    and a window in which nothing is heard, makes no clip.

    Raises:
        ValueError: a sound cannot be read or is silent, or its rate is not known.
    """
    recordings: Any = audio if isinstance(audio, list | tuple) else [audio]
    if not recordings:
        raise ValueError("expected a recording, found an empty list")
    if sampling_rate is not None and all(isinstance(one, str | os.PathLike | dict) for one in recordings):
        raise ValueError("sampling_rate is of samples: a file says its own")
    level = config["level"] if level is None else level
    if not isinstance(level, str) or level not in LEVELS:
        raise ValueError(f"expected a level, {' or '.join(LEVELS)}, found {level!r}")
    middle_lufs: float = sum(config["loudness_lufs"]) / 2
    target_lufs = middle_lufs if target_lufs is None else as_number("target_lufs", target_lufs, -70, 0)
    clips: list[np.ndarray] = []
    begun: list[tuple[int, float]] = []
    for number, recording in enumerate(recordings):
        name = str(recording) if isinstance(recording, str | os.PathLike) else f"recording {number}"
        try:
            signal_S = read_recording(recording, sampling_rate)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        windows = cut_windows(signal_S, round(config["clip_seconds"] * AST_SAMPLE_RATE_HZ))
        gains_db = gains_to_target_db(windows, level, target_lufs)
        heard = [(place, gain_db) for place, gain_db in enumerate(gains_db) if gain_db is not None]
        if not heard:
            raise ValueError(f"{name}: silent: no part of it has a measurable loudness")
        clips += apply_gains([windows[place] for place, _ in heard], [gain_db for _, gain_db in heard], level)
        begun += [(number, place * len(windows[0]) / AST_SAMPLE_RATE_HZ) for place, _ in heard]
    return np.stack(clips), begun


def hear_given(  # noqa: PLR0913 - the forms that a sound is given in
    pipeline: Any,
    batch_size: int,
    *,
    audio: Recording | Sequence[Recording] | None,
    sampling_rate: int | None,
    level: Level | None,
    target_lufs: float | None,
    audio_features: np.ndarray | torch.Tensor | None,
    audio_BS: np.ndarray | torch.Tensor | None,
) -> tuple[torch.Tensor, list[tuple[int, float]] | None]:
    """The features (B, T, D) of what a pipeline was called with, in one of three forms, and the windows of recordings.

    Raises:
        ValueError: it is none of them or several, or cannot be heard.
    """
    if sum(given is not None for given in (audio, audio_features, audio_BS)) != 1:
        raise ValueError("expected audio, or audio_features, or audio_BS, and only one of them")
    windows = None
    if audio is not None:
        audio_BS, windows = pipeline.cut(audio, sampling_rate, level, target_lufs)
    elif not (sampling_rate is level is target_lufs is None):
        raise ValueError("sampling_rate, level and target_lufs are for `audio`: the model hears the rest as it is")
    if audio_BS is None:
        return as_trained("audio_features", audio_features), None
    return torch.cat([pipeline.encode_audio(part_BS) for part_BS in in_parts(as_sounds(audio_BS), batch_size)]), windows


def listen(
    ear: Callable[[torch.Tensor], torch.Tensor], audio_BS: Any, device: torch.device, longest: float = math.inf
) -> torch.Tensor:
    """What an ear makes of sounds, (B, T, D), as the training shards hold it; it hears `longest` samples at most.

    Raises:
        ValueError: the sounds are none, not mono, or longer or shorter than the ear hears.
    """
    given_BS = as_sounds(audio_BS)
    if given_BS.shape[1] > longest:
        found_sec, longest_sec = given_BS.shape[1] / AST_SAMPLE_RATE_HZ, longest / AST_SAMPLE_RATE_HZ
        raise ValueError(f"a sound of {found_sec:g} s: this AST hears {longest_sec:g} s at most; cut it into clips")
    return as_trained("what the encoder hears", ear(given_BS.to(torch.float32).to(device)))


def read_recording(recording: Recording, sampling_rate_hz: int | None) -> np.ndarray:
    """A recording as (S,) float64 at 16 kHz: mono, without DC.

    Raises:
        ValueError: it cannot be read, its rate is not known, or it holds no samples.
    """
    if isinstance(recording, dict):
        if not {"array", "sampling_rate"} <= {*recording}:
            raise ValueError(f"expected a dict with `array` and `sampling_rate`, found {told([*recording])}")
        recording, sampling_rate_hz = recording["array"], recording["sampling_rate"]
    elif isinstance(recording, str | os.PathLike):
        recording, sampling_rate_hz = read_file(Path(recording))
    if isinstance(recording, torch.Tensor):
        if recording.layout != torch.strided or recording.is_meta:
            raise ValueError(f"expected samples as a dense tensor, found {recording.layout} on {recording.device}")
        recording = recording.detach().cpu()
        recording = (recording.float() if recording.is_floating_point() else recording).numpy()
    if sampling_rate_hz is None:
        raise ValueError(
            "samples without their rate: pass sampling_rate=44100, or whatever it is; clips that are ready for the"
            " model, at 16 kHz, go in as audio_BS"
        )
    rate_hz = one_of(sampling_rate_hz)
    if not isinstance(rate_hz, int | float) or not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise ValueError(
            f"expected a sampling_rate of {RATES_HZ[0]} to {RATES_HZ[1]} Hz, found {told(sampling_rate_hz)}"
        )
    return resample(to_mono(np.asarray(recording)), round(rate_hz))


def read_file(path: Path) -> tuple[np.ndarray, int]:
    """A file's samples (S, N) and its rate in Hz: whatever soundfile reads, without it WAV of whole numbers.

    Raises:
        ValueError: neither can read it.
    """
    if not path.is_file():
        raise ValueError("is a folder, no sound" if path.is_dir() else "no such file")
    # not by an import statement: diffusers would tell who loads this file that it needs the library
    is_there = importlib.util.find_spec("soundfile") is not None
    try:
        if is_there:
            return importlib.import_module("soundfile").read(path, dtype="float32", always_2d=True)
        with wave.open(str(path)) as file:
            width, num_channels, rate_hz = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
        if width > 4:
            raise wave.Error(f"samples of {width} bytes")
    except (OSError, EOFError, RuntimeError, wave.Error) as error:  # soundfile's own is a RuntimeError
        todo = "" if is_there else "install soundfile, or "
        raise ValueError(
            f"cannot be read as a sound ({error}): {todo}pass the samples and their sampling_rate"
        ) from error
    whole = data[: len(data) // (width * num_channels) * width * num_channels].reshape(-1, width)
    if width == 1:
        whole = whole ^ 0x80  # bytes alone are stored without a sign
    # from the top of 32 bits downwards, whatever their number
    samples = np.zeros((len(whole), 4), np.uint8)
    samples[:, 4 - width :] = whole
    return samples.view("<i4").reshape(-1, num_channels) / 2.0**31, rate_hz


def to_mono(samples: np.ndarray) -> np.ndarray:
    """Samples (S,), (S, N) or (N, S), whole numbers or within 1, as (S,) float64 without DC.

    The mean of the channels; where it loses more than 6 dB, of one channel alone or of two that cancel each other, the
    loudest of them.

    Raises:
        ValueError: no samples, or not finite, or another shape.
    """
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2 or not samples.size or min(samples.shape) > MAX_CHANNELS:
        raise ValueError(
            "expected samples of one recording, with its channels before or behind them, found an array of shape"
            f" {samples.shape}; several recordings are a list"
        )
    signal_NS = samples if samples.shape[0] <= samples.shape[1] else samples.T
    full_scale = 1.0
    if np.issubdtype(signal_NS.dtype, np.signedinteger):
        full_scale = 2.0 ** (8 * signal_NS.dtype.itemsize - 1)
    elif not np.issubdtype(signal_NS.dtype, np.floating):
        raise ValueError(f"expected samples as floats or signed integers, found {signal_NS.dtype}")
    signal_NS = signal_NS.astype(np.float64) / full_scale
    if not np.isfinite(signal_NS).all():
        raise ValueError("holds samples that are not finite")
    mono_S = signal_NS.mean(axis=0)
    loudest_S = max(signal_NS, key=np.var)
    if mono_S.var() < loudest_S.var() * 10 ** (-MAX_DOWNMIX_LOSS_DB / 10):
        mono_S = loudest_S
    return mono_S - mono_S.mean()


def resample(signal_S: np.ndarray, rate_hz: int) -> np.ndarray:
    """A signal at 16 kHz, float64: a windowed sinc, one set of weights for each place between two samples."""
    common = math.gcd(rate_hz, AST_SAMPLE_RATE_HZ)
    num_phases, stride = AST_SAMPLE_RATE_HZ // common, rate_hz // common
    if num_phases == stride:
        return signal_S
    cutoff = min(1.0, AST_SAMPLE_RATE_HZ / rate_hz) * ROLLOFF  # of half the signal's rate
    reach = ZERO_CROSSINGS / cutoff
    half = math.ceil(reach)
    taps = np.arange(-half, half + 1)
    num_samples = -(-len(signal_S) * num_phases // stride)
    num_rounds = -(-num_samples // num_phases)
    padded_S = np.pad(signal_S, (half, half + num_rounds * stride + 1))
    out_S = np.empty((num_rounds, num_phases))
    for start in range(0, num_phases, PHASES_AT_ONCE):
        firsts, rests = np.divmod(np.arange(start, min(start + PHASES_AT_ONCE, num_phases)) * stride, num_phases)
        offsets = taps - rests[:, None] / num_phases
        window = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - (offsets / reach) ** 2, 0, None))) / np.i0(KAISER_BETA)
        weights = np.where(np.abs(offsets) < reach, cutoff * np.sinc(cutoff * offsets) * window, 0.0)
        for row, first in enumerate(firsts):
            around = np.lib.stride_tricks.sliding_window_view(padded_S[first:], len(taps))[::stride][:num_rounds]
            out_S[:, start + row] = around @ weights[row]
    return out_S.reshape(-1)[:num_samples]


def cut_windows(signal_S: np.ndarray, num_samples: int) -> list[np.ndarray]:
    """Windows (S,) of whole numbers of 16 bits, as float64 within 1, the last padded with zeros.

    A last one under a second is left out, and one that passes full scale is scaled to fit: as training cut its clips.
    """
    pieces = [signal_S[start : start + num_samples] for start in range(0, len(signal_S), num_samples)]
    if len(pieces) > 1 and len(pieces[-1]) < MIN_TAIL_SEC * AST_SAMPLE_RATE_HZ:
        pieces.pop()
    windows: list[np.ndarray] = []
    for piece_S in pieces:
        scaled_S = piece_S * FULL_SCALE
        if scaled_S.max() > FULL_SCALE - 1 or scaled_S.min() < -FULL_SCALE:
            scaled_S = scaled_S * ((FULL_SCALE - 1) / np.abs(scaled_S).max())
        windows.append(np.pad(np.rint(scaled_S) / FULL_SCALE, (0, num_samples - len(piece_S))))
    return windows


def gains_to_target_db(windows: Sequence[np.ndarray], level: str, target_lufs: float) -> list[float | None]:
    """The gain that brings each window of one recording to a loudness, rounded to 4 decimals; None where it is silent.

    With the level `recording` it is one gain, of the recording that the windows are.
    """
    loudness = [measure_loudness(window_S) for window_S in windows]
    whole = measure_loudness(np.concatenate(windows)) if level == "recording" else None
    return [
        round(min(target_lufs - (lufs if whole is None else whole), MAX_GAIN_DB), 4) if math.isfinite(lufs) else None
        for lufs in loudness
    ]


def apply_gains(windows: Sequence[np.ndarray], gains_db: Sequence[float], level: str) -> list[np.ndarray]:
    """The windows with their gains as float32 of 16 bits, none above the ceiling of training's mixes.

    What passes it is lowered as a whole: the window, or with the level `recording` all of them.
    """
    amplified = [
        (window_S * FULL_SCALE).astype(np.float32) * np.float32(10 ** (gain_db / 20))
        for window_S, gain_db in zip(windows, gains_db, strict=True)
    ]
    lowered_db = [_above_ceiling_db(float(np.abs(window_S).max())) for window_S in amplified]
    if level == "recording":
        lowered_db = [min(lowered_db)] * len(amplified)
    factors = [np.float32(10 ** (gain_db / 20)) for gain_db in lowered_db]
    steps = [np.rint(window_S * factor) for window_S, factor in zip(amplified, factors, strict=True)]
    return [window_S.clip(-FULL_SCALE, FULL_SCALE - 1) / np.float32(FULL_SCALE) for window_S in steps]


def _above_ceiling_db(peak: float) -> float:
    """What brings a peak, in steps of 16 bits, below the ceiling, rounded down; 0.0 where it is."""
    ceiling = math.floor(FULL_SCALE * 10 ** (PEAK_DBFS / 20))
    return 0.0 if np.rint(peak) <= ceiling else math.floor(20 * math.log10(ceiling / peak) * 10_000) / 10_000


def measure_loudness(samples_S: np.ndarray) -> float:
    """Integrated loudness at 16 kHz in LUFS, -inf where no block of 0.4 s passes the gate.

    Source: ITU-R BS.1770-5, Annex 1; the filters are of the standard's analogue prototype, as pyloudnorm's `DeMan`.
    """
    block, hop = round(BLOCK_SEC * AST_SAMPLE_RATE_HZ), round(BLOCK_SEC * AST_SAMPLE_RATE_HZ / BLOCKS_A_BLOCK)
    if len(samples_S) < block:
        return -math.inf
    num_blocks = round((len(samples_S) - block) / hop) + 1
    weighting = k_weighting()
    size = 1 << (len(samples_S) + len(weighting) - 1).bit_length()
    spectrum = np.fft.rfft(samples_S, size) * np.fft.rfft(weighting, size)
    squares_S = np.square(np.fft.irfft(spectrum, size)[: len(samples_S)])
    power = np.array([squares_S[n * hop : n * hop + block].sum() / block for n in range(num_blocks)])
    gate = 10 ** ((ABSOLUTE_GATE_LUFS - OFFSET_LU) / 10)
    power = power[power >= gate]
    if power.size:
        power = power[power > power.mean() * 10 ** (RELATIVE_GATE_LU / 10)]
    return OFFSET_LU + 10 * math.log10(power.mean()) if power.size else -math.inf


@functools.cache
def k_weighting() -> np.ndarray:
    """The filter's answer to one sample at 16 kHz, as long as it is above the noise of float64."""
    num_samples = 8192
    z = np.exp(-2j * np.pi * np.arange(num_samples // 2 + 1) / num_samples)
    k, q = math.tan(math.pi * 1681.9744509555319 / AST_SAMPLE_RATE_HZ), 0.7071752369554193
    high = 10 ** (3.99984385397 / 20)
    middle = high**0.499666774155
    shelf = (high + middle * k / q + k * k) + 2 * (k * k - high) * z + (high - middle * k / q + k * k) * z * z
    shelf /= (1 + k / q + k * k) + 2 * (k * k - 1) * z + (1 - k / q + k * k) * z * z
    k, q = math.tan(math.pi * 38.13547087613982 / AST_SAMPLE_RATE_HZ), 0.5003270373253953
    scale = 1 + k / q + k * k
    passed = (1 - 2 * z + z * z) / (1 + 2 * (k * k - 1) / scale * z + (1 - k / q + k * k) / scale * z * z)
    return np.fft.irfft(shelf * passed, num_samples)
