"""The transformer's first weights, from scratch and from a checkpoint laid out as the published ones are."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from sonify.errors import InputError
from tests.servers import COMMIT, MODEL, ModelHub, running_hub
from tests.tiny_networks import edit_json, edit_weights
from train.config import Transformer
from train.model import drop_condition, init_transformer, predict

SIZES = {"layers": 2, "heads": 2, "head_dim": 8, "sample_size": 8, "caption_channels": 12}
WIDTH, TEXT_CHANNELS = 16, 20
CONFIG = Transformer.model_validate(SIZES)
PROJECTION = {
    f"caption_projection.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")
}  # the four tensors that are new
WEIGHTS = "diffusion_pytorch_model.safetensors"


def from_checkpoint(model: Path | str, projector: Path | None = None) -> Transformer:
    init = {"kind": "checkpoint", "model": str(model), "projector": projector}
    return Transformer.model_validate({**SIZES, "init": init})


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A text pipeline's folder, with the settings and the spare tensor that the published ones have."""
    text = trained(CONFIG.model_copy(update={"caption_channels": TEXT_CHANNELS}))
    folder = tmp_path / "pixart" / "transformer"
    text.save_pretrained(folder)
    published = {"_class_name": "Transformer2DModel", "only_cross_attention": False}
    edit_json(folder / "config.json", lambda config: config.update(published))
    spare = {"caption_projection.y_embedding": torch.ones(3, TEXT_CHANNELS)}
    edit_weights(folder / WEIGHTS, lambda tensors: tensors.update(spare))
    (folder.parent / "model_index.json").write_text("{}")
    return folder.parent


def some_input(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, 8, 8, generator=generator)
    return latents, torch.arange(batch) * 300, torch.randn(batch, 5, 12, generator=generator)


def trained(config: Transformer = CONFIG) -> PixArtTransformer2DModel:
    """A model of which no weight is zero."""
    model, _ = init_transformer(config, seed=9)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def test_weights_from_scratch_are_a_function_of_the_seed() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    (one, _), (same, _), (other, _) = (init_transformer(CONFIG, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in one.state_dict().items():
        assert torch.equal(parameter, same.state_dict()[name])
    assert not torch.equal(one.pos_embed.proj.weight, other.pos_embed.proj.weight)


def test_weights_from_scratch_are_pixarts() -> None:
    wide = Transformer.model_validate(SIZES | {"heads": 8, "head_dim": 32})
    model, report = init_transformer(wide, seed=0)
    width = 256
    named = dict(model.named_parameters())
    zero = {name for name, parameter in named.items() if parameter.abs().max() == 0}
    biases = {name for name in named if name.endswith("bias")} - {"pos_embed.proj.bias"}
    assert zero == biases | {"proj_out.weight"} | {f"transformer_blocks.{n}.attn2.to_out.0.weight" for n in (0, 1)}
    bounds = {
        "transformer_blocks.0.attn1.to_q.weight": (6 / (width + 3 * width)) ** 0.5,
        "transformer_blocks.1.attn2.to_k.weight": (6 / (width + 2 * width)) ** 0.5,
        "transformer_blocks.1.attn2.to_q.weight": (6 / (2 * width)) ** 0.5,
        "transformer_blocks.0.ff.net.2.weight": (6 / (5 * width)) ** 0.5,
        "pos_embed.proj.weight": (6 / (width + 16)) ** 0.5,
    }
    assert {name: float(named[name].detach().abs().max()) for name in bounds} == pytest.approx(bounds, rel=0.01)
    for name in ("adaln_single.linear.weight", "caption_projection.linear_1.weight"):
        assert float(named[name].detach().std()) == pytest.approx(0.02, rel=0.05)
    assert report.new == {name: parameter.numel() for name, parameter in named.items()}


@pytest.mark.parametrize("side", [32, 64])  # of the published sizes, 256 and 512 pixels
def test_positions_are_those_that_pixart_was_trained_with(side: int) -> None:
    model, _ = init_transformer(Transformer.model_validate(SIZES | {"sample_size": side}), seed=0)
    positions = model.pos_embed.get_buffer("pos_embed")
    patches = side // 2
    frequencies = 1 / 10_000 ** (torch.arange(WIDTH // 4, dtype=torch.float64) / (WIDTH // 4))
    waves = torch.outer(torch.arange(patches, dtype=torch.float64), frequencies)
    line = torch.cat([waves.sin(), waves.cos()], dim=1)
    across, down = line.repeat(patches, 1), line.repeat_interleave(patches, 0)  # the column comes first
    torch.testing.assert_close(positions[0].double(), torch.cat([across, down], 1), rtol=0, atol=1e-5)


def test_all_of_a_checkpoint_is_kept_but_the_projection_of_the_condition(pipeline: Path) -> None:
    model, report = init_transformer(from_checkpoint(pipeline), seed=0)
    there, now = load_file(pipeline / "transformer" / WEIGHTS), model.state_dict()
    kept = {name for name in now if name in there and torch.equal(now[name], there[name])}
    assert set(now) - kept == PROJECTION
    assert set(report.kept) == kept
    assert set(report.new) == PROJECTION
    assert sum(report.kept.values()) + sum(report.new.values()) == sum(p.numel() for p in model.parameters())
    assert now["caption_projection.linear_1.weight"].shape == (WIDTH, 12)
    assert predict(model, *some_input()).shape == (2, 8, 8, 8)


def test_all_of_the_new_projection_is_initialised_from_the_seed(pipeline: Path) -> None:
    (one, _), (same, _), (other, _) = (init_transformer(from_checkpoint(pipeline), seed) for seed in (1, 1, 2))
    for name in PROJECTION:
        tensor = one.state_dict()[name]
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, same.state_dict()[name])
        assert float(tensor.std()) == pytest.approx(0.02 if name.endswith("weight") else 0, rel=0.3)
    name = "caption_projection.linear_2.weight"
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_the_report_says_what_is_kept_and_what_is_new(pipeline: Path) -> None:
    _, report = init_transformer(from_checkpoint(pipeline), seed=0)
    new = 12 * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH
    assert re.search(r"15,664 parameters in 53 tensors kept from .*transformer \(sha256:[0-9a-f]{12}\)", str(report))
    assert f"{new} parameters in 4 tensors new: caption_projection.linear_1.weight, " in str(report)


def test_a_folder_may_be_the_transformer_itself(pipeline: Path) -> None:
    one, _ = init_transformer(from_checkpoint(pipeline), seed=0)
    other, _ = init_transformer(from_checkpoint(pipeline / "transformer"), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_weights_in_half_precision_are_trained_in_float32(pipeline: Path) -> None:
    edit_weights(
        pipeline / "transformer" / WEIGHTS,
        lambda tensors: tensors.update({name: value.half() for name, value in tensors.items()}),
    )
    model, _ = init_transformer(from_checkpoint(pipeline), seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.fixture
def hub(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    (pipeline / "text_encoder").mkdir()
    (pipeline / "text_encoder" / "model.safetensors").write_bytes(b"gigabytes")
    with running_hub(monkeypatch, tmp_path / "cache", pipeline) as hub:
        yield hub


def test_of_a_hub_id_only_the_transformer_is_fetched(hub: ModelHub, pipeline: Path) -> None:
    model, report = init_transformer(from_checkpoint(MODEL), seed=0)
    local, _ = init_transformer(from_checkpoint(pipeline), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), local.parameters(), strict=True))
    fetched = {path.rpartition("resolve/")[2].partition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"transformer/config.json", f"transformer/{WEIGHTS}"}
    assert report.source == f"{MODEL} ({COMMIT[:19]})"


@pytest.mark.parametrize(
    ("size", "found", "key"),
    [("layers", "num_layers is 2", "model.layers"), ("sample_size", "sample_size is 8", "model.sample_size")],
)
def test_another_size_than_the_checkpoints_is_refused(pipeline: Path, size: str, found: str, key: str) -> None:
    config = from_checkpoint(pipeline).model_copy(update={size: 4})
    with pytest.raises(InputError, match=rf"{found}, and the configuration's is 4 \({key}\)"):
        init_transformer(config, seed=0)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        (
            "_class_name",
            "FluxTransformer2DModel",
            "expected a PixArtTransformer2DModel.*found 'FluxTransformer2DModel'",
        ),
        ("norm_type", "ada_norm_zero", "expected `norm_type` ada_norm_single"),
        ("out_channels", 4, "out_channels is 4, and the configuration's is 8"),
        ("use_additional_conditions", True, "resolution and aspect ratio"),
    ],
)
def test_another_kind_of_model_is_refused(pipeline: Path, setting: str, value: object, said: str) -> None:
    edit_json(pipeline / "transformer" / "config.json", lambda config: config.update({setting: value}))
    with pytest.raises(InputError, match=said):
        init_transformer(from_checkpoint(pipeline), seed=0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors.pop("proj_out.weight"), "1 of the tensors.*proj_out.weight"),
        (
            lambda tensors: tensors.update({"proj_out.weight": torch.zeros(3, WIDTH)}),
            "1 of the tensors.*proj_out.weight",
        ),
        (
            lambda tensors: tensors.update({"transformer_blocks.2.ff.net.2.bias": torch.zeros(WIDTH)}),
            r"1 tensors have no place.*transformer_blocks\.2",
        ),
    ],
    ids=["one is lost", "another shape", "another block"],
)
def test_weights_that_are_not_the_models_are_refused(
    pipeline: Path, damage: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    edit_weights(pipeline / "transformer" / WEIGHTS, damage)
    with pytest.raises(InputError, match=said):
        init_transformer(from_checkpoint(pipeline), seed=0)


def test_weights_cut_short_or_pickled_are_refused(pipeline: Path) -> None:
    file = pipeline / "transformer" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="cut short"):
        init_transformer(from_checkpoint(pipeline), seed=0)
    file.rename(file.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(InputError, match="pickle"):
        init_transformer(from_checkpoint(pipeline), seed=0)


def test_a_projector_trained_before_is_used(pipeline: Path, tmp_path: Path) -> None:
    before = trained().state_dict()
    projector = tmp_path / "projector.safetensors"
    save_file(before, projector)  # a whole transformer serves as well
    model, report = init_transformer(from_checkpoint(pipeline, projector), seed=0)
    for name in PROJECTION:
        assert torch.equal(model.state_dict()[name], before[name])
    assert set(report.projector) == PROJECTION
    assert report.new == {}
    assert "4 tensors from the projector" in str(report)


def test_a_projector_that_does_not_fit_is_refused(pipeline: Path, tmp_path: Path) -> None:
    projector = tmp_path / "projector.safetensors"
    tensors = {name: value for name, value in trained().state_dict().items() if name in PROJECTION}
    cases = {
        r"has the shape \(16, 20\), and the model's is \(16, 12\)": tensors
        | {"caption_projection.linear_1.weight": torch.zeros(16, 20)},
        "expected a tensor caption_projection.linear_2.bias, found none": {
            name: value for name, value in tensors.items() if not name.endswith("linear_2.bias")
        },
    }
    for said, content in cases.items():
        save_file(content, projector)
        with pytest.raises(InputError, match=said):
            init_transformer(from_checkpoint(pipeline, projector), seed=0)
    projector.write_bytes(b"no tensors")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        init_transformer(from_checkpoint(pipeline, projector), seed=0)


def test_the_prediction_follows_condition_and_timestep() -> None:
    model = trained()
    noisy, timesteps, audio = some_input()
    usual = predict(model, noisy, timesteps, audio)
    assert usual.shape == (2, 8, 8, 8)
    assert not torch.allclose(usual, predict(model, noisy, timesteps, audio + 1), atol=1e-4)
    assert not torch.allclose(usual, predict(model, noisy, timesteps + 100, audio), atol=1e-4)


def test_a_dropped_condition_is_the_null_one() -> None:
    audio_BTD, null_TD = torch.randn(3, 5, 12), torch.randn(5, 12)
    given = drop_condition(audio_BTD, torch.tensor([False, True, False]), null_TD)
    assert torch.equal(given, torch.stack([audio_BTD[0], null_TD, audio_BTD[2]]))
