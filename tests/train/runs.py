"""Small training runs for tests: a run with features, tiny networks, a tiny transformer, checkpoints."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from sonify import layout
from sonify.config.loader import make_settings
from sonify.models.fetch import AST_FILES, VAE_FILES, fetch_model
from sonify.rows import Clip
from tests.builders import clip_row, write_table
from tests.feature_runs import make_feature_run
from train.checkpoints import Facts, Learner, TrainingState
from train.config import TrainConfig, Transformer
from train.loop import start_learner
from train.model import init_transformer
from train.shards import FeatureData, open_feature_data
from train.tiny import write_tiny_ast, write_tiny_vae

WIDTH = 32  # of the tiny AST's vectors
TINY = {"layers": 2, "heads": 2, "head_dim": 16, "sample_size": 8, "caption_channels": WIDTH}
BOUND = {"seed": 0, "model": {"layers": 2}, "optimizer": {"ema_decay": 0.9}}
FACTS = Facts(bound=BOUND, network={"num_layers": 2}, recordings=("a", "b"))


def training_input(root: Path, samples: Any = None, **shapes: Any) -> Path:
    """Write `root/ast`, `root/vae` and `root/data`, a run whose features claim to be made with them."""
    write_tiny_ast(root / "ast")
    write_tiny_vae(root / "vae")
    names = {"vae": str(root / "vae"), "ast": str(root / "ast")}
    models = {
        names["vae"]: fetch_model(names["vae"], None, VAE_FILES).identity,
        names["ast"]: fetch_model(names["ast"], None, AST_FILES).identity,
    }
    shapes = {"num_images": 12, "num_validation": 2, "audio_shape": (5, WIDTH)} | shapes
    return make_feature_run(root / "data", samples, features=names, models=models, **shapes)


def write_tiny_text(root: Path, caption_channels: int = 20, **sizes: Any) -> Path:
    """Write `root/text`, a text-conditioned PixArt of the size of `plain_config`, whose weights are no zeros."""
    settings = Transformer.model_validate(TINY | {"caption_channels": caption_channels} | sizes)
    model, _ = init_transformer(settings, seed=9)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(root / "text" / "transformer")
    return root / "text"


def plain_config(root: Path, run: str = "run", **sections: Any) -> dict[str, Any]:
    """The configuration of a run of six steps on `training_input`; sections are merged key by key."""
    base: dict[str, Any] = {
        "run_dir": str(root / run),
        "max_steps": 6,
        "data": {"runs": [str(root / "data")], "workers": 0},
        "vae": str(root / "vae"),
        "ast": str(root / "ast"),
        "model": TINY,
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2, "clip_norm": 1.0, "ema_decay": 0.9},
        "batch": {"total": 8, "per_device": 4},
        "precision": "fp32",
        "compile": False,
        "linears": "plain",  # what is measured may be this for one run and that for another
        "log_every": 1,
        "checkpoints": {"every": 2, "keep": 2},
        "samples": {"every": 5, "sounds": 2, "steps": 2},
    }
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base


def training_config(root: Path, run: str = "run", **sections: Any) -> TrainConfig:
    """`plain_config`, checked."""
    return make_settings(plain_config(root, run, **sections), TrainConfig)


def write_config(root: Path, run: str = "run", **sections: Any) -> Path:
    """`plain_config` as a file."""
    path = root / f"{run}.yaml"
    path.write_text(yaml.safe_dump(plain_config(root, run, **sections)))
    return path


def state(step: int) -> TrainingState:
    """What a checkpoint holds, different for each step."""
    generator = torch.Generator().manual_seed(step)
    tensors = {"a.weight": torch.randn(7, 5, generator=generator), "b": torch.tensor(float(step))}
    return TrainingState(
        step=step, model=tensors, ema={"a.weight": tensors["a.weight"] / 2}, optimizer={"b/step": tensors["b"]}
    )


class Tiny(nn.Linear):
    """A network as small as one can be, with a configuration as diffusers keeps it."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.config = {"width": width}


def tiny_lesson(root: Path, run_dir: Path, width: int = 4) -> tuple[TrainConfig, FeatureData, Learner]:
    """The data of `training_input`, and a tiny network that has made a step, always the same."""
    config = training_config(root, run_dir=str(run_dir))
    torch.manual_seed(0)
    learner = start_learner(Tiny(width), config.optimizer)
    learner.network(torch.ones(width)).sum().backward()
    learner.optimizer.step()
    return config, open_feature_data(config.data), learner


def write_pool(run: Path, licence_of: dict[str, str]) -> None:
    """A pool of one clip a recording."""
    clips = [clip_row(f"c/{name}#0", recording=name, licence=licence) for name, licence in licence_of.items()]
    write_table(run / layout.clips("000000"), Clip, clips)
