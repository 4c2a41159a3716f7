"""What stands at the ends of recordings: headers never finished, chains, tags before and behind, chunks of no sound."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonify.media import containers
from sonify.media.audio import UnreadableSound, read_blocks, read_header
from sonify.media.containers import Part, View, layout_of
from sonify.rows import Reason
from tests.builders import noise
from tests.sources.everyday import SOUNDS, encode_by_ffmpeg

RATE_HZ = 16_000
SAMPLES = np.arange(10_000, dtype="<i2")
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT\x0e\0\0\0Lavf58.29.100\0"


def riff(
    data: bytes,
    claimed: int,
    whole: int | None = None,
    *,
    before: bytes = b"",
    behind: bytes = b"",
    form: bytes = struct.pack("<HHIIHH", 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16),
    name: bytes = b"RIFF",
) -> bytes:
    """A WAV of 16 bits that says what it is told to say."""
    head = b"WAVE" + before + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", claimed)
    body = head + data + behind
    return name + struct.pack("<I", len(body) if whole is None else whole) + body


def long_riff(whole: int, samples: int) -> bytes:
    """An RF64, which says its sizes in a chunk of their own."""
    sizes = b"ds64" + struct.pack("<IQQQI", 28, whole, samples, 0, 0)
    return riff(SAMPLES.tobytes(), 2**32 - 1, 2**32 - 1, before=sizes, name=b"RF64")


def steps(recording: bytes | Path) -> list[int]:
    return np.rint(np.concatenate(list(read_blocks(recording)), axis=1)[0] * 32768).astype(int).tolist()


PCM = SAMPLES.tobytes()
WAVES: dict[str, bytes] = {
    "size 0": riff(PCM, 0, 0),
    "size 0, whole of a head": riff(PCM, 0, 36),
    "all ones": riff(PCM, 2**32 - 1, 2**32 - 1),
    "two gigabytes": riff(PCM, 2**31 - 1, 2**31 + 35),
    "larger than the file": riff(PCM, 30_000),
    "a chunk behind": riff(PCM, 20_000, behind=LIST),
    "junk behind": riff(PCM, 20_000, behind=b"junk" * 1000),
    "an ID3 behind": riff(PCM, 20_000, behind=b"id3 " + struct.pack("<I", 20) + b"ID3\4\0\0\0\0\0\x0a" + bytes(10)),
    "an odd chunk before": riff(PCM, 20_000, before=b"LIST" + struct.pack("<I", 5) + b"INFOx\0"),
    "an odd chunk without its pad": riff(PCM, 20_000, before=b"LIST" + struct.pack("<I", 5) + b"INFOx"),
    "RF64 never finished": long_riff(0, 0),
    "RF64 of all ones": long_riff(2**64 - 1, 2**64 - 1),
    "RF64": long_riff(20_072, 20_000),
    "a long form": riff(PCM, 0, form=struct.pack("<HHIIHHH", 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16, 0)),
    "tagged": b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + riff(PCM, 20_000),
}


@pytest.mark.parametrize("name", WAVES)
def test_a_wav_is_read_to_its_end(name: str, tmp_path: Path) -> None:
    (tmp_path / "sound.wav").write_bytes(WAVES[name])
    for recording in (WAVES[name], tmp_path / "sound.wav"):
        assert steps(recording) == SAMPLES.tolist()


def test_a_wav_says_how_much_of_it_counts() -> None:
    assert steps(riff(PCM, 8_000)) == SAMPLES.tolist()[:4_000]
    assert steps(riff(PCM[:-1], 19_999, behind=b"\0" + LIST)) == SAMPLES.tolist()[:9_999]
    assert steps(riff(PCM[:-1], 19_999, behind=LIST)) == SAMPLES.tolist()[:9_999]


@pytest.mark.parametrize("data", [riff(b"", 0), riff(b"", 0, behind=LIST), riff(b"", 0, behind=LIST + LIST)])
def test_a_wav_of_nothing_has_no_samples(data: bytes) -> None:
    assert list(read_blocks(data)) == []


@pytest.mark.parametrize(
    "data", [riff(PCM, 20_000)[:30], riff(PCM, 20_000)[:42], b"RIFF\0\0\0\0WAVEdata\0\0\0\0" + PCM]
)
def test_a_wav_without_its_head_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableSound) as caught:
        steps(data)
    assert caught.value.reason is Reason.UNREADABLE


def test_other_containers_that_were_never_finished_are_read_to_their_end() -> None:
    swapped = SAMPLES.astype(">i2").tobytes()
    for size in (0, 2**32 - 1):
        assert steps(b".snd" + struct.pack(">IIIII", 24, size, 3, RATE_HZ, 1) + swapped) == SAMPLES.tolist()
    made = io.BytesIO()
    soundfile.write(made, SAMPLES, RATE_HZ, format="CAF", subtype="PCM_16")
    at = made.getvalue().index(b"data") + 4
    for size in (0, -1):
        data = made.getvalue()[:at] + struct.pack(">q", size) + made.getvalue()[at + 8 :]
        assert steps(data) == SAMPLES.tolist()


@pytest.mark.parametrize("container", ["wav", "w64", "aiff", "caf"])
def test_ima_adpcm_is_never_given_to_libsndfile(container: str) -> None:
    codec = "adpcm_ima_wav" if container in ("wav", "w64") else "adpcm_ima_qt"
    data = encode_by_ffmpeg(codec, container, 44_100)
    assert layout_of(io.BytesIO(data)).reader == "ffmpeg"
    assert read_header(data).subtype == codec


def test_a_second_form_cannot_hide_ima_adpcm() -> None:
    plain, ima = (struct.pack("<HHIIHHHH", tag, 1, RATE_HZ, 8_000, 256, 4, 2, 505) for tag in (1, 0x11))
    for order in ((ima, plain), (plain, ima)):
        chunks = b"".join(b"fmt " + struct.pack("<I", len(form)) + form for form in order)
        data = b"RIFF" + struct.pack("<I", 5_000) + b"WAVE" + chunks + b"data" + struct.pack("<I", 4_096) + bytes(4_096)
        layout = layout_of(io.BytesIO(data))
        assert layout.reader == ("ffmpeg" if order[0] is ima else "libsndfile")


def test_a_wav_that_two_walks_read_differently_is_not_for_libsndfile() -> None:
    odd = b"LIST" + struct.pack("<I", 5) + b"INFOx"  # and no byte behind it
    assert layout_of(io.BytesIO(riff(PCM, 20_000, before=odd))).reader == "ffmpeg"
    form = struct.pack(">HHIIHH", 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    swapped = b"fmt " + struct.pack(">I", len(form)) + form + b"data" + struct.pack(">I", 200) + bytes(200)
    for before, reader in ((b"", "libsndfile"), (b"LIST" + struct.pack(">I", 5) + b"INFOx", "ffmpeg")):
        data = b"RIFX" + struct.pack(">I", 300) + b"WAVE" + before + swapped
        assert layout_of(io.BytesIO(data)).reader == reader


# --- chains


def ogg(subtype: str, seconds: float, channels: int = 2, rate_hz: int = 48_000, seed: int = 0) -> bytes:
    file = io.BytesIO()
    samples = noise(seed, (round(seconds * rate_hz), channels))
    soundfile.write(file, samples, rate_hz, format="OGG", subtype=subtype)
    return file.getvalue()


def whole(recording: bytes | Path) -> np.ndarray:
    return np.concatenate(list(read_blocks(recording)), axis=1)


def frames(recording: bytes | Path) -> int:
    return sum(block.shape[1] for block in read_blocks(recording))


@pytest.mark.parametrize("first", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("second", ["VORBIS", "OPUS"])
def test_every_chain_of_a_radio_s_recording_is_heard(first: str, second: str, tmp_path: Path) -> None:
    chains = [ogg(first, 1.0), ogg(second, 1.5, seed=1), ogg(first, 0.5, seed=2)]
    (tmp_path / "sound.ogg").write_bytes(b"".join(chains))
    alone = np.concatenate([block for chain in chains for block in read_blocks(chain)], axis=1)
    assert alone.shape == (2, 144_000)
    for recording in (b"".join(chains), tmp_path / "sound.ogg"):
        assert np.array_equal(np.concatenate(list(read_blocks(recording)), axis=1), alone)


def test_a_chain_of_another_rate_or_of_other_channels_is_brought_to_those_of_the_first() -> None:
    chains = ogg("VORBIS", 1.0, 2, 44_100) + ogg("VORBIS", 1.0, 1, 22_050) + ogg("OPUS", 1.0, 2, 48_000)
    sound = np.concatenate(list(read_blocks(chains)), axis=1)
    assert sound.shape == (2, pytest.approx(3 * 44_100, abs=3))
    mono = sound[:, 44_100 + 2_000 : 2 * 44_100 - 2_000]
    assert np.array_equal(mono[0], mono[1])
    for second in range(3):
        middle = sound[:, second * 44_100 + 5_000 : (second + 1) * 44_100 - 5_000]
        assert middle.std() == pytest.approx(0.1, rel=0.35)


def test_a_chain_that_was_cut_is_heard_as_far_as_it_goes() -> None:
    whole = ogg("VORBIS", 2.0)
    assert 96_000 < frames(whole + whole[: len(whole) // 2]) < 170_000
    assert frames(whole + whole[:200]) == 96_000  # within the head of a song
    with pytest.raises(UnreadableSound):
        frames(whole + whole[:200] + whole)


def test_flac_s_chains_are_heard_where_they_are_alike() -> None:
    one, two = (encode_by_ffmpeg("flac", "ogg", 44_100, seconds=seconds) for seconds in (1.0, 2.0))
    assert frames(one + two) == 3 * 44_100
    with pytest.raises(UnreadableSound) as caught:
        frames(one + encode_by_ffmpeg("flac", "ogg", 22_050))
    assert caught.value.reason is Reason.UNREADABLE


def test_a_chain_of_another_codec_is_named() -> None:
    with pytest.raises(UnreadableSound, match="neither Vorbis nor Opus"):
        frames(ogg("VORBIS", 1.0) + encode_by_ffmpeg("flac", "ogg", 48_000))


def test_streams_side_by_side_are_no_chains() -> None:
    """As in a film: both begin before either goes on."""
    pages = []
    for data in (ogg("VORBIS", 0.5), ogg("OPUS", 0.5)):
        first = 27 + data[26] + sum(data[27 : 27 + data[26]])
        pages.append((data[:first], data[first:]))
    (vorbis, more_vorbis), (opus, more_opus) = pages
    film = vorbis + opus + more_vorbis + more_opus
    assert layout_of(io.BytesIO(film)).reader == "ffmpeg"
    assert read_header(film).subtype == "vorbis"


def test_more_chains_than_a_radio_sends_are_a_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MOST_CHAINS", 3)
    assert frames(ogg("OPUS", 0.1) * 3) > 0
    with pytest.raises(UnreadableSound, match="over 3 chains"):
        frames(ogg("OPUS", 0.1) * 4)


def test_a_chain_is_found_where_blocks_of_the_file_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = ogg("OPUS", 0.1) + ogg("OPUS", 0.2)
    for size in range(len(ogg("OPUS", 0.1)) - 5, len(ogg("OPUS", 0.1)) + 6):
        monkeypatch.setattr(containers, "_SCAN_BYTES", size)
        assert len(layout_of(io.BytesIO(chains)).parts) == 2


# --- tags


def id3(size: int, footer: bool = False) -> bytes:
    """A tag with a picture of so many bytes in it, which looks like sound here and there."""
    cover = b"\0image/jpeg\0\3\0\xff\xd8" + np.random.default_rng(0).bytes(size)
    frame = b"APIC" + _synchsafe(len(cover)) + b"\0\0" + cover
    head = b"\4\0" + (b"\x10" if footer else b"\0") + _synchsafe(len(frame))
    return b"ID3" + head + frame + (b"3DI" + head if footer else b"")


def _synchsafe(number: int) -> bytes:
    return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))


def ape(size: int, head: bool = True) -> bytes:
    body = np.random.default_rng(1).bytes(size)

    def mark(flags: int) -> bytes:
        return b"APETAGEX" + struct.pack("<IIII", 2000, size + 32, 1, flags) + bytes(8)

    return (mark(0xA0000000) if head else b"") + body + mark(0x80000000 if head else 0)


def lyrics(text: bytes) -> bytes:
    body = b"LYRICSBEGIN" + text
    return body + b"%06d" % len(body) + b"LYRICS200"


ID3V1 = b"TAG" + b"x" * 125
TAGS: dict[str, Callable[[bytes], bytes]] = {
    "a small cover": lambda sound: id3(10_000) + sound,
    "a large cover": lambda sound: id3(6_000_000) + sound,
    "two covers": lambda sound: id3(1_000) + id3(70_000, footer=True) + sound,
    "ID3v1": lambda sound: sound + ID3V1,
    "APE behind": lambda sound: sound + ape(200_000),
    "APE behind, headless": lambda sound: sound + ape(5_000, head=False),
    "APE and ID3v1": lambda sound: id3(300) + sound + ape(5_000) + ID3V1,
    "APE in front": lambda sound: ape(5_000) + sound,
    "lyrics": lambda sound: sound + lyrics(b"la la \xff\xfb\x90\x64" * 1000) + ID3V1,
}


@pytest.mark.parametrize("name", TAGS)
def test_tags_are_no_sound(name: str, tmp_path: Path) -> None:
    mp3 = SOUNDS["MPEG audio"]["MP3"]()
    tagged = TAGS[name](mp3)
    (tmp_path / "sound.mp3").write_bytes(tagged)
    for recording in (tagged, tmp_path / "sound.mp3"):
        assert frames(recording) == frames(mp3)
        assert np.array_equal(whole(recording), whole(mp3))
    parts = layout_of(io.BytesIO(tagged)).parts
    assert all(tagged[part.start : part.stop].removesuffix(ID3V1).endswith(mp3) for part in parts)


@pytest.mark.parametrize("name", ["a small cover", "a large cover", "two covers", "APE in front"])
def test_a_flac_behind_a_tag_is_a_flac(name: str) -> None:
    flac = SOUNDS["FLAC"]["FLAC"]()
    assert read_header(TAGS[name](flac)) == read_header(flac)
    assert np.array_equal(whole(TAGS[name](flac)), whole(flac))


def test_a_part_of_a_file_is_a_file() -> None:
    view = View(io.BytesIO(b"0123456789"), Part(3, 7, b"ab"))
    assert view.read() == b"ab3456"
    assert (view.seek(-3, 2), view.read(), view.seek(1), view.read(2), view.read(9)) == (3, b"456", 1, b"b", b"3456")
    assert (view.seek(-1), view.tell()) == (-1, 6)  # as of a file on disk, without an exception
    assert (view.seek(50), view.read()) == (50, b"")


def test_tags_without_end_are_no_sound() -> None:
    for data in (b"ID3\4\0\0\0\0\0\0" * 100_000, ape(0) * 50_000, lyrics(b"") * 50_000, id3(100)):
        with pytest.raises(UnreadableSound):
            frames(data)


def test_the_index_of_an_m4a_may_stand_at_its_end() -> None:
    data = SOUNDS["MPEG-4, QuickTime"]["AAC"]()
    assert data.index(b"moov") > data.index(b"mdat")
    assert frames(data) == pytest.approx(44_100, rel=0.1)
