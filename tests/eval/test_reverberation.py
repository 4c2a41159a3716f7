import numpy as np
import pytest

from eval.reverberation import ROOMS, reverberate, reverberation_time_sec, room_response

RATE_HZ = 16_000


@pytest.mark.parametrize("rt60_sec", [0.3, 1.2, 2.5])
def test_a_known_decay_has_its_reverberation_time(rt60_sec):
    time_S = np.arange(round(2 * rt60_sec * RATE_HZ)) / RATE_HZ
    noise_S = np.random.default_rng(0).standard_normal(time_S.size)
    response_S = noise_S * 10 ** (-3 * time_S / rt60_sec)  # 60 dB in rt60_sec
    assert reverberation_time_sec(response_S, RATE_HZ) == pytest.approx(rt60_sec, rel=0.05)


def test_rooms_go_from_small_to_a_hall():
    times_sec = [reverberation_time_sec(room_response(room, RATE_HZ), RATE_HZ) for room in ROOMS]
    assert times_sec == pytest.approx([0.3, 0.85, 1.5, 2.6], rel=0.1)


def test_a_response_is_the_same_again():
    assert np.array_equal(room_response(ROOMS[0], RATE_HZ), room_response(ROOMS[0], RATE_HZ))


def test_a_room_with_one_echo_repeats_the_sound():
    dry_S = np.zeros(1000, np.int16)
    dry_S[100] = 10_000
    response_S = np.zeros(500)
    response_S[[0, 300]] = 1, 0.5
    wet_S = reverberate(dry_S, response_S)
    assert wet_S.dtype == np.int16
    assert wet_S.size == dry_S.size
    assert {int(at): int(wet_S[at]) for at in wet_S.nonzero()[0]} == {100: 10_000, 400: 5_000}


def test_an_echo_behind_the_end_is_not_heard():
    dry_S = np.zeros(1000, np.int16)
    dry_S[900] = -10_000
    response_S = np.zeros(500)
    response_S[[0, 300]] = 2, 1
    assert np.array_equal(reverberate(dry_S, response_S), dry_S)
