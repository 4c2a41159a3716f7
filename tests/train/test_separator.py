"""Sources apart: by weights that are a filter bank, so that what is right is known, and by random ones."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from eval import convert_weights
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


def quiet(*levels_db: float) -> np.ndarray:
    """Copies of a mixture at these levels below it."""
    return np.stack([10 ** (level / 20) * LOW_S for level in levels_db]).astype(np.float32)


def test_consistency_gives_what_is_missing_only_to_what_is_heard() -> None:
    sources_NS = make_consistent(quiet(-0.9, -50, -np.inf, -60), LOW_S)

    assert sources_NS[0] == pytest.approx(LOW_S, abs=1e-6)
    assert not sources_NS[1:].any()
    assert len(take_apart(Returns(lambda _: sources_NS), LOW_S, "one")) == 1


@pytest.mark.parametrize(("level_db", "heard"), [(-39.0, False), (-33.0, False), (-31.0, True)])
def test_consistency_makes_no_copies_of_a_mixture_that_was_not_found(level_db: float, heard: bool) -> None:
    sources_NS = make_consistent(quiet(*[level_db] * 4), LOW_S)  # together 12 dB louder than one

    assert sources_NS.any(axis=1).tolist() == [heard] * 4
    assert not heard or sources_NS.sum(axis=0) == pytest.approx(LOW_S, abs=1e-6)


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


ASTEROID: dict[str, Any] = {
    "fb_name": "free", "n_filters": 12, "kernel_size": 16, "stride": 8, "sample_rate": 16000.0, "in_chan": 12,
    "out_chan": 12, "bn_chan": 6, "hid_chan": 10, "skip_chan": 6, "conv_kernel_size": 3, "n_blocks": 3, "n_repeats": 2,
    "n_src": 2, "norm_type": "gLN", "mask_act": "relu", "encoder_activation": None,
}  # fmt: skip


def asteroid_tensors() -> dict[str, torch.Tensor]:
    """The names and shapes of a ConvTasNet as asteroid publishes it, at random."""
    shapes: dict[str, tuple[int, ...]] = {f"{side}.filterbank._filters": (12, 1, 16) for side in ("encoder", "decoder")}
    shapes |= {"masker.bottleneck.0.gamma": (12,), "masker.bottleneck.0.beta": (12,)}
    shapes |= {"masker.bottleneck.1.weight": (6, 12, 1), "masker.bottleneck.1.bias": (6,)}
    for block in (f"masker.TCN.{n}" for n in range(6)):
        shapes |= {f"{block}.shared_block.0.weight": (10, 6, 1), f"{block}.shared_block.0.bias": (10,)}
        shapes |= {f"{block}.shared_block.3.weight": (10, 1, 3), f"{block}.shared_block.3.bias": (10,)}
        for n in (1, 4):
            shapes |= {f"{block}.shared_block.{n}.weight": (1,)}
            shapes |= {f"{block}.shared_block.{n + 1}.{name}": (10,) for name in ("gamma", "beta")}
        for name in ("res_conv", "skip_conv"):
            shapes |= {f"{block}.{name}.weight": (6, 10, 1), f"{block}.{name}.bias": (6,)}
    shapes |= {
        "masker.mask_net.0.weight": (1,),
        "masker.mask_net.1.weight": (24, 6, 1),
        "masker.mask_net.1.bias": (24,),
    }
    generator = torch.Generator().manual_seed(0)
    return {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def asteroid_forward(tensors: dict[str, torch.Tensor], mixture_S: np.ndarray) -> np.ndarray:
    """What asteroid's network does, by the description of its layers."""

    def conv(x: torch.Tensor, name: str, **options: Any) -> torch.Tensor:
        return functional.conv1d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], **options)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = x.mean(dim=(1, 2), keepdim=True), x.var(dim=(1, 2), keepdim=True, correction=0)
        gamma, beta = (tensors[f"{name}.{part}"][:, None] for part in ("gamma", "beta"))
        return gamma * (x - mean) / (var + 1e-8).sqrt() + beta

    filters, skips = tensors["encoder.filterbank._filters"], torch.zeros(1)
    frames = functional.conv1d(torch.from_numpy(mixture_S)[None, None], filters, stride=8)
    x = conv(norm(frames, "masker.bottleneck.0"), "masker.bottleneck.1")
    for n in range(6):
        block, dilation = f"masker.TCN.{n}", 2 ** (n % 3)
        y = functional.prelu(conv(x, f"{block}.shared_block.0"), tensors[f"{block}.shared_block.1.weight"])
        y = norm(y, f"{block}.shared_block.2")
        y = conv(y, f"{block}.shared_block.3", padding=dilation, dilation=dilation, groups=10)
        y = norm(functional.prelu(y, tensors[f"{block}.shared_block.4.weight"]), f"{block}.shared_block.5")
        x, skips = x + conv(y, f"{block}.res_conv"), skips + conv(y, f"{block}.skip_conv")
    masks = conv(functional.prelu(skips, tensors["masker.mask_net.0.weight"]), "masker.mask_net.1").relu()
    masked = masks.view(2, 12, -1) * frames
    return functional.conv_transpose1d(masked, tensors["decoder.filterbank._filters"], stride=8)[:, 0].numpy()


def test_a_network_that_asteroid_published_is_the_same_here(tmp_path: Path) -> None:
    published = {"model_name": "ConvTasNet", "state_dict": asteroid_tensors(), "model_args": ASTEROID, "infos": {}}
    torch.save(published, tmp_path / "pytorch_model.bin")
    words = ["conv_tasnet", str(tmp_path / "pytorch_model.bin"), "--out", str(tmp_path / "apart")]
    assert convert_weights.main(words) == 0
    assert load(tmp_path / "apart").config.rescale
    edit_json(tmp_path / "apart" / "config.json", lambda config: config.update(rescale=False))
    mixture_S = noise(5, RATE_HZ).astype(np.float32)

    found_NS = load(tmp_path / "apart").separate(mixture_S, RATE_HZ)

    expected_NS = asteroid_forward(asteroid_tensors(), mixture_S)
    assert np.abs(expected_NS).max() > 0.1
    assert found_NS == pytest.approx(expected_NS, abs=1e-4 * float(np.abs(expected_NS).max()))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sample_rate": 8000}, "sample_rate: "),
        ({"sample_rate": None}, "sample_rate: "),
        ({"sample_rate": float("inf")}, "cannot convert float infinity"),
        ({"sample_rate": [16_000]}, "int.. argument must be"),
        ({"stride": torch.tensor([1.0, 1.0])}, "expected words and numbers in model_args, found a tensor as stride"),
        ({"norm_type": "cLN"}, "norm_type: expected gLN, found cLN"),
        ({"causal": True}, "causal: expected False, found True"),
        ({"stride": 4}, "stride: expected None or 8, found 4"),
        ({"skip_chan": 0}, "skip_chan: expected 6, found 0"),
        ({"encoder_activation": "relu"}, "encoder_activation: "),
        ({"fb_name": "stft"}, "fb_name: expected free or FreeFB, found stft"),
        ({"kernel_size": "16"}, "stride: "),
        ({"n_src": None}, "num_sources: "),
        ({"n_src": 3}, "no tensor for mask_generator.output_conv.weight of the shape"),
        ({"n_blocks": 4}, "no tensor for mask_generator.conv_layers.6"),
    ],
)
def test_another_network_of_asteroid_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    torch.save({"state_dict": asteroid_tensors(), "model_args": ASTEROID | changed}, tmp_path / "model.bin")
    with refused(f"model.bin: .*{message}.*; expected pytorch_model.bin"):
        convert_weights.convert("conv_tasnet", tmp_path / "model.bin", tmp_path / "apart")


@pytest.mark.parametrize(
    "published", [{"state_dict": {}}, [1], {"model_args": {}, "state_dict": {"a": 1}}, {"model_args": {}}]
)
def test_what_asteroid_did_not_publish_is_refused(tmp_path: Path, published: Any) -> None:
    torch.save(published, tmp_path / "model.bin")
    with refused("model.bin: expected .*; expected pytorch_model.bin"):
        convert_weights.convert("conv_tasnet", tmp_path / "model.bin", tmp_path / "apart")
