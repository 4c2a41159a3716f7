import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from sonify.config import make_settings
from sonify.errors import InputError
from sonify.models.fetch import AST_FILES, VAE_FILES, fetch_model
from sonify.terminal import run_command
from tests.feature_runs import MadeSample, make_feature_run, random_samples
from tests.tiny_networks import edit_weights
from train.audiotoken import freeze, main, new_embedder, token_losses, train
from train.card import describe_data
from train.checkpoints import bound_settings, load_averaged
from train.config import AudioTokenConfig
from train.embedder import Embedder
from train.frozen import load_token_networks
from train.loader import Batch, make_loader
from train.metrics import read_metrics
from train.shards import open_feature_data
from train.tiny import AST_WIDTH, write_tiny_ast, write_tiny_sd, write_tiny_vae

LAYERS = (1, 2)
AUDIO_SHAPE = (6, len(LAYERS) * AST_WIDTH)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audiotoken")
    write_tiny_ast(folder / "ast")
    write_tiny_vae(folder / "vae")
    write_tiny_sd(folder / "sd")
    token_run(folder, "run", num_validation=2)
    return folder


def token_run(root: Path, name: str, samples: list[MadeSample] | None = None, **more: Any) -> Path:
    """A run whose features the tiny VAE and layers of the tiny AST made, as far as its run.json says."""
    networks = {"vae": (root / "vae", VAE_FILES), "ast": (root / "ast", AST_FILES)}
    return make_feature_run(
        root / name,
        samples,
        audio_shape=AUDIO_SHAPE,
        features={"vae": str(root / "vae"), "ast": str(root / "ast"), "layers": LAYERS, "frequency": "all"},
        models={str(path): fetch_model(str(path), None, files).identity for path, files in networks.values()},
        **more,
    )


def raw_config(root: Path, name: str, **sections: Any) -> dict[str, Any]:
    return {
        "run_dir": str(root / name),
        "max_steps": 4,
        "data": {"runs": [str(root / "run")], "workers": 0},
        "vae": str(root / "vae"),
        "sd": str(root / "sd"),
        "encoder": {"kind": "ast", "model": str(root / "ast")},
        "batch": {"total": 4, "per_device": 2},
        "precision": "fp32",
        "log_every": 1,
        "checkpoints": {"every": 2, "keep": 2},
        "samples": {"every": 3, "sounds": 1, "steps": 2},
    } | sections


def config_of(root: Path, name: str, **sections: Any) -> AudioTokenConfig:
    return make_settings(raw_config(root, name, **sections), AudioTokenConfig)


def losses_of(run_dir: Path) -> list[tuple[float, ...]]:
    return [tuple(line[name] for name in ("loss", "mse", "l1", "classification")) for line in read_metrics(run_dir)]


@pytest.fixture(scope="module")
def straight(root) -> Path:
    """A run of four steps that was never stopped."""
    train(config_of(root, "straight"))
    return root / "straight"


def test_a_run_leaves_metrics_checkpoints_pictures_and_a_pipeline(straight):
    lines = read_metrics(straight)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["loss"] == pytest.approx(line["mse"] + 0.01 * line["l1"]) for line in lines)
    assert all(line["classification"] == 0 and line["mfu"] > 0 for line in lines)
    assert [line["learning_rate"] for line in lines] == pytest.approx([1.6e-4 * 4 / 16] * 4)
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert [path.name for path in (straight / "samples").iterdir()] == ["step-00000003.png"]
    assert sorted(path.name for path in (straight / "pipeline").iterdir() if path.is_dir()) == [
        *("audio_encoder", "embedder", "feature_extractor", "scheduler", "text_encoder", "tokenizer", "unet", "vae")
    ]


def test_a_resumed_run_has_the_losses_and_weights_of_one_never_stopped(root, straight):
    for steps in (1, 2, 4):
        train(config_of(root, "resumed", max_steps=steps))
    assert losses_of(root / "resumed") == losses_of(straight)
    before, after = (load_averaged(run, 4).weights for run in (straight, root / "resumed"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_another_seed_is_another_run(root, straight):
    with pytest.raises(InputError, match=r"seed was 0 when this checkpoint was made, and is 1 now"):
        train(config_of(root, "straight", seed=1))


def test_another_stable_diffusion_in_the_same_place_is_another_run(root):
    shutil.copytree(root / "sd", root / "other-sd")
    sections = {"sd": str(root / "other-sd"), "max_steps": 2}
    train(config_of(root, "other", **sections))
    edit_weights(
        root / "other-sd" / "unet" / "diffusion_pytorch_model.safetensors",
        lambda tensors: tensors["conv_in.weight"].mul_(2),
    )
    with pytest.raises(InputError, match=r"sd was 'sha256:\w+' when this checkpoint was made, and is 'sha256:\w+' now"):
        train(config_of(root, "other", **sections | {"max_steps": 4}))
    config = config_of(root, "other", **sections)
    assert describe_data(config, open_feature_data(config.data), 2).networks[config.sd] == (
        load_token_networks(config).sd.identity
    )


def first_batch(config: AudioTokenConfig, *, with_labels: bool = False) -> Batch:
    data = open_feature_data(config.data)
    return next(make_loader(data, config, 1.0, start_step=0, rank=0, world=1, with_labels=with_labels))


def test_gradients_reach_the_embedder_and_nothing_else(root):
    config = config_of(root, "gradients")
    networks = load_token_networks(config)
    embedder = new_embedder(config, AUDIO_SHAPE[1], networks.sd.width).train()
    frozen = freeze(config, networks, torch.device("cpu"))
    token_losses(embedder, first_batch(config), frozen, config.loss).total_B.mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in embedder.parameters())
    for network in (networks.sd.unet, networks.sd.text_encoder, networks.vae, networks.ear):
        assert all(weight.grad is None for weight in network.parameters())


def test_the_classification_term_hears_the_labels(root):
    config = config_of(root, "labelled", loss={"classification": 0.01}, max_steps=1)
    assert set(first_batch(config, with_labels=True).labels or ()) == {"dog"}
    train(config)
    (line,) = read_metrics(root / "labelled")
    assert line["classification"] > 0
    assert line["loss"] == pytest.approx(line["mse"] + 0.01 * line["l1"] + 0.01 * line["classification"])


def test_the_classification_term_wants_labels(root):
    samples = [MadeSample(**{**fields_of(one), "label": " "}) for one in random_samples(8, audio_shape=AUDIO_SHAPE)]
    token_run(root, "unlabelled", samples)
    config = config_of(
        root, "wants", loss={"classification": 0.01}, data={"runs": [str(root / "unlabelled")], "workers": 0}
    )
    with pytest.raises(
        InputError,
        match=r"^loss.classification: .*has a source without a label or a concept: loss.classification needs one",
    ):
        train(config)


def fields_of(sample: MadeSample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in MadeSample.__slots__}


def test_a_dropped_condition_is_an_empty_prompt(root):
    config = config_of(root, "dropped", condition_dropout=1.0)
    networks = load_token_networks(config)
    frozen = freeze(config, networks, torch.device("cpu"))
    batch = first_batch(config)
    one, other = (
        token_losses(new_embedder(config.model_copy(update={"seed": seed}), AUDIO_SHAPE[1], 32).eval(), batch, frozen,
                     config.loss).mse_B
        for seed in (0, 1)
    )  # fmt: skip
    assert torch.equal(one, other)


def learn(root: Path, steps: int) -> tuple[Embedder, Any, Batch, AudioTokenConfig]:
    """An embedder that has seen one batch again and again, with four sounds unlike each other."""
    rng = np.random.default_rng(0)
    samples = [
        MadeSample(
            key=f"train-{n}",
            latent_CHW=np.full((4, 8, 8), 2.0 * (-1) ** n) * np.where(np.arange(8) < 4, 1, (-1) ** (n // 2)),
            audio_TD={"captions": rng.standard_normal(AUDIO_SHAPE) + 3 * rng.standard_normal(AUDIO_SHAPE[1])},
        )
        for n in range(4)
    ]
    token_run(root, "four", samples, units=1)
    config = config_of(
        root, "learning", batch={"total": 4, "per_device": 4}, data={"runs": [str(root / "four")], "workers": 0}
    )
    networks = load_token_networks(config)
    with torch.random.fork_rng():  # the tiny tower hardly tells its words apart, and the UNet hardly hears it
        torch.manual_seed(0)
        for network in (networks.sd.text_encoder, networks.sd.unet):
            for name, weight in network.named_parameters():
                if "attn2" in name or "self_attn" in name or "mlp" in name:
                    weight.data.mul_(3)
    frozen = freeze(config, networks, torch.device("cpu"))
    embedder = new_embedder(config, AUDIO_SHAPE[1], networks.sd.width).train()
    optimizer = torch.optim.AdamW(embedder.parameters(), lr=3e-3)
    batch = first_batch(config)
    for _ in range(steps):
        loss = token_losses(embedder, batch, frozen, config.loss).total_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return embedder.eval(), frozen, batch, config


def test_one_batch_is_learned_by_its_sounds(root):
    embedder, frozen, batch, config = learn(root, 150)

    @torch.no_grad()
    def mse(audio_BTD: torch.Tensor) -> float:
        heard = Batch(**{**{n: getattr(batch, n) for n in Batch.__slots__}, "audio_BTD": audio_BTD})
        return float(token_losses(embedder, heard, frozen, config.loss).mse_B.mean())

    untrained = new_embedder(config, AUDIO_SHAPE[1], frozen.prompt.width).eval()
    fresh = float(token_losses(untrained, batch, frozen, config.loss).mse_B.mean().detach())
    true, shuffled, silent = (
        mse(batch.audio_BTD),
        mse(batch.audio_BTD.roll(1, 0)),
        mse(torch.zeros_like(batch.audio_BTD)),
    )
    assert true < fresh
    assert true < shuffled
    assert true < silent


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"placeholder": "a"}, "is a word that the tokenizer knows"),
        ({"prompt": "a photo"}, "expected the placeholder <*> once in the prompt"),
        ({"prompt": "a <*> " + 80 * "x "}, "expected a prompt under 77 tokens"),
        ({"sampling_prompt": "nothing"}, "expected the placeholder <*> once in the prompt"),
        ({"encoder": {"kind": "beats", "model": "AST"}}, "expected a model of type 'beats'"),
        ({"sd": "VAE"}, "expected a Stable Diffusion in diffusers' layout"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_clear_line(root, capsys, sections, said):
    sections = {
        key: {**value, "model": str(root / "ast")}
        if key == "encoder"
        else str(root / "vae")
        if value == "VAE"
        else value
        for key, value in sections.items()
    }
    assert run_command("train.audiotoken", lambda: train(config_of(root, "odd", **sections))) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_features_of_the_last_layer_are_refused(root):
    plain = {"vae": str(root / "vae"), "ast": str(root / "ast")}
    networks = {"vae": VAE_FILES, "ast": AST_FILES}
    models = {plain[name]: fetch_model(plain[name], None, files).identity for name, files in networks.items()}
    make_feature_run(root / "plain", audio_shape=(6, AST_WIDTH), features=plain, models=models)
    with pytest.raises(InputError, match=r"its features are the last layer of .* features.layers=\[4,8,12\]"):
        train(config_of(root, "last", data={"runs": [str(root / "plain")], "workers": 0}))


def test_the_command_trains_and_plans(root):
    config = root / "command.yaml"
    words = [f"{key}={value}" for key, value in (("max_steps", 1), ("run_dir", root / "commanded"))]
    config.write_text(yaml.safe_dump(raw_config(root, "unused")))
    assert main(["--config", str(config), "--dry-run", *words]) == 0
    assert not (root / "commanded").exists()
    done = subprocess.run(
        [sys.executable, "-m", "train.audiotoken", "--config", str(config), *words],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (root / "commanded" / "pipeline" / "model_index.json").is_file()


def test_a_checkpoint_of_before_averages_had_a_warm_up_is_gone_on_with(root):
    config = config_of(root, "none")
    bound = bound_settings(config, open_feature_data(config.data), {})
    assert bound["optimizer"]["ema_decay"] == 0
    assert "ema_warmup" not in bound["optimizer"]
