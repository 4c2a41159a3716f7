"""What learns and what is frozen, and that the ordinary network of adapters computes what they do."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sonify.errors import InputError
from tests.train.runs import TINY, WIDTH, training_config, training_input, write_tiny_text
from train.adapters import adapt, merge
from train.averages import learning
from train.checkpoints import load_averaged
from train.config import TrainConfig
from train.doctor import FOLDER
from train.ema import main as averages
from train.frozen import remake_transformer
from train.loop import start_learner
from train.memory import checkpoint_bytes, count_learning, estimate_memory
from train.metrics import read_metrics, training_flops
from train.model import init_transformer, predict
from train.pixart import train
from train.release import release_checkpoint
from train.released import load_pipeline

WAYS = [("full", "frozen"), ("full", "lora"), ("lora", "frozen"), ("lora", "lora")]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    training_input(folder)
    write_tiny_text(folder)
    return folder


def adapters_config(root: Path, run: str = "run", **sections: Any) -> TrainConfig:
    init = {"init": {"kind": "checkpoint", "model": str(root / "text")}}
    sections["model"] = init | sections.get("model", {})
    sections["adapters"] = {"others": "lora", "rank": 3} | sections.get("adapters", {})
    return training_config(root, run, **({"train": "adapters"} | sections))


def adapted(root: Path, **sections: Any) -> tuple[PixArtTransformer2DModel, TrainConfig]:
    config = adapters_config(root, **sections)
    model, _ = init_transformer(config.model, 0)
    adapt(model, config)
    return model, config


def some_input() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, audio = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, WIDTH, generator=generator)
    return latents, torch.tensor([3, 600]), audio


@pytest.mark.parametrize(("cross_attention", "others"), WAYS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_named_learns_and_is_counted_and_the_rest_is_frozen(root, cross_attention, others, precision):
    model, config = adapted(root, precision=precision, adapters={"cross_attention": cross_attention, "others": others})
    names = learning(model)
    parts = {
        "caption_projection": any(name.startswith("caption_projection.") for name in names),
        "cross": {name.split("attn2.")[1] for name in names if "attn2." in name and ".lora_" not in name} != set(),
        "low-rank cross": any("attn2." in name and ".lora_" in name for name in names),
        "low-rank others": any(".lora_" in name and "attn2." not in name for name in names),
    }
    assert parts == {
        "caption_projection": True,
        "cross": cross_attention == "full",
        "low-rank cross": cross_attention == "lora",
        "low-rank others": others == "lora",
    }
    assert all(parameter.dtype == torch.float32 for parameter in names.values())
    assert count_learning(config) == sum(parameter.numel() for parameter in names.values())
    frozen = [parameter for name, parameter in model.named_parameters() if name not in names]
    wide = sum(parameter.nbytes for parameter in frozen if parameter.dtype == torch.float32)
    assert (wide == sum(parameter.nbytes for parameter in frozen)) == (precision == "fp32")
    assert estimate_memory(config, 5).frozen == pytest.approx(sum(p.nbytes for p in frozen), rel=0.05)


def test_nothing_is_computed_differently_at_first_and_what_is_drawn_follows_from_the_seed(root):
    usual, _ = init_transformer(adapters_config(root).model, 0)
    state = torch.get_rng_state()
    model, _ = adapted(root)
    same, _ = adapted(root)
    other, _ = adapted(root, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(predict(model, *some_input()), predict(usual, *some_input()))
    drawn = [name for name in learning(model) if "lora_A" in name]
    for name in drawn:
        assert torch.equal(learning(model)[name], learning(same)[name])
        assert not torch.equal(learning(model)[name], learning(other)[name])


@pytest.mark.parametrize(("cross_attention", "others"), WAYS)
def test_the_ordinary_network_computes_what_the_adapters_do(root, cross_attention, others):
    model, _ = adapted(root, adapters={"cross_attention": cross_attention, "others": others})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learning(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    plain = merge(model)
    usual, _ = init_transformer(adapters_config(root).model, 0)
    assert list(plain.state_dict()) == list(usual.state_dict())
    torch.testing.assert_close(predict(plain, *some_input()), predict(model, *some_input()), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(predict(plain, *some_input()), predict(usual, *some_input()), atol=1e-2)


def test_adapters_of_half_precision_are_merged_into_what_they_were_trained_with(root):
    model, _ = adapted(root, precision="bf16")
    usual, _ = init_transformer(adapters_config(root).model, 0)
    state = usual.state_dict()
    for name, tensor in merge(model).state_dict().items():
        learns = name.startswith("caption_projection.") or ".attn2." in name
        table = "scale_shift_table" in name
        assert torch.equal(tensor, state[name] if learns or table else state[name].bfloat16().float()), name


@pytest.fixture(scope="module")
def straight(root) -> Path:
    config = adapters_config(root, "straight", precision="bf16")
    train(config)
    return config.run_dir


def test_a_run_learns_saves_what_learns_alone_and_its_release_is_whole(root, straight, tmp_path):
    config = adapters_config(root, "straight", precision="bf16")
    losses = [line["loss"] for line in read_metrics(straight)]
    assert losses[-1] < losses[0]
    newest = straight / FOLDER / "step-00000006"
    model, _ = adapted(root)
    assert load_file(newest / "model.safetensors").keys() == learning(model).keys()
    written = sum(file.stat().st_size for file in newest.glob("*.safetensors"))
    assert checkpoint_bytes(config) < written < checkpoint_bytes(config) + 30_000  # with the files' heads
    whole = load_file(straight / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")
    usual, _ = init_transformer(config.model, 0)
    assert whole.keys() == usual.state_dict().keys()
    release_checkpoint(straight, None, tmp_path / "again")
    again = tmp_path / "again" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert sha256(again) == sha256(straight / "pipeline" / "transformer" / again.name)
    features = torch.randn(1, 5, WIDTH).numpy()
    pipeline = load_pipeline(straight / "pipeline", torch.device("cpu"), torch.float32)
    assert len(pipeline(audio_features=features, num_inference_steps=2).images) == 1


def test_a_resumed_run_is_as_one_never_stopped(root, straight):
    for steps in (3, 6):
        train(adapters_config(root, "resumed", precision="bf16", max_steps=steps))
    for name in ("model", "ema", "optimizer"):
        mine, theirs = (run / FOLDER / "step-00000006" / f"{name}.safetensors" for run in (root / "resumed", straight))
        assert sha256(mine) == sha256(theirs)


def test_adapters_of_another_base_are_neither_resumed_nor_released(root, tmp_path):
    config = adapters_config(root, "moved", max_steps=2)
    train(config)
    averaged = load_averaged(config.run_dir, None)
    write_tiny_text(tmp_path, caption_channels=24)
    elsewhere = adapters_config(
        root, "moved", max_steps=4, model={"init": {"kind": "checkpoint", "model": str(tmp_path / "text")}}
    )
    with pytest.raises(InputError, match="base was 'sha256"):
        train(elsewhere)
    with pytest.raises(InputError, match="the adapters were learned on sha256"):
        remake_transformer(elsewhere, averaged)
    with pytest.raises(InputError, match=r"adapters was .* is None now"):
        train(adapters_config(root, "moved", max_steps=4, train="all"))
    with pytest.raises(InputError, match=r"adapters\.rank was 3 .* is 4 now"):
        train(adapters_config(root, "moved", max_steps=4, adapters={"rank": 4}))


def test_random_weights_have_nothing_to_adapt(root):
    with pytest.raises(InputError, match=r"adapters is for model\.init\.kind checkpoint"):
        training_config(root, train="adapters")


def test_a_checkpoint_of_before_these_settings_goes_on(root):
    config = training_config(root, "before", max_steps=2)
    train(config)
    bound = json.loads((config.run_dir / FOLDER / "step-00000002" / "state.json").read_bytes())["bound"]
    assert not {"train", "adapters", "loss", "routing", "base"} & bound.keys()


def test_all_of_a_text_checkpoint_can_be_trained_and_saved_too(root):
    config = adapters_config(root, "all", train="all", max_steps=2)
    train(config)
    state = json.loads((config.run_dir / FOLDER / "step-00000002" / "state.json").read_bytes())
    assert state["transformer"]["caption_channels"] == WIDTH
    assert str(root) not in json.dumps(state["transformer"])


def test_only_what_learns_is_in_the_optimizer_and_the_average(root):
    model, config = adapted(root)
    learner = start_learner(model, config.optimizer)
    (group,) = learner.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in learning(model).values()]
    assert learner.ema.state_dict().keys() == learning(model).keys()


def test_a_step_takes_fewer_operations_by_those_of_frozen_weights_gradients(root):
    """Counted by torch on the meta device: forward, and backward for what learns."""
    config = adapters_config(
        root, model={"sample_size": 32, "layers": 6, "heads": 8, "head_dim": 32}, adapters={"others": "frozen"}
    )

    scratch = config.model.model_copy(update={"init": training_config(root).model.init})
    with torch.device("meta"):
        model, _ = init_transformer(scratch, 0)
        latents, timesteps, audio = (
            torch.empty(1, 4, 32, 32),
            torch.zeros(1),
            torch.empty(1, 5, TINY["caption_channels"]),
        )
    adapt(model, config)
    with FlopCounterMode(display=False) as counter:
        predict(model, latents, timesteps, audio).sum().backward()
    # the first block's self-attention has nothing before it that learns, and no backward pass
    assert training_flops(config, 5) == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert training_flops(config, 5) < 0.8 * training_flops(config.model_copy(update={"train": "all"}), 5)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_average_of_any_length_is_made_of_adapters_too(root, capsys):
    config = adapters_config(root, "averaged", ema={"lengths": [0.05, 0.1], "snapshot_every": 1}, max_steps=6)
    train(config)
    out = root / "of-a-length"
    assert averages([str(config.run_dir), "--length", "0.08", "--out", str(out)]) == 0
    released = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    usual, _ = init_transformer(config.model, 0)
    frozen = "pos_embed.proj.weight"
    assert torch.equal(released[frozen], usual.state_dict()[frozen])
    assert averages([str(config.run_dir), "--sweep", "--lengths", "0.08", "--images", "2"]) == 0
    assert "0.08" in capsys.readouterr().out
    assert "Only adapters were trained" in (out / "README.md").read_text()
