"""A trained model as others load it: a folder of diffusers' with the averaged weights, a card and what it was made of.

python -m train.release --run TRAINRUN [--step N] --out DIR

model_index.json transformer/ vae/ scheduler/ audio_encoder/ feature_extractor/   the pipeline, safetensors only
README.md        the model card
pipeline.py      the pipeline's code, for who has not this package
recordings.txt   the recordings that it was trained on, one a line
config.yaml      the configuration, resolved
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("train.release", extra="train"))

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from huggingface_hub import ModelCard, ModelCardData

from sonify.config.loader import load_settings
from sonify.errors import InputError
from sonify.installed import spell
from sonify.io.write import make_beside, naming_full_disk, naming_place, replacing
from sonify.pool import clip_columns
from sonify.terminal import Parser, run_command
from train.checkpoints import RECORDINGS, load_averaged, naming_system_errors
from train.config import CONFIG, TrainConfig, write_config
from train.frozen import load_networks, make_pipeline
from train.metrics import read_metrics
from train.pipeline import AudioPixArtPipeline
from train.released import PIPELINE_CODE, pipeline_source
from train.shards import FeatureData, open_feature_data

NOT_KNOWN = "not known"
METRICS_HEAD = "One training step's figures, the last that was logged; they are not an evaluation:\n"
# Of the last line of `metrics.jsonl`, in this order, with what each is.
REPORTED = {
    "step": "step",
    "loss": "loss: squared error of the noise plus the variational bound in bits",
    "mse": "squared error of the noise",
    "vb": "variational bound, bits",
}


def main(argv: Sequence[str] | None = None, prog: str = "train.release") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Make a pipeline of a checkpoint.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a training run")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    parser.add_argument("--out", type=Path, required=True, help="the pipeline's folder; a release there is replaced")
    arguments = parser.parse_args(argv)
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    release_checkpoint(arguments.run, arguments.step, arguments.out)
    print(arguments.out)  # noqa: T201 - the command's result


def release_checkpoint(run_dir: Path, step: int | None, out: Path) -> None:
    """Make the pipeline of one of a run's checkpoints, the newest where `step` is None.

    Raises:
        InputError: there is no such run or checkpoint, its data or its networks are gone, or `out` is something else.
        DiskFull: no room is left.
    """
    if not (run_dir / CONFIG).is_file():
        raise InputError(
            f"{run_dir}: not a training run: expected {CONFIG} in it; `{spell('train', '--config', 'F')}` makes one"
        )
    _find_place(out)
    config = load_settings(run_dir / CONFIG, [], TrainConfig)
    averaged = load_averaged(run_dir, step)
    transformer = PixArtTransformer2DModel.from_config(dict(averaged.transformer))
    assert isinstance(transformer, PixArtTransformer2DModel)
    transformer.load_state_dict(averaged.weights)
    data = open_feature_data(config.data)
    pipeline = make_pipeline(transformer.eval(), config, load_networks(config), data)
    metrics = [line for line in read_metrics(run_dir) if line["step"] <= averaged.step]
    save_release(out, pipeline, config, data, metrics, step=averaged.step)


def save_release(
    out: Path,
    pipeline: AudioPixArtPipeline,
    config: TrainConfig,
    data: FeatureData,
    metrics: Sequence[Mapping[str, float]],
    *,
    step: int,
) -> None:
    """Write a release of the weights of `step`, seen whole or not at all; one that is there is replaced.

    `metrics` are the lines of the run's `metrics.jsonl`.

    Raises:
        InputError: `out` is something else than a release, or cannot be written to.
        DiskFull: no room is left.
    """
    out = _find_place(out)
    recordings = data.recordings()
    trained_on = TrainedOn(
        step=step,
        num_images=data.num_images,
        recordings=recordings,
        licences=count_licences((Path(str(run)) for run in config.data.runs), recordings),
    )
    with replacing(out) as folder, naming_system_errors():
        pipeline.save_pretrained(folder, safe_serialization=True)
        (folder / PIPELINE_CODE).write_bytes(pipeline_source())
        write_config(config, folder)
        (folder / RECORDINGS).write_text("".join(f"{name}\n" for name in recordings), encoding="utf-8")
        card = make_card(config, trained_on, metrics[-1] if metrics else {})
        (folder / "README.md").write_text(card, encoding="utf-8")


def _find_place(out: Path) -> Path:
    """The folder that `out` means, which may be a link or a dot, where a release can be written."""
    place = Path(os.path.realpath(out))
    with naming_full_disk(place), naming_place(place):
        if not place.name or (_is_there(place) and not _is_replaceable(place)):
            raise InputError(f"--out {out}: holds something else than a release; choose a new folder")
        make_beside(place).rmdir()
    return place


def _is_there(place: Path) -> bool:
    return place.is_symlink() or place.exists()  # a link here is one that leads to itself


def _is_replaceable(place: Path) -> bool:
    """A folder that is empty or one of our releases: another pipeline has no list of recordings."""
    return place.is_dir() and (not any(place.iterdir()) or (place / RECORDINGS).is_file())


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedOn:
    """What a model has seen: `licences` counts recordings."""

    step: int
    num_images: int
    recordings: Sequence[str]
    licences: Mapping[str, int]


def count_licences(runs: Iterable[Path], recordings: Iterable[str]) -> dict[str, int]:
    """Look the recordings up in the runs' pools, most frequent licence first; `not known` where no pool names one.

    Raises:
        WorkError: a table of a pool is damaged.
    """
    licence_of: dict[str, str] = {}
    for run in runs:
        table = clip_columns(run, ["recording", "licence"])
        licence_of.update(zip(table["recording"].to_pylist(), table["licence"].to_pylist(), strict=True))
    return dict(Counter(licence_of.get(recording) or NOT_KNOWN for recording in recordings).most_common())


def make_card(config: TrainConfig, trained_on: TrainedOn, metrics: Mapping[str, float]) -> str:
    """The card's text, with its metadata at the top; `metrics` is one line of `metrics.jsonl`, or empty."""
    data = ModelCardData(
        # the recordings' and images' licences meet in these weights: who publishes them has to choose
        license="other",
        license_name="not-chosen",
        license_link="README.md",
        library_name="diffusers",
        pipeline_tag="any-to-any",  # the hub has no task from sound to image
        tags=["audio-to-image", "pixart-alpha", "diffusion-transformer", "sonify"],
        base_model=_base_model(config),
    )
    sections = (
        _head(config),
        _data(config, trained_on),
        _training(config, metrics),
        _licences(config, trained_on),
        LIMITS,
    )
    text = "\n".join(sections)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _base_model(config: TrainConfig) -> str | None:
    """The hub id of the weights that training began with; a folder of this machine is nobody else's business."""
    init = config.model.init
    return init.model if init.kind == "checkpoint" and not Path(init.model).is_absolute() else None


WITH_AST = """
    sonify generate --model . --audio a.wav --out out.png

```python
from train.pipeline import AudioPixArtPipeline

pipeline = AudioPixArtPipeline.from_pretrained(".")
images = pipeline(audio_BS, seeds=[0]).images  # float32 at 16 kHz, as long as `pipeline.config["clip_seconds"]`
```
"""
WITHOUT_AST = """
```python
from train.pipeline import AudioPixArtPipeline

pipeline = AudioPixArtPipeline.from_pretrained(".")
images = pipeline(audio_features_BTD=features_BTD, seeds=[0]).images  # the condition is not AST's: bring your own
```
"""


def _head(config: TrainConfig) -> str:
    model = config.model
    return f"""# Images from sounds

An audio-conditioned PixArt-alpha with its VAE{" and its AST" if config.ast else ""}: {model.layers} blocks of width
{model.heads * model.head_dim}, {model.sample_size} x {model.sample_size} latents, a condition of vectors of
{model.caption_channels} numbers. To use it, have the sonify repository installed:
{WITH_AST if config.ast else WITHOUT_AST}"""


def _data(config: TrainConfig, trained_on: TrainedOn) -> str:
    runs = ", ".join(f"`{Path(str(run)).name}`" for run in config.data.runs)
    return f"""## Data

| what | how many |
|---|---|
| runs of `sonify` | {len(config.data.runs)}: {runs} |
| split | {config.data.split} |
| images | {trained_on.num_images:,} |
| recordings | {len(trained_on.recordings):,}, all named in `{RECORDINGS}` |
| visits of an image, on average | {trained_on.step * config.batch.total / trained_on.num_images:,.1f} |
"""


def _training(config: TrainConfig, metrics: Mapping[str, float]) -> str:
    lines = [f"| {text} | {_number(metrics[key])} |" for key, text in REPORTED.items() if key in metrics]
    table = (
        "\n".join([METRICS_HEAD, "| what | of that step |", "|---|---|", *lines]) if lines else "Metrics: not logged."
    )
    rate = config.optimizer.learning_rate * (config.batch.total / config.optimizer.reference_batch) ** 0.5
    return f"""## Training

Averaged weights (EMA {config.optimizer.ema_decay}). Total batch {config.batch.total}, learning rate {rate:.3g},
condition dropout {config.condition_dropout}, precision {config.precision}, seed {config.seed}; everything else is in
`{CONFIG}`.

{table}
"""


def _licences(config: TrainConfig, trained_on: TrainedOn) -> str:
    networks = ", ".join(f"`{_shown(name)}`" for name in (_base_model(config), config.vae, config.ast) if name)
    rows = "\n".join(f"| {_cell(licence)} | {count:,} |" for licence, count in trained_on.licences.items())
    return f"""## Licences

Of the recordings, as the pools state them:

| licence | recordings |
|---|---|
{rows}

The licences of the images are those of their collections, which the runs do not record. Networks that this one holds or
began with have their own: {networks}. The licence of these weights is not chosen: whoever publishes them has to.
"""


LIMITS = """## Limits

- Image quality (FID), agreement of image and sound (AIS, IIS): not measured.
- Behaviour on sounds unlike those in the data: not measured.
- Which sound belongs to which image was chosen by models that look at images and compare texts; nobody heard the
  images' own sound. What such models wrongly associate, this one has learned.
"""


def _shown(model: str) -> str:
    """A hub id, or a folder's last name."""
    return Path(model).name if Path(model).is_absolute() else model


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
