"""A trained model as others load it: a folder of diffusers' with the averaged weights, a card and what it was made of.

python -m train.release --run TRAINRUN [--step N] --out DIR

model_index.json transformer/ vae/ scheduler/ audio_encoder/ feature_extractor/   the pipeline, safetensors only
README.md        the model card
recordings.txt   the recordings that it was trained on, one a line
config.yaml      the configuration, resolved
"""

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

from sonify.config.loader import load_settings
from sonify.errors import InputError
from sonify.io.write import naming_full_disk
from train.card import CONFIG, TrainedOn, count_licences, make_card
from train.checkpoints import RECORDINGS, load_averaged, naming_system_errors
from train.commands import Parser, run_command
from train.config import TrainConfig
from train.metrics import read_metrics
from train.networks import load_networks, make_pipeline
from train.pipeline import AudioPixArtPipeline
from train.shards import FeatureData, open_feature_data


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="train.release", description="Make a pipeline of a checkpoint.", allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="folder of a training run")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    parser.add_argument("--out", type=Path, required=True, help="the pipeline's folder; a release there is replaced")
    arguments = parser.parse_args(argv)
    return run_command("train.release", lambda: _run(arguments))


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
        raise InputError(f"{run_dir}: not a training run: expected {CONFIG} in it; `python -m train.pixart` makes one")
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
    """Write a release, seen whole or not at all; one that is there is replaced.

    Args:
        out: its folder.
        pipeline: with the averaged weights.
        config: of the training run.
        data: what was trained on.
        metrics: the lines of the run's `metrics.jsonl`.
        step: of the weights.

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
    partial, old = _partial(out), out.with_name(f".{out.name}.old")
    try:
        with naming_full_disk(out), naming_system_errors():
            partial.mkdir(parents=True)
            pipeline.save_pretrained(partial, safe_serialization=True)
            settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            (partial / CONFIG).write_text(settings, encoding="utf-8")
            (partial / RECORDINGS).write_text("".join(f"{name}\n" for name in recordings), encoding="utf-8")
            card = make_card(config, trained_on, metrics[-1] if metrics else {})
            (partial / "README.md").write_text(card, encoding="utf-8")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def _find_place(out: Path) -> Path:
    """The folder that `out` means, which may be a link or a dot, where a release can be written."""
    place = Path(os.path.realpath(out))
    try:
        if not place.name or (_is_there(place) and not _is_replaceable(place)):
            raise InputError(f"--out {out}: holds something else than a release; choose a new folder")
        with naming_full_disk(place):
            shutil.rmtree(_partial(place), ignore_errors=True)
            _partial(place).mkdir(parents=True)
            _partial(place).rmdir()
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to ({error.strerror}); choose another place") from error
    return place


def _partial(place: Path) -> Path:
    return place.with_name(f".{place.name}.partial")


def _is_there(place: Path) -> bool:
    return place.is_symlink() or place.exists()  # a link here is one that leads to itself


def _is_replaceable(place: Path) -> bool:
    """A folder that is empty or one of our releases: another pipeline has no list of recordings."""
    return place.is_dir() and (not any(place.iterdir()) or (place / RECORDINGS).is_file())


if __name__ == "__main__":
    raise SystemExit(main())
