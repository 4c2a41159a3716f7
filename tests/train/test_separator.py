"""Sources apart: by weights that are a filter bank, so that what is right is known, and by random ones."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.builders import RATE_HZ, noise, refused, sine
from tests.tiny_networks import CPU, band_separator, edit_json, edit_weights, tiny_separator
from train.separator import (
    SILENT_DB,
    ConvTasNetSeparator,
    check_separator,
    find_separator,
    fit_scales,
    levels_below,
    load_separator,
    make_consistent,
    take_apart,
)

LOW_S, HIGH_S = (sine(hz, 2.0, level=level).astype(np.float32) for hz, level in ((500, 0.05), (5000, 0.1)))


def load(folder: Path) -> ConvTasNetSeparator:
    return load_separator(find_separator(str(folder)), CPU)


class Returns:
    """A separator of somebody's own, which returns what it is told to."""

    def __init__(self, of_mixture: Callable[[np.ndarray], Any]) -> None:
        self._of_mixture = of_mixture

    def separate(self, mixture_S: np.ndarray, rate_hz: int) -> np.ndarray:
        assert rate_hz == RATE_HZ
        return self._of_mixture(mixture_S)


def test_what_lies_in_different_bands_is_taken_apart(tmp_path: Path) -> None:
    separator = load(band_separator(tmp_path, [2000]))

    sources_NS = take_apart(separator, LOW_S + HIGH_S, "both")

    assert sources_NS.shape == (2, len(LOW_S))
    assert sources_NS.dtype == np.float32
    for source_S, sound_S in zip(sources_NS, (HIGH_S, LOW_S), strict=True):  # the louder one first
        assert levels_below((source_S - sound_S)[None], sound_S) < -30
    assert levels_below(sources_NS, LOW_S + HIGH_S) == pytest.approx([-0.97, -6.99], abs=0.1)


def test_sources_in_which_nothing_is_heard_are_left_out(tmp_path: Path) -> None:
    separator = load(band_separator(tmp_path, [2000, 3500, 6500]))

    assert len(separator.separate(LOW_S + HIGH_S, RATE_HZ)) == 4
    assert len(take_apart(separator, LOW_S + HIGH_S, "both")) == 2


@pytest.mark.parametrize(("above_db", "kept"), [(1.0, 2), (-1.0, 1)])
def test_the_limit_of_silence_is_relative_to_the_mixture(above_db: float, kept: int) -> None:
    quiet = 10 ** ((SILENT_DB + above_db) / 20)
    separator = Returns(lambda mixture_S: np.stack([quiet * mixture_S, mixture_S]))

    for gain in (1.0, 1e-3):
        sources_NS = take_apart(separator, gain * LOW_S, "one")
        assert len(sources_NS) == kept
        assert np.array_equal(sources_NS[0], gain * LOW_S)


@pytest.mark.parametrize("seconds", [0.4, 2.0, 2.00003])
def test_sources_add_up_to_their_mixture(tmp_path: Path, seconds: float) -> None:
    mixture_S = noise(3, round(seconds * RATE_HZ)).astype(np.float32)
    plain = load(tiny_separator(tmp_path / "plain", mixture_consistency=False)).separate(mixture_S, RATE_HZ)
    consistent = load(tiny_separator(tmp_path / "consistent")).separate(mixture_S, RATE_HZ)

    assert plain.shape == consistent.shape == (3, len(mixture_S))
    assert np.abs(plain.sum(axis=0) - mixture_S).max() > 0.1
    assert np.abs(consistent.sum(axis=0) - mixture_S).max() < 1e-6
    shares_NS = consistent - plain
    assert np.abs(shares_NS - shares_NS[0]).max() < 1e-6  # in equal parts


def test_a_scale_that_no_loss_saw_is_found_again(tmp_path: Path) -> None:
    folder = band_separator(tmp_path, [2000], rescale=True)
    expected_NS = take_apart(load(folder), LOW_S + HIGH_S, "both")

    edit_weights(folder / "model.safetensors", lambda tensors: tensors["decoder.weight"].mul_(-37.0))

    assert take_apart(load(folder), LOW_S + HIGH_S, "both") == pytest.approx(expected_NS, abs=1e-4)
    assert fit_scales(np.stack([2 * LOW_S, 0 * LOW_S]), LOW_S)[0] == pytest.approx(LOW_S, abs=1e-6)
    edit_json(folder / "config.json", lambda config: config.pop("rescale"))
    assert np.abs(take_apart(load(folder), LOW_S + HIGH_S, "both") - expected_NS).max() > 0.1


def test_without_padding_frames_lie_within_the_sound(tmp_path: Path) -> None:
    mixture_S = noise(4, 1600).astype(np.float32)
    separator = load(tiny_separator(tmp_path, pad=False, mixture_consistency=False))
    weights = separator.network.state_dict()
    generator: Any = separator.network.mask_generator

    frames_BFT = functional.conv1d(torch.from_numpy(mixture_S)[None, None], weights["encoder.weight"], stride=8)
    assert frames_BFT.shape[2] == 1600 // 8 - 1
    masked_NFT = (generator(frames_BFT) * frames_BFT[:, None])[0]
    expected_N1S = functional.conv_transpose1d(masked_NFT, weights["decoder.weight"], stride=8)

    assert separator.separate(mixture_S, RATE_HZ) == pytest.approx(expected_N1S[:, 0].detach().numpy(), abs=1e-6)
    padded = load(tiny_separator(tmp_path, mixture_consistency=False)).separate(mixture_S, RATE_HZ)
    assert np.abs(padded - expected_N1S[:, 0].detach().numpy()).max() > 1e-4


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda mixture_S: np.zeros((3, len(mixture_S))), "beach.wav: the separator returned silence"),
        (lambda mixture_S: np.zeros((0, len(mixture_S))), "returned silence"),
        (lambda mixture_S: 1e-3 * np.stack([mixture_S] * 2), "no source within 40 dB"),
        (lambda mixture_S: np.stack([mixture_S, mixture_S * np.nan]), "returned NaN or infinity"),
        (lambda mixture_S: np.stack([mixture_S, mixture_S + np.inf]), "returned NaN or infinity"),
        (lambda mixture_S: mixture_S[None, :-1], r"returned \(1, 31999\): expected .* \(N, 32000\)"),
        (lambda mixture_S: np.repeat(mixture_S[None], 3, axis=1), r"returned \(1, 96000\)"),
        (lambda mixture_S: mixture_S, r"returned \(32000,\)"),
        (lambda mixture_S: mixture_S[None, None], r"returned \(1, 1, 32000\)"),
    ],
)
def test_what_cannot_be_heard_is_refused(returned: Callable[[np.ndarray], Any], message: str) -> None:
    with refused(message):
        take_apart(Returns(returned), LOW_S, "beach.wav")


def test_consistency_does_not_make_silence_speak(tmp_path: Path) -> None:
    folder = tiny_separator(tmp_path)
    edit_weights(folder / "model.safetensors", lambda tensors: tensors["decoder.weight"].zero_())

    with refused("returned silence"):
        take_apart(load(folder), LOW_S, "beach.wav")
    assert not make_consistent(np.zeros((2, len(LOW_S)), np.float32), LOW_S).any()


def test_damaged_weights_are_refused_when_they_are_heard(tmp_path: Path) -> None:
    folder = tiny_separator(tmp_path)
    edit_weights(folder / "model.safetensors", lambda tensors: tensors["encoder.weight"][0].fill_(torch.nan))

    with refused("returned NaN or infinity"):
        take_apart(load(folder), LOW_S, "beach.wav")


def test_a_mixture_at_another_rate_is_a_mistake_of_the_code(tmp_path: Path) -> None:
    with refused("expected a mixture at 16000 Hz, found 8000", ValueError):
        load(tiny_separator(tmp_path)).separate(LOW_S, 8000)


def set_config(**settings: Any) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(settings))


def set_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_weights(folder / "model.safetensors", change)


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "expected a JSON object, found list"),
        (lambda folder: (folder / "model.safetensors").unlink(), "expected weights in model.safetensors"),
        (as_pickle, "only as pytorch_model.bin, which is a pickle"),
        (cut_short, "model.safetensors"),
        (set_config(model_type="sepformer"), "expected a model of type 'conv_tasnet'.*found 'sepformer'"),
        (set_config(sample_rate=8000), "sample_rate: .*16000"),
        (set_config(n_src=2), "n_src"),
        (set_config(num_sources=1), "num_sources: "),
        (set_config(num_sources="3"), "num_sources: expected a whole number"),
        (set_config(num_sources=10**9), "num_sources: "),
        (set_config(enc_kernel_size=15), "enc_kernel_size: "),
        (set_config(msk_activate="softmax"), "msk_activate: "),
        (set_config(num_sources=4), r"mask_generator.output_conv.bias: expected \[32\], found \[24\]"),
        (set_config(msk_num_layers=3), "tensors are not those of its config.json"),
        (set_weights(lambda tensors: tensors.pop("encoder.weight")), r"encoder.weight: expected .*, found none"),
        (set_weights(lambda tensors: tensors.update(more=torch.zeros(1))), r"more: expected none, found \[1\]"),
        (
            set_weights(lambda tensors: tensors.update({"encoder.weight": torch.ones(8, 1, 16).int()})),
            "expected floats",
        ),
    ],
)
def test_a_folder_that_is_no_separator_is_one_line(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(tiny_separator(tmp_path / "apart"))
    with refused(f"(?s){message}") as caught:
        load(tmp_path / "apart")
    assert str(caught.value).startswith("--separator: ")


def test_no_folder_at_all_is_one_line(tmp_path: Path) -> None:
    with refused("--separator: .*there is no such folder"):
        find_separator(str(tmp_path / "nothing"))


def test_weights_of_half_the_width_are_read(tmp_path: Path) -> None:
    folder = tiny_separator(tmp_path)
    full_NS = load(folder).separate(LOW_S, RATE_HZ)

    edit_weights(
        folder / "model.safetensors", lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()})
    )

    assert load(folder).separate(LOW_S, RATE_HZ) == pytest.approx(full_NS, abs=1e-3)


@pytest.mark.parametrize(
    ("separate", "separator", "message"),
    [
        ("sources", None, "--separate sources: expected a --separator"),
        ("sounds", "DIR", "--separator: goes with --separate sources"),
        (None, "DIR", "--separator: goes with --separate sources"),
        ("sources", "DIR", None),
        ("sounds", None, None),
        (None, None, None),
    ],
)
def test_sources_need_a_separator_and_nothing_else_does(
    separate: str | None, separator: str | None, message: str | None
) -> None:
    arguments = argparse.Namespace(separate=separate, separator=separator)
    if message is None:
        check_separator(arguments)
        return
    with refused(message):
        check_separator(arguments)
