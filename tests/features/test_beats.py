"""BEATs against the golden numbers of its authors' code, its folder, and what is refused."""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sonify.features.beats import INT16, SHARED, Beats, BeatsFeatures, BeatsSizes, load_beats, own_tensors, read_sizes
from sonify.models.fetch import BEATS_FILES, fetch_model
from tests.builders import read_waveforms, refused
from tests.eval.towers.built import golden, seeded_weights
from tests.tiny_networks import edit_json, edit_weights
from train.tiny import BEATS_WIDTH, write_tiny_ast, write_tiny_beats

CPU = torch.device("cpu")
JOINED = (4, 8, 12)
BIASES = [f"encoder.layers.{n}.self_attn.relative_attention_bias.weight" for n in range(12)]
# The golden numbers were made by the instructions of AVX2; by others the noise of float32 in bands that are 120 dB
# below the loudest is another (as torchaudio's own fbank then is).
EXACT, ELSEWHERE = 1e-5, 2e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_beats(tmp_path_factory.mktemp("tiny") / "beats")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Beats:
    return load_beats(fetch_model(str(folder), None, BEATS_FILES), CPU, dtype)


def published() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of the golden numbers, in the published layout but for the shared biases."""
    facts = golden("audiotoken")[1]["beats_tiny"]
    shapes = {name: tuple(shape) for name, shape in facts["keys"].items() if not SHARED.fullmatch(name)}
    return facts["config"], seeded_weights(shapes, 4000)


def golden_network() -> Beats:
    config, weights = published()
    network = Beats(read_sizes(config))
    network.load_state_dict(own_tensors(network, weights))
    return network.eval()


def golden_sound() -> np.ndarray:
    t = np.arange(32_000) / 16_000
    return (0.3 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * (300 + 150 * t) * t)).astype(np.float32)[None]


def differences() -> dict[str, float]:
    """How far the golden spectrogram, three layers and the last layer are from ours."""
    arrays, network, sound = golden("audiotoken")[0], golden_network(), golden_sound()
    log_mel = BeatsFeatures(network, "all").log_mel(torch.from_numpy(sound) * INT16)
    found = {
        "beats__fbank_every_8th_frame": log_mel[0, ::8],
        "beats__layers_4_8_12": BeatsFeatures(network, "all", JOINED)(sound)[0],
        "beats__last": BeatsFeatures(network, "all")(sound)[0],
    }
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {n: arrays[n].shape for n in found}
    return {name: float(np.abs(tensor.numpy() - arrays[name]).max()) for name, tensor in found.items()}


def test_the_golden_numbers() -> None:
    assert max(differences().values()) < ELSEWHERE


def test_the_golden_numbers_exactly_by_the_instructions_that_made_them() -> None:
    code = "import torch; from tests.features.test_beats import differences as d"
    code += "; print(torch.backends.cpu.get_cpu_capability(), max(d().values()))"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    capability, worst = done.stdout.split()
    if capability != "AVX2":
        pytest.skip("no machine with AVX2")
    assert float(worst) < EXACT


def test_the_published_sizes_are_the_defaults_at_the_published_names_and_shapes() -> None:
    """Of iter3+ AS2M, cpt2: 90 million numbers and a predictor."""
    with torch.device("meta"):
        network = Beats(BeatsSizes())
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    tiny = {name for name in golden("audiotoken")[1]["beats_tiny"]["keys"] if not name.startswith("predictor.")}
    assert found.keys() == {name for name in tiny if not SHARED.fullmatch(name)}
    layer = {
        "self_attn.q_proj.weight": (768, 768), "self_attn.k_proj.weight": (768, 768),
        "self_attn.v_proj.weight": (768, 768), "self_attn.out_proj.weight": (768, 768),
        "self_attn.q_proj.bias": (768,), "self_attn.k_proj.bias": (768,), "self_attn.v_proj.bias": (768,),
        "self_attn.out_proj.bias": (768,), "self_attn.grep_linear.weight": (8, 64), "self_attn.grep_linear.bias": (8,),
        "self_attn.grep_a": (1, 12, 1, 1), "self_attn_layer_norm.weight": (768,), "self_attn_layer_norm.bias": (768,),
        "fc1.weight": (3072, 768), "fc1.bias": (3072,), "fc2.weight": (768, 3072), "fc2.bias": (768,),
        "final_layer_norm.weight": (768,), "final_layer_norm.bias": (768,),
    }  # fmt: skip
    expected = {f"encoder.layers.{n}.{name}": shape for n in range(12) for name, shape in layer.items()}
    expected |= {
        "patch_embedding.weight": (512, 1, 16, 16), "layer_norm.weight": (512,), "layer_norm.bias": (512,),
        "post_extract_proj.weight": (768, 512), "post_extract_proj.bias": (768,),
        "encoder.pos_conv.0.weight_g": (1, 1, 128), "encoder.pos_conv.0.weight_v": (768, 48, 128),
        "encoder.pos_conv.0.bias": (768,), "encoder.layer_norm.weight": (768,), "encoder.layer_norm.bias": (768,),
        BIASES[0]: (320, 12),
    }  # fmt: skip
    assert found == expected
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 90_311_792


@pytest.mark.parametrize("with_biases", [True, False])
def test_weights_in_the_published_layout_load(tmp_path: Path, with_biases: bool) -> None:
    network = golden_network()
    network.save_pretrained(tmp_path)
    _, weights = published()
    biases = {name: weights[BIASES[0]].clone() for name in BIASES[1:]} if with_biases else {}
    save_file(weights | biases, tmp_path / "model.safetensors")
    loaded = load(tmp_path)
    assert asdict(loaded.sizes) == asdict(network.sizes)
    sound = golden_sound()
    assert torch.equal(BeatsFeatures(loaded, "all", JOINED)(sound), BeatsFeatures(network, "all", JOINED)(sound))


def test_what_is_written_is_read_again(folder: Path, tmp_path: Path) -> None:
    load(folder).save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert (
        write_tiny_beats(tmp_path / "tiny").joinpath("model.safetensors").read_bytes()
        == (folder / "model.safetensors").read_bytes()
    )


def test_layers_are_joined_along_the_width_in_their_order(folder: Path) -> None:
    network, sound = load(folder), golden_sound()
    joined = BeatsFeatures(network, "all", JOINED)(sound)
    alone = [BeatsFeatures(network, "all", (n,))(sound) for n in JOINED]
    assert joined.shape == (1, 96, 3 * BEATS_WIDTH)
    assert torch.equal(joined, torch.cat(alone, -1))
    assert torch.equal(alone[-1], BeatsFeatures(network, "all")(sound))
    assert not torch.allclose(alone[0], alone[1], atol=0.1)


def test_the_mean_is_that_of_the_rows_of_one_time(folder: Path, test_data: Path) -> None:
    network, waveforms = load(folder), read_waveforms(test_data / "sounds", 2)
    rows = BeatsFeatures(network, "all", JOINED)(waveforms).reshape(2, -1, 8, 3 * BEATS_WIDTH)
    mean = BeatsFeatures(network, "mean", JOINED)(waveforms)
    torch.testing.assert_close(mean, rows.mean(2))
    assert rows.std(2).mean() > 0.1  # they do differ


def test_the_vectors_of_all_go_by_time_first(folder: Path) -> None:
    """The first half of a sound decides the patches of its first half, before any layer has looked elsewhere."""
    seen: list[Tensor] = []
    network = load(folder)
    network.patch_embedding.register_forward_hook(lambda _module, _args, given: seen.append(given.flatten(2).mT))
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((1, 80_000)).astype(np.float32) / 10
    half = whole.copy()
    half[:, 40_000:] = 0
    for sound in (whole, half):
        assert BeatsFeatures(network, "all")(sound).shape == (1, 31 * 8, BEATS_WIDTH)
    same = (seen[0] == seen[1]).all(-1)[0]
    assert same[: 15 * 8].all()
    assert not same[16 * 8 :].any()


@pytest.mark.parametrize(("seconds", "columns"), [(0.1, 0), (0.2, 1), (1.0, 6), (5.0, 31), (10.0, 62), (12.0, 74)])
def test_columns_are_those_whose_patch_lies_within_the_sound(folder: Path, seconds: float, columns: int) -> None:
    features = BeatsFeatures(load(folder), "mean")
    sound = np.zeros((1, round(seconds * 16_000)), np.float32)
    assert features.num_columns(sound.shape[1]) == columns
    if columns:
        assert features(sound).shape == (1, columns, BEATS_WIDTH)
        assert torch.isfinite(features(sound)).all()
    else:
        with pytest.raises(ValueError, match="too short for BEATs"):
            features(sound)


def test_bfloat16_is_near_float32(folder: Path, test_data: Path) -> None:
    waveforms = read_waveforms(test_data / "sounds", 2)
    exact, rough = (BeatsFeatures(load(folder, d), "mean", JOINED)(waveforms) for d in (torch.float32, torch.bfloat16))
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().mean() < 0.05 * exact.std()


def test_layers_that_are_not_there_are_one_line(folder: Path) -> None:
    with refused(r"features.layers: expected numbers from 1 to 12, the layers of this BEATs, found \[13, 14\]"):
        BeatsFeatures(load(folder), "all", (4, 13, 14))


# --- what is no BEATs, or not the one that it says


def configure(**changes: Any) -> Any:
    return lambda folder: edit_json(folder / "config.json", lambda content: content.update(changes))


def change(edit: Any) -> Any:
    return lambda folder: edit_weights(folder / "model.safetensors", edit)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (configure(model_type="bert"), "expected a model of type 'beats', such as one that .*beats` writes, found"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors").rename(f / "BEATs.pt"), "BEATs.pt, which is a pickle and never read"),
        (
            configure(encoder_embed_dim=64),
            r"of another shape, such as encoder\.layer_norm\.bias \(\[32\] instead of \[64\]\)",
        ),
        (configure(encoder_layers=11), r"0 are missing, 19 unknown, 0 of another shape, such as encoder\.layers\.11\."),
        (configure(encoder_layers=13), r"19 are missing, 0 unknown, 0 of another shape, such as encoder\.layers\.12\."),
        (configure(encoder_layers=10**9), "encoder_layers as a number from 1 to 64, found 1000000000"),
        (configure(encoder_attention_heads=5), "expected encoder_attention_heads to divide encoder_embed_dim"),
        (configure(conv_pos_groups=5), "expected conv_pos_groups to divide encoder_embed_dim"),
        (configure(input_patch_size=17), "expected input_patch_size to divide 128 bands, found 17"),
        (configure(num_buckets=None), "expected num_buckets as a number from 1 to 65536, found None"),
        (configure(num_buckets=True), "expected num_buckets as a number from 1 to 65536, found True"),
        (configure(max_distance=8), "and a max_distance above its quarter, found 32 and 8"),
        (configure(deep_norm=False), "expected deep_norm True, found False: another network than BEATs"),
        (configure(activation_fn="relu"), "expected activation_fn gelu, found 'relu': another network"),
        (
            change(lambda t: t.pop("layer_norm.bias")),
            "1 are missing, 0 unknown, 0 of another shape, such as layer_norm",
        ),
        (change(lambda t: t.update(more=torch.zeros(1))), "0 are missing, 1 unknown, 0 of another shape, such as more"),
        (change(lambda t: t.update({BIASES[3]: torch.ones(32, 2)})), f"{BIASES[3]} is not that of the first layer"),
        (lambda f: os.truncate(f / "model.safetensors", 3000), "not a safetensors file, or cut short|cut short"),
    ],
)
def test_a_folder_that_is_no_beats_is_one_line(folder: Path, tmp_path: Path, harm: Any, message: str) -> None:
    broken = tmp_path / "beats"
    load(folder).save_pretrained(broken)
    harm(broken)
    with refused(message):
        load(broken)


def test_another_model_is_no_beats(tmp_path: Path) -> None:
    with refused("expected a model of type 'beats', such as one that .* found 'audio-spectrogram-transformer'"):
        load(write_tiny_ast(tmp_path))


def test_the_weights_of_another_width_are_named(folder: Path, tmp_path: Path) -> None:
    load(folder).save_pretrained(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"layer_norm.weight": torch.ones(24)}, tmp_path / "model.safetensors")
    with refused(r"1 of another shape, such as layer_norm\.weight \(\[24\] instead of \[16\]\); make it again with"):
        load(tmp_path)
