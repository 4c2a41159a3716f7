"""Rooms to put a dry sound into: their responses, by the image-source method of pyroomacoustics.

S  samples
"""

import math
from dataclasses import dataclass

import numpy as np
import pyroomacoustics
from pyroomacoustics.experimental import measure_rt60
from scipy.signal import fftconvolve

# The level, under a full scale, to which a wall must have taken a sound before its further images are left out.
DECAY_DB = 60.0
# The decay that RT60 is told from; at the end of a response, later images are missing.
MEASURED_DECAY_DB = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A box of length, width and height in metres, of which every surface takes `absorption` of a sound's energy."""

    name: str
    size_m: tuple[float, float, float]
    absorption: float


# From dry to a hall: RT60 about 0.3, 0.8, 1.5 and 2.6 s; the study measures them and says so.
ROOMS = (
    Room(name="small room", size_m=(4.0, 3.0, 2.5), absorption=0.27),
    Room(name="classroom", size_m=(9.0, 7.0, 3.0), absorption=0.23),
    Room(name="church", size_m=(20.0, 12.0, 8.0), absorption=0.26),
    Room(name="concert hall", size_m=(35.0, 22.0, 12.0), absorption=0.26),
)


def room_response(room: Room, sample_rate_hz: int) -> np.ndarray:
    """(S,) float64 from a source near one end to an ear near the other, from 2.5 ms before the direct sound on."""
    images = math.ceil(DECAY_DB / (-10 * math.log10(1 - room.absorption)))
    box = pyroomacoustics.ShoeBox(
        room.size_m, fs=sample_rate_hz, materials=pyroomacoustics.Material(room.absorption), max_order=images
    )
    length, width, height = room.size_m
    # Off the middle, where the images would coincide.
    source = [0.31 * length, 0.43 * width, 0.6 * height]
    ear = [0.72 * length, 0.58 * width, 0.5 * height]
    box.add_source(source)
    box.add_microphone(ear)
    box.compute_rir()
    assert box.rir is not None
    travelled = math.floor(math.dist(source, ear) / box.c * sample_rate_hz)
    return np.asarray(box.rir[0][0], np.float64)[travelled:]


def reverberation_time_sec(response_S: np.ndarray, sample_rate_hz: int) -> float:
    """RT60, from the first 30 dB of the decay after the first 5."""
    return float(measure_rt60(response_S, fs=sample_rate_hz, decay_db=MEASURED_DECAY_DB))


def reverberate(samples_S: np.ndarray, response_S: np.ndarray) -> np.ndarray:
    """(S,) int16 as heard in the room, as long as before; the tail after its end is not heard.

    The peak is brought to the dry one's, so that rounding loses nothing; mixing sets the loudness.
    """
    wet_S = fftconvolve(samples_S.astype(np.float64), response_S)[: samples_S.size]
    peak = np.abs(samples_S.astype(np.float64)).max()
    return np.rint(wet_S * (peak / np.abs(wet_S).max())).clip(-32768, 32767).astype(np.int16)
