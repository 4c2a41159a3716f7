"""Mixtures that a separator takes apart: filter banks, of which is known what they find, on tones and on recordings."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.separation import MAX_SI_SDR_DB, main, match_sources, read_mixture, read_stems, separate_stems, si_sdr_db
from sonify.media.mixing import FULL_SCALE, measure_loudness
from tests.builders import first_clips, noise, sine, write_sound
from tests.tiny_networks import CPU, band_separator, edit_weights, tiny_clip, tiny_separator, write_tiny_pixart
from train.separator import ConvTasNetSeparator, find_separator, load_separator, take_apart
from train.windows import TARGET_LUFS

SECONDS = 5
LOW_S, HIGH_S = sine(500, SECONDS, level=0.05), sine(5000, SECONDS, level=0.1)


def load(folder: Path) -> ConvTasNetSeparator:
    return load_separator(find_separator(str(folder)), CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, separators, a mixture of which nobody has the sources, and one with stems."""
    folder = tmp_path_factory.mktemp("separation")
    write_tiny_pixart(folder / "model")
    tiny_clip(folder / "clip")
    band_separator(folder / "bands", [2000])
    write_sound(folder / "dog+sea_waves.wav", LOW_S + HIGH_S)
    write_sound(folder / "low.wav", LOW_S)
    write_sound(folder / "silence.wav", 0 * LOW_S)
    stems = {"mixture": LOW_S + HIGH_S, "dog": LOW_S, "waves": HIGH_S}
    for name, samples in stems.items():
        write_sound(folder / "stems" / "beach" / f"{name}.wav", samples, subtype="FLOAT")
    tiny_separator(folder / "silent")
    edit_weights(folder / "silent" / "model.safetensors", lambda tensors: tensors["decoder.weight"].zero_())
    return folder


def run(folder: Path, out: Path, *arguments: str) -> int:
    given = [str(folder / word) if (folder / word).exists() else word for word in arguments]
    models = ["--model", str(folder / "model"), "--scorer", str(folder / "clip"), "--steps", "1", "--seeds", "2"]
    return main([*models, "--out", str(out), *given])


def result_of(out: Path) -> dict[str, Any]:
    assert sorted(path.name for path in out.iterdir()) == ["separation.json", "separation.png"]
    return json.loads((out / "separation.json").read_text())


SOURCES = ("--separate", "sources", "--separator", "bands")


def test_a_mixture_without_stems_is_scored_by_all_that_is_heard_in_it(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path, *SOURCES, "--audio", "dog+sea_waves.wav") == 0

    result = result_of(tmp_path)
    (item,) = result["items"]
    assert item["name"] == "dog + sea waves"
    assert item["found"] == {"levels_db": pytest.approx([-0.97, -6.99], abs=0.1), "matches": None}
    assert item["separated"]["num_times"] == 2 * item["mixed"]["num_times"] == 2 * 49
    assert list(item["separated"]["scores"]) == ["dog", "sea waves"]
    assert item["separated"]["scores"] != item["mixed"]["scores"]
    (compared,) = result["summary"]["mixtures"]
    assert [source["label"] for source in compared["sources"]] == ["dog", "sea waves"]
    settings = result["settings"]
    assert (settings["separate"], Path(settings["separator"]).name) == ("sources", "bands")
    assert settings["separator_identity"] == find_separator(str(folder / "bands")).identity


def test_labels_of_several_mixtures_are_told_one_a_recording(folder: Path, tmp_path: Path) -> None:
    mixtures = ("dog+sea_waves.wav", "stems/beach/mixture.wav")
    assert run(folder, tmp_path, *SOURCES, "--audio", *mixtures, "--labels", "a cat + rain", "cars+horns + wind") == 0
    scores = [list(item["mixed"]["scores"]) for item in result_of(tmp_path)["items"]]
    assert scores == [["a cat", "rain"], ["cars", "horns", "wind"]]


def test_with_stems_it_is_known_how_good_the_sources_are(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path, *SOURCES, "--stems", "stems") == 0

    (item,) = result_of(tmp_path)["items"]
    dog, waves = item["found"]["matches"]
    assert (dog["label"], dog["source"], waves["label"], waves["source"]) == ("dog", 1, "waves", 0)
    assert dog["mixture_si_sdr_db"] == pytest.approx(-6, abs=0.1)
    assert waves["mixture_si_sdr_db"] == pytest.approx(6, abs=0.1)
    assert min(dog["si_sdr_db"], waves["si_sdr_db"]) > 30


def test_what_the_model_hears_are_the_sources_at_their_level_in_the_mixture(folder: Path) -> None:
    sources = read_mixture(folder / "dog+sea_waves.wav", ["dog", "waves"], SECONDS, load(folder / "bands"))

    mixed_S = np.rint(sources.mixed_1S[0] * FULL_SCALE).astype(np.int16)
    assert measure_loudness(mixed_S, 16000) == pytest.approx(TARGET_LUFS, abs=0.05)
    assert sources.separated_NS.sum(axis=0) == pytest.approx(sources.mixed_1S[0], abs=1e-5)
    stems = read_stems(folder / "stems" / "beach", SECONDS)
    apart = separate_stems(stems, load(folder / "bands"))
    inside = slice(64, -64)  # a tone that begins at once is no tone there
    assert apart.separated_NS[:, inside] == pytest.approx(stems.separated_NS[::-1, inside], abs=1e-3)
    assert np.array_equal(apart.mixed_1S, stems.mixed_1S)


def test_windows_in_which_there_is_nothing_to_separate_are_passed_over(folder: Path, tmp_path: Path) -> None:
    both = np.concatenate([0 * LOW_S, LOW_S, LOW_S + HIGH_S, HIGH_S])
    write_sound(tmp_path / "long.wav", both)
    sources = read_mixture(tmp_path / "long.wav", ["dog", "waves"], SECONDS, load(folder / "bands"))
    assert sources.start_sec == 2 * SECONDS


def test_a_label_for_which_no_source_is_left_has_no_figure() -> None:
    stems_LS = np.stack([LOW_S, HIGH_S, noise(0, LOW_S.size)]).astype(np.float32)
    found_NS = np.stack([LOW_S + 0.1 * HIGH_S, HIGH_S]).astype(np.float32)

    low, high, hiss = match_sources(found_NS, stems_LS, stems_LS.sum(axis=0), ["low", "high", "hiss"])

    assert (low.source, high.source, hiss.source) == (0, 1, None)
    assert low.si_sdr_db == pytest.approx(20 * np.log10(0.05 / 0.01), abs=0.1)
    assert (high.si_sdr_db, hiss.si_sdr_db) == (pytest.approx(MAX_SI_SDR_DB), None)


def test_si_sdr_does_not_see_a_scale_and_is_always_a_number() -> None:
    hiss_S = noise(1, LOW_S.size, level=0.01)
    expected = 10 * np.log10(np.square(LOW_S).sum() / np.square(hiss_S).sum())
    assert si_sdr_db(LOW_S + hiss_S, LOW_S) == pytest.approx(expected, abs=0.1)
    assert si_sdr_db(-7 * (LOW_S + hiss_S), LOW_S) == pytest.approx(si_sdr_db(LOW_S + hiss_S, LOW_S))
    assert si_sdr_db(LOW_S, LOW_S) == pytest.approx(MAX_SI_SDR_DB)
    assert si_sdr_db(0 * LOW_S, LOW_S) == pytest.approx(-MAX_SI_SDR_DB)
    assert si_sdr_db(np.eye(1, 8)[0], np.eye(1, 8, 1)[0]) == pytest.approx(-MAX_SI_SDR_DB)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--separate", "sources", "--audio", "dog+sea_waves.wav"), "expected a --separator"),
        (("--separator", "bands", "--audio", "dog+sea_waves.wav", "low.wav"), "goes with --separate sources"),
        ((*SOURCES, "--audio", "low.wav"), "low.wav: expected two labels at least with + between them"),
        ((*SOURCES, "--audio", "low.wav", "--labels", "dog", "waves"), "--labels: expected 1, one for each sound"),
        ((*SOURCES, "--audio", "low.wav", "--labels", " + "), "found 'none'"),
        ((*SOURCES, "--audio", "low.wav", "--labels", "dog + dog"), "'dog' is there twice"),
        ((*SOURCES, "--audio", "low.wav", "--labels", "dog + food"), "'food' is there twice"),
        (
            (*SOURCES, "--audio", "low.wav", "--labels", "dog + waves"),
            "no window of 5 s in which the separator finds two",
        ),
        ((*SOURCES, "--audio", "silence.wav", "--labels", "dog + waves"), "silent"),
        ((*SOURCES, "--stems", "clip"), "folder of folders"),
        ((*SOURCES, "--stems", "stems", "--labels", "a", "b"), "with --stems, the names of the files"),
        (
            ("--separate", "sources", "--separator", "clip", "--stems", "stems"),
            "expected a model of type 'conv_tasnet'",
        ),
        (("--separate", "sources", "--separator", "/no/where", "--stems", "stems"), "there is no such folder"),
        (
            ("--separate", "sources", "--separator", "silent", "--audio", "dog+sea_waves.wav"),
            "dog+sea_waves.wav, at 0 s: the separator returned silence",
        ),
        (
            ("--separate", "sources", "--separator", "silent", "--stems", "stems"),
            "beach, at 0 s: the separator returned",
        ),
        (("--audio", "dog+sea_waves.wav"), "is taken apart with --separate sources"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: tuple[str, ...], message: str
) -> None:
    assert run(folder, tmp_path / "out", *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not list(tmp_path.glob("out/*"))


def test_real_sounds_that_lie_in_different_bands_come_apart(test_data: Path, tmp_path: Path) -> None:
    """All pairs of recordings of which one is nearly all below 1 kHz and the other nearly all above."""
    clips = [clip / np.linalg.norm(clip.astype(float)) for clip in first_clips(test_data / "sounds", 60, every=2)]
    low_shares = [levels[: 1000 * SECONDS].sum() / levels.sum() for levels in map(_spectrum, clips)]
    lows = [clip for clip, share in zip(clips, low_shares, strict=True) if share > 0.95]
    highs = [clip for clip, share in zip(clips, low_shares, strict=True) if share < 0.05]
    separator = load(band_separator(tmp_path, [1000]))
    gains_db = []
    for low_S, high_S in product(lows, highs):
        mixture_S = (low_S + high_S).astype(np.float32)
        found_NS = take_apart(separator, mixture_S, "pair")
        matches = match_sources(found_NS, np.stack([low_S, high_S]), mixture_S, ["low", "high"])
        gains_db += [match.si_sdr_db - match.mixture_si_sdr_db for match in matches if match.si_sdr_db is not None]
    assert len(gains_db) == 2 * len(lows) * len(highs) >= 20
    assert min(gains_db) > 8


def _spectrum(samples_S: np.ndarray) -> np.ndarray:
    return np.square(np.abs(np.fft.rfft(samples_S)))
