import re
from pathlib import Path

import pytest
import yaml

from sonify.config.loader import load_settings, make_settings
from sonify.errors import InputError
from tests.train.runs import write_config
from train.config import AudioTokenConfig, TrainConfig

CONFIGS = [
    path
    for path in sorted(Path(__file__).parents[2].glob("configs/train/*.yaml"))
    if not path.name.startswith("projector")  # which is trained before: tests/train/test_projector.py
]


PIXART = [path for path in CONFIGS if not path.name.startswith("audiotoken")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_refuses_a_misspelt_key(path):
    raw, kind = yaml.safe_load(path.read_text()), TrainConfig if path in PIXART else AudioTokenConfig
    assert make_settings(raw, kind, check_paths=False)
    assert path.read_text().startswith("#")
    for section in [key for key, value in raw.items() if isinstance(value, dict)]:
        misspelt = {**raw, section: {**raw[section], "learning_rat": 3}}
        with pytest.raises(InputError, match=f"{section}.learning_rat: no such key"):
            make_settings(misspelt, kind, check_paths=False)


def test_a_part_of_audiotokens_section_leaves_the_rest_audiotokens():
    raw = {"run_dir": "a", "max_steps": 1, "data": {"runs": ["b"]}, "encoder": {"kind": "ast"}}
    raw |= {"optimizer": {"warmup_steps": 3}, "batch": {"per_device": 2}, "samples": {"every": 7}}
    config = make_settings(raw, AudioTokenConfig, check_paths=False)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.rule, optimizer.clip_norm, optimizer.ema_decay) == (
        1.6e-4,
        "linear",
        None,
        0,
    )
    assert (config.batch.total, config.samples.steps, config.samples.guidance) == (16, 50, 7.5)


def test_the_papers_config_is_the_papers_recipe():
    raw = yaml.safe_load((CONFIGS[0].parent / "pixart_xl_512.yaml").read_text())
    config = make_settings(raw, TrainConfig, check_paths=False)
    model = config.model
    assert (model.layers, model.heads * model.head_dim, model.patch_size, model.sample_size) == (28, 1152, 2, 64)
    assert (config.batch.total, config.condition_dropout, config.optimizer.clip_norm) == (640, 0.1, 0.01)
    assert (config.optimizer.weight_decay, config.optimizer.eps, config.optimizer.ema_decay) == (0.03, 1e-10, 0.9999)


@pytest.mark.parametrize("path", PIXART, ids=lambda path: path.name)
def test_models_of_the_hub_are_pinned_as_the_features_are(path):
    """Two commits of one model are two models: features of the shipped configurations fit the shipped trainings."""
    config = make_settings(yaml.safe_load(path.read_text()), TrainConfig, check_paths=False)
    features = yaml.safe_load((CONFIGS[0].parents[1] / "sonify/sam.yaml").read_text())["features"]
    if path.name == "smoke.yaml":  # folders, which have no revisions
        assert (config.vae_revision, config.ast_revision) == (None, None)
        return
    for name in ("vae", "vae_revision", "ast", "ast_revision"):
        assert getattr(config, name) == features[name]
    init = config.model.init
    assert init.kind == "scratch" or re.fullmatch("[0-9a-f]{40}", init.revision or "")


def test_audiotokens_config_is_the_published_recipe():
    raw = yaml.safe_load((CONFIGS[0].parent / "audiotoken.yaml").read_text())
    config = make_settings(raw, AudioTokenConfig, check_paths=False)
    assert config.model_dump(include={"optimizer", "batch"}) == AudioTokenConfig(
        run_dir=config.run_dir, max_steps=1, data=config.data, encoder=config.encoder
    ).model_dump(include={"optimizer", "batch"})
    assert re.fullmatch("[0-9a-f]{40}", config.sd_revision or "")


def test_overrides_reach_every_section(tmp_path):
    (tmp_path / "data").mkdir()
    overrides = ["model.layers=5", "batch.total=4", "data.workers=1"]
    config = load_settings(write_config(tmp_path), overrides, TrainConfig)
    assert (config.model.layers, config.batch.total, config.data.workers) == (5, 4, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.patch_size=3", "sample_size 8 is not a multiple of patch_size 3"),
        ("max_steps=0", "max_steps"),
        ("precision=fp8", "precision"),
        ("data.runs=[]", "data.runs"),
        ("data.runs=[/no/such/run]", "data.runs.0: no such file or folder"),
        ("model.init={kind: guess}", "model.init.kind: expected one of"),
        ("optimizer.ema_decay=1.0", "optimizer.ema_decay"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, override, message):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError) as error:
        load_settings(write_config(tmp_path), [override], TrainConfig)
    assert message in str(error.value)
