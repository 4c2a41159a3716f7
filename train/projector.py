"""Pre-train the projector of the condition on sounds and what they are said to be, before any image is seen.

    python -m train.projector --config configs/train/projector.yaml [key=value ...]

Reads what `sonify features` wrote, and writes RUN/projector.safetensors, which `model.init.projector` of `train.pixart`
reads, with its card. A few minutes: it is not resumed but done again, with the texts' vectors kept.

The paper says that contrastive pre-training of the projector brought no gain (A.11), and no more than that. The losses,
the temperature, the text's target, the pooling, the batch and the steps below are ours; what its authors took is
unknown. `python -m eval.projector_start` compares training from both starts.

    S  scenes, B  of a batch, N  texts, T D  times and width of the condition, W  width of a text's vector,
    K  width of the transformer
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("train.projector", extra="train"))

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import yaml
from diffusers.models.embeddings import PixArtAlphaTextProjection
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from sonify import layout
from sonify.config import explain_option, load_settings
from sonify.config.inputs import Section
from sonify.config.shipped import find_config
from sonify.errors import InputError, WorkError
from sonify.io.commits import digest_of
from sonify.io.write import check_replaceable, naming_full_disk, write_whole
from sonify.keys import hash64
from sonify.models.loading import choose_device
from sonify.running import open_run
from sonify.terminal import Parser, run_command
from train.checkpoints import RECORDINGS
from train.config import CONFIG, Data, Transformer
from train.loader import Order, generator
from train.metrics import METRICS
from train.model import PROJECTION, load_text_projection, new_projection
from train.shards import FeatureData, open_feature_data
from train.texts import CACHE, T5Text, Text, embed_texts, fetch_tower, read_said

log = logging.getLogger(__name__)

PROJECTOR = "projector.safetensors"
CARD = "README.md"
OURS = {PROJECTOR, CARD, CONFIG, METRICS, RECORDINGS, CACHE, layout.LOCK, layout.TEMPORARY}
MAX_SCALE = 100.0  # one over the least temperature, as CLIP has it
AT_ONCE = 256  # scenes through the projector where nothing is learned


class Loss(Section):
    """The weights of both losses, and the temperature of the contrastive one, which is learned from there or kept."""

    contrastive: float = Field(default=1.0, ge=0)
    regression: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=0.07, ge=1 / MAX_SCALE, le=100)
    learn_temperature: bool = True

    @model_validator(mode="after")
    def _teaches(self) -> "Loss":
        if not self.contrastive + self.regression:
            raise ValueError("contrastive and regression are both 0: expected one of them above")
        return self


class ProjectorConfig(Section):
    """A whole pre-training. `model` is that of the training that follows; its `init` says what reads the projector."""

    run_dir: Path
    seed: int = Field(default=0, ge=0, lt=2**63)
    data: Data
    held_out: Literal["validation"] | Annotated[float, Field(gt=0, lt=1)] = "validation"  # or a share of recordings
    samples: int = Field(default=50_000, ge=2)  # images whose sounds are read, at most: they stay in memory
    reads: Literal["description", "concept"] = "description"
    text: Text = T5Text(kind="t5")
    model: Transformer = Transformer()
    loss: Loss = Loss()
    batch: int = Field(default=256, ge=2)
    steps: int = Field(default=2000, ge=1)
    learning_rate: float = Field(default=1.0e-3, gt=0)
    weight_decay: float = Field(default=1.0e-2, ge=0)
    log_every: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _makes_sense(self) -> "ProjectorConfig":
        if self.model.init.projector is not None:
            raise ValueError("model.init.projector is what this makes: take it out")
        if self.held_out == self.data.split:
            raise ValueError("data.split is the split that is held out: learn from `train`, or hold out a share")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is heard with one image, as it is stored, and what it is said to be."""

    audio_TD: np.ndarray
    text: str
    recordings: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Scenes and the number of each one's text among all."""

    audio_STD: Tensor
    text_S: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """Which of the held-out texts is nearest to a held-out sound? Ties share their places; chance is 1 / `texts`."""

    scenes: int
    texts: int
    recall_at_1: float
    mean_rank: float


def main(argv: Sequence[str] | None = None, prog: str = "train.projector") -> int:
    """Run the command and return its exit code."""
    parser = Parser(
        prog=prog,
        description="Pre-train the projector of the condition on sounds and their texts.",
        explain=explain_option(ProjectorConfig),
    )
    parser.add_argument("--config", required=True, metavar="F", help="YAML file, or the name of one that comes along")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)

    def work() -> None:
        config = load_settings(find_config(arguments.config, "train"), arguments.overrides, ProjectorConfig)
        try:
            path = pretrain_projector(config)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt("no projector was written; the same command begins again") from interrupt
        print(path)  # noqa: T201 - the command's result

    return run_command(prog, work)


def pretrain_projector(config: ProjectorConfig) -> Path:
    """Learn a projector and write it with its card; one that is there from the same settings and data stays.

    Raises:
        InputError: the configuration, the data or a model is wrong, or something else lies in `run_dir`.
        WorkError: a loss is not finite, data are damaged, or the disk is full.
    """
    runs = {f"data.runs.{n}": Path(str(run)) for n, run in enumerate(config.data.runs)}
    check_replaceable(config.run_dir, "a projector", OURS, runs, "run_dir")
    with open_run(config.run_dir), naming_full_disk(config.run_dir):
        return _pretrain(config)


def _pretrain(config: ProjectorConfig) -> Path:
    data = open_feature_data(config.data)
    _check_width(data, config)
    validation = _open_validation(config)
    tower = fetch_tower(config.text)
    target, target_name = _text_target(config, tower.width)
    facts = {
        "settings": config.model_dump(mode="json", exclude={"run_dir", "log_every", "data"}),
        "features": {name: value for name, value in asdict(data.features).items() if name not in ("vae", "ast", "ear")},
        "data": [data.digest, validation.digest if validation else None],
        "text": tower.identity,
        "target": target_name,
    }
    digest = digest_of(json.loads(json.dumps(facts)))
    path = config.run_dir / PROJECTOR
    if _is_there(path, digest):
        log.info("%s: is there already, made from the same", path)
        return path

    train, held, both = _read_scenes(config, data, validation)
    texts = sorted({scene.text for scene in (*train, *held)})
    _check_scenes(config, train, held)
    device = choose_device("auto")
    log.info("%s scenes to learn from, %s held out, %s texts", f"{len(train):,}", f"{len(held):,}", f"{len(texts):,}")
    if both:
        log.warning("%s scenes are left out: they have recordings of both sides", f"{both:,}")
    if target is not None:
        target.to(device)
    vectors_NW = embed_texts(tower, texts, target, target_name, device, config.run_dir).to(device)
    known, unknown = (_as_pairs(scenes, texts, device) for scenes in (train, held))
    projection, lines, found = learn(config, known, unknown, vectors_NW, own=target is not None)

    tensors = {PROJECTION + name: tensor.cpu().contiguous() for name, tensor in projection.state_dict().items()}
    written = save(tensors, {"made_from": digest})
    recordings = sorted({name for scene in train for name in scene.recordings})
    card = _card(config, facts, found, hashlib.sha256(written).hexdigest(), (len(train), both, len(recordings)))
    write_whole(config.run_dir / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    write_whole(config.run_dir / METRICS, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    write_whole(config.run_dir / RECORDINGS, "".join(f"{name}\n" for name in recordings).encode())
    write_whole(config.run_dir / CARD, card.encode())
    write_whole(path, written)  # last: what is there is whole
    return path


def _check_width(data: FeatureData, config: ProjectorConfig) -> None:
    width = data.audio_shape[1]
    if width != config.model.caption_channels:
        raise InputError(
            f"{data.shards[0].run_dir}: its audio features are {width} wide, and model.caption_channels is"
            f" {config.model.caption_channels}: set that to {width}"
        )


def _open_validation(config: ProjectorConfig) -> FeatureData | None:
    if config.held_out != "validation":
        return None
    try:
        return open_feature_data(config.data.model_copy(update={"split": "validation"}))
    except InputError as error:
        raise InputError(f"{error}; or set held_out to a share of the recordings, such as 0.1") from error


def _text_target(config: ProjectorConfig, text_width: int) -> tuple[PixArtAlphaTextProjection | None, str]:
    """The projection that the transformer's cross-attention was trained to read from, for T5 before a checkpoint.

    None where there is none: a linear head is learned instead, and thrown away.
    """
    init = config.model.init
    if init.kind == "scratch" or config.text.kind != "t5":
        return None, "a learned linear head, thrown away"
    projection, identity = load_text_projection(init, config.model.width)
    if projection.linear_1.in_features != text_width:
        raise InputError(
            f"text.model: its vectors are {text_width} wide, and {init.model} reads texts of"
            f" {projection.linear_1.in_features}; take the text encoder that it was trained with"
        )
    return projection.eval().requires_grad_(False), f"the text projection of {identity}"


def _is_there(path: Path, digest: str) -> bool:
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as tensors:
            found = (tensors.metadata() or {}).get("made_from")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error}); remove it, to make it again") from error
    if found != digest:
        raise InputError(f"{path}: was made from other settings, data or models; remove it, or take another run_dir")
    return True


def _read_scenes(
    config: ProjectorConfig, data: FeatureData, validation: FeatureData | None
) -> tuple[list[Scene], list[Scene], int]:
    """The scenes to learn from and those held out, of which no recording is heard in both, and how many are in neither.

    A scene of several sources may have recordings of both sides; runs that are read together may have held out others.
    """
    scenes = _scenes_of(config, data)
    if validation is not None:
        known = {name for scene in scenes for name in scene.recordings}
        unknown = _scenes_of(config, validation)
        apart = [one for one in unknown if not one.recordings & known]
        return scenes, apart, len(unknown) - len(apart)
    names = {name for scene in scenes for name in scene.recordings}
    assert not isinstance(config.held_out, str)
    held = {name for name in names if hash64("held out", config.seed, name) < config.held_out * 2**64}
    train = [one for one in scenes if not one.recordings & held]
    apart = [one for one in scenes if one.recordings and one.recordings <= held]
    return train, apart, len(scenes) - len(train) - len(apart)


def _scenes_of(config: ProjectorConfig, data: FeatureData) -> list[Scene]:
    """All scenes of the images that training would visit first."""
    order = Order([shard.num_samples for shard in data.shards], config.data.window_shards, config.seed)
    scenes: list[Scene] = []
    for position in range(min(config.samples, data.num_images)):
        sample = data.read(*order.locate(position))
        said = read_said(sample, config.reads)
        scenes += [
            Scene(
                audio_TD=sample.decode(f"{name}.audio.npy", data.audio_shape).astype(np.float16),
                text=", ".join(said[name].texts),
                recordings=said[name].recordings,
            )
            for name in sample.scenes
        ]
    return scenes


def _check_scenes(config: ProjectorConfig, train: Sequence[Scene], held: Sequence[Scene]) -> None:
    for what, scenes in (("to learn from", train), ("held out", held)):
        texts = {scene.text for scene in scenes}
        if len(texts) < 2:
            said = f"only {next(iter(texts))[:80]!r}" if texts else "no sound"
            raise InputError(
                f"data: the scenes {what} say {said}: expected two texts at least, to tell one from the other; add"
                f" runs, or change held_out ({config.held_out})"
            )
    if len(train) < config.batch:
        raise InputError(
            f"data: {len(train)} scenes to learn from, fewer than the {config.batch} of one step; add runs, or set a"
            " smaller `batch`"
        )


def _as_pairs(scenes: Sequence[Scene], texts: Sequence[str], device: torch.device) -> Pairs:
    numbers = {text: number for number, text in enumerate(texts)}
    return Pairs(
        audio_STD=torch.from_numpy(np.stack([scene.audio_TD for scene in scenes])),
        text_S=torch.tensor([numbers[scene.text] for scene in scenes], device=device),
    )


def learn(
    config: ProjectorConfig, known: Pairs, unknown: Pairs, vectors_NW: Tensor, *, own: bool
) -> tuple[PixArtAlphaTextProjection, list[dict[str, float]], Retrieval]:
    """Learn from the known pairs; the projector, a line for each `log_every` steps, and what it finds of the unknown.

    `own`: the texts' vectors are the transformer's own already, of K numbers; else a head brings them there.

    Raises:
        WorkError: a loss is not finite.
    """
    device, width = vectors_NW.device, config.model.width
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        projection = new_projection(config.model.caption_channels, width).to(device)
        head = nn.Identity() if own else nn.Linear(vectors_NW.shape[1], width).to(device)
    log_scale = nn.Parameter(torch.tensor(-math.log(config.loss.temperature), device=device))
    log_scale.requires_grad_(config.loss.learn_temperature)
    weights = [*projection.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": config.weight_decay}, {"params": [log_scale], "weight_decay": 0.0}],
        lr=config.learning_rate,
    )
    spread = _spread(vectors_NW, known) if own else None
    lines: list[dict[str, float]] = []
    found = retrieve(projection, head, unknown, vectors_NW)
    for step in range(1, config.steps + 1):
        rows_B = _batch(config, len(known.text_S), step)
        audio_BK = _heard(projection, known.audio_STD[rows_B].to(device))
        text_B = known.text_S[rows_B.to(device)]
        text_BK = head(vectors_NW[text_B])
        contrastive, right = contrastive_loss(audio_BK, text_BK, text_B, log_scale.exp())
        regression = regression_loss(audio_BK, text_BK.detach(), spread)
        loss = config.loss.contrastive * contrastive + config.loss.regression * regression
        if not loss.isfinite():
            raise WorkError(f"step {step}: the loss is not finite; nothing was written: set a lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            log_scale.clamp_(max=math.log(MAX_SCALE))
        if step % config.log_every == 0 or step in (1, config.steps):
            found = retrieve(projection, head, unknown, vectors_NW)
            learned = {"loss": loss, "contrastive": contrastive, "regression": regression, "batch_accuracy": right}
            line = {"step": step, **{name: float(value.detach()) for name, value in learned.items()}}
            line |= {"temperature": float((-log_scale.detach()).exp())}
            lines.append(line | {"recall_at_1": found.recall_at_1, "mean_rank": found.mean_rank})
            log.info(
                "step %s of %s  loss %.4f  held out: R@1 %.3f  mean rank %.1f of %s",
                f"{step:,}", f"{config.steps:,}", line["loss"], found.recall_at_1, found.mean_rank, found.texts,
            )  # fmt: skip
    return projection, lines, found


def _batch(config: ProjectorConfig, num_scenes: int, step: int) -> Tensor:
    """The rows (B,) of a step, each scene once an epoch; a function of the seed and the step."""
    start, rows = (step - 1) * config.batch, []
    while len(rows) < config.batch:
        epoch, at = divmod(start + len(rows), num_scenes)
        shuffled = generator(config.seed, "projector", epoch).permutation(num_scenes)
        rows += shuffled[at : at + config.batch - len(rows)].tolist()
    return torch.tensor(rows)


def _heard(projection: nn.Module, audio_BTD: Tensor) -> Tensor:
    """The mean over time of what the transformer would read (B, K)."""
    return projection(audio_BTD.float()).mean(dim=1)


def _spread(vectors_NK: Tensor, known: Pairs) -> float:
    """The mean square of the known scenes' targets about their mean, over numbers and scenes."""
    targets_SK = vectors_NK[known.text_S]
    spread = float((targets_SK - targets_SK.mean(0)).square().mean())
    if not spread > 0:
        raise InputError("text.model: gives all texts the same vector; take a text model with trained weights")
    return spread


def contrastive_loss(audio_BK: Tensor, text_BK: Tensor, text_B: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE over cosines, the mean of both directions; and how often a sound is nearest to its own text.

    Other scenes of the batch with the same text are neither right nor wrong: they do not count.

    Source: CLIP, arXiv 2103.00020, figure 3.
    """
    cosines_BB = functional.normalize(audio_BK, dim=1) @ functional.normalize(text_BK, dim=1).T
    own_B = torch.arange(len(text_B), device=text_B.device)
    same_BB = (text_B[:, None] == text_B[None, :]) & (own_B[:, None] != own_B[None, :])
    logits_BB = (scale * cosines_BB).masked_fill(same_BB, -math.inf)
    loss = (functional.cross_entropy(logits_BB, own_B) + functional.cross_entropy(logits_BB.T, own_B)) / 2
    return loss, (logits_BB.argmax(1) == own_B).float().mean()


def regression_loss(audio_BK: Tensor, text_BK: Tensor, spread: float | None) -> Tensor:
    """The squared error as a share of the targets' `spread`: 1 is as bad as their mean. Without, 1 less the cosine.

    The scale of a learned head means nothing, and a head that followed the sounds could make the error 0 by saying
    nothing: its vectors come here without their gradients.
    """
    if spread is None:
        return (1 - functional.cosine_similarity(audio_BK, text_BK, dim=1)).mean()
    return (audio_BK - text_BK).square().mean() / spread


@torch.no_grad()
def retrieve(projection: nn.Module, head: nn.Module, pairs: Pairs, vectors_NW: Tensor) -> Retrieval:
    """Rank the texts of these pairs by their cosine with each sound."""
    device = vectors_NW.device
    audio_SK = torch.cat([_heard(projection, part.to(device)) for part in pairs.audio_STD.split(AT_ONCE)])
    texts_N, own_S = pairs.text_S.unique(return_inverse=True)
    cosines_SN = functional.normalize(audio_SK, dim=1) @ functional.normalize(head(vectors_NW[texts_N]), dim=1).T
    own_S1 = cosines_SN.gather(1, own_S[:, None])
    rank_S = 1 + (cosines_SN > own_S1).sum(1) + ((cosines_SN == own_S1).sum(1) - 1) / 2
    return Retrieval(
        scenes=len(own_S),
        texts=len(texts_N),
        recall_at_1=float((rank_S == 1).double().mean()),
        mean_rank=float(rank_S.double().mean()),
    )


def _card(
    config: ProjectorConfig, facts: dict[str, Any], found: Retrieval, sha256: str, counts: tuple[int, int, int]
) -> str:
    """`counts`: scenes to learn from, scenes of both sides, recordings to learn from."""
    scenes, both, recordings = counts
    model, features = config.model, json.dumps(facts["features"], indent=2, default=str)
    where = "the validation split" if config.held_out == "validation" else f"{config.held_out:g} of the recordings"
    return f"""# A projector of sounds

`caption_projection` of a PixArt-alpha of width {model.width}, for vectors of \
{model.caption_channels} numbers, learned from {scenes:,}
scenes and their {config.reads}s, without images. `{PROJECTOR}`: sha256 `{sha256}`.

    model:
      init: {{kind: {model.init.kind}, ..., projector: {PROJECTOR}}}

- text: `{config.text.kind}`, {json.dumps(facts["text"])}; the target: {facts["target"]}
- losses: contrastive x {config.loss.contrastive:g}, regression x {config.loss.regression:g}; {config.steps:,} steps \
of {config.batch}, seed {config.seed}
- held out: {where}, {found.scenes:,} scenes of {found.texts:,} texts: the right text comes first for \
{found.recall_at_1:.3f} (chance
  {1 / found.texts:.3f}), its mean rank is {found.mean_rank:.1f} (chance {(found.texts + 1) / 2:.1f})
- left out: {both:,} scenes with recordings of both sides
- `{RECORDINGS}`: the {recordings:,} recordings that it was learned from: a takedown asks for them; their licences are
  in the pools of the runs

Whether training gains by it is not measured here: the paper found no gain. `python -m eval.projector_start` compares.

The features:

```json
{features}
```
"""
