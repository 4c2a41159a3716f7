"""Run directories with features in them, written by the engine as `sonify features` does: random or given arrays."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sonify.config.loader import make_config
from sonify.engine.job import Job, Stage, Task, run_task
from sonify.engine.record import read_record, start_record, with_stage, write_record
from sonify.features.samples import FeatureSample, FeatureSink, encode_npy
from sonify.io.commits import canonical_json
from sonify.keys import member_name
from sonify.rows import Rejected

VAE = "a-vae"
AST = "an-ast"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeSample:
    """What becomes a training sample; arrays are stored as float16.

    `more` are further arrays by member (`latent_std`, `latent_flip`, `latent_flip_std`), `foreign` further members by
    their whole names, which no true run has. What is heard is the same in
    all scenes: `label`, in each of `recordings`; what is empty is made up.
    """

    key: str
    latent_CHW: np.ndarray  # noqa: N815 - shape suffix
    audio_TD: Mapping[str, np.ndarray]  # noqa: N815 - shape suffix; by scene
    split: str = "train"
    more: Mapping[str, np.ndarray] = field(default_factory=dict)
    foreign: Mapping[str, bytes] = field(default_factory=dict)
    caption: str = ""
    label: str = ""
    recordings: tuple[str, ...] = ()


def random_samples(
    count: int,
    *,
    split: str = "train",
    scenes: Sequence[str] = ("captions",),
    latent_shape: tuple[int, int, int] = (4, 8, 8),
    audio_shape: tuple[int, int] = (5, 16),
    seed: int = 0,
    std: bool = False,
    flip: bool = False,
) -> list[MadeSample]:
    """Samples of normal numbers; the keys are `train-0-000000` and so on (split, seed, number)."""
    rng = np.random.default_rng([seed, len(split)])
    stds = [name for name in ("latent_std", "latent_flip_std") if std and (flip or "flip" not in name)]

    def make(n: int) -> MadeSample:
        flipped = {"latent_flip": rng.standard_normal(latent_shape)} if flip else {}
        return MadeSample(
            key=f"{split}-{seed}-{n:06d}",
            latent_CHW=rng.standard_normal(latent_shape),
            audio_TD={scene: rng.standard_normal(audio_shape) for scene in scenes},
            split=split,
            more=flipped | {name: np.full(latent_shape, 0.25) for name in stds},
        )

    return [make(n) for n in range(count)]


def make_feature_run(
    run_dir: Path,
    samples: Sequence[MadeSample] | None = None,
    *,
    num_images: int = 8,
    num_validation: int = 0,
    scenes: Sequence[str] = ("captions",),
    latent_shape: tuple[int, int, int] = (4, 8, 8),
    audio_shape: tuple[int, int] = (5, 16),
    seed: int = 0,
    units: int = 2,
    std: bool = False,
    flip: bool = False,
    features: Mapping[str, Any] | None = None,
    models: Mapping[str, str] | None = None,
    lufs: tuple[float, float] = (-32.0, -28.0),
) -> Path:
    """Write run.json, and in `units` committed units the given samples, or random ones where None.

    Args:
        run_dir: the run that is made, or is made anew.
        samples: what is stored; `num_images` to `seed` describe the random ones and count for nothing else.
        num_images: training samples.
        num_validation: validation samples.
        scenes: of each image.
        latent_shape: (C, H, W); the side in pixels is eight times as long and at least 64.
        audio_shape: (T, D).
        seed: of the random arrays; also in the keys.
        units: into how many the samples go, in order; each has at most one archive of each split.
        std: whether there are standard deviations; given samples must have what this and `flip` say.
        flip: whether there are latents of mirrored images.
        features: keys of `config["features"]` beside the defaults (`vae`: "a-vae", `ast`: "an-ast").
        models: identities by model; "<name>-identity" for those of `features` that are not named.
        lufs: `mix.lufs`.

    Returns:
        The run.
    """
    if samples is None:
        shapes: dict[str, Any] = {"scenes": scenes, "latent_shape": latent_shape, "audio_shape": audio_shape}
        shapes |= {"seed": seed, "std": std, "flip": flip}
        samples = random_samples(num_images, **shapes)
        samples += random_samples(num_validation, split="validation", **shapes)
    side = max(64, 8 * samples[0].latent_CHW.shape[-1]) if samples else 64
    asked = {"vae": VAE, "ast": AST, "size": side, "flip": flip, "std": std} | dict(features or {})
    stage = _record(run_dir, asked, models or {}, lufs)
    parts = {f"{n:06d}": [samples[i] for i in block] for n, block in enumerate(_blocks(len(samples), units))}
    job = Job(
        read=lambda unit: iter(sorted(parts[unit], key=lambda sample: sample.key)),
        process=_pack,
        open_sink=lambda unit, transaction, _rejects: FeatureSink(transaction, unit),
        batch_rows=64,
    )
    for unit, rows in parts.items():
        task = Task(stage=stage.name, part="", unit=unit, digest=stage.digest, inputs={}, rows_expected=len(rows))
        run_task(run_dir, job, task, crashed={})
    return run_dir


def _blocks(count: int, units: int) -> Iterator[range]:
    for n in range(units):
        yield range(n * count // units, (n + 1) * count // units)


def _record(run_dir: Path, features: Mapping[str, Any], models: Mapping[str, str], lufs: tuple[float, float]) -> Stage:
    """Write run.json, as a run that has come to its features has it."""
    raw = {
        "run_dir": str(run_dir),
        "images": {"kind": "folder", "path": "photos"},
        "audio": {"sources": [{"kind": "folder", "path": "sounds"}]},
        "features": dict(features),
        "mix": {"lufs": lufs},
    }
    config = make_config(raw, check_paths=False)
    assert config.features is not None
    resolved = config.features.model_dump(mode="json")
    stage = Stage(
        name="features",
        version=1,
        listing="concepts",
        settings={f"features.{key}": value for key, value in resolved.items()},
        load=_unused,
    )
    networks = (config.features.vae, config.features.ear.model)
    identities = {name: f"{name}-identity" for name in networks} | dict(models)
    record = with_stage(start_record(config, read_record(run_dir)), stage)
    write_record(run_dir, replace(record, models=identities))
    return stage


def _unused() -> Job:
    raise AssertionError("the stage is loaded by nobody")


def _pack(samples: Sequence[MadeSample]) -> list[FeatureSample | Rejected]:
    return [_pack_one(sample) for sample in samples]


def _pack_one(sample: MadeSample) -> FeatureSample:
    arrays = {"latent": sample.latent_CHW, **sample.more}
    arrays |= {f"{scene}.audio": audio for scene, audio in sample.audio_TD.items()}
    members = [
        (member_name(sample.key, f"{name}.npy"), encode_npy(array.astype(np.float16))) for name, array in arrays.items()
    ]
    recordings = sample.recordings or (f"recording-of-{sample.key}",)
    record = (member_name(sample.key, "json"), canonical_json(_describe(sample, recordings)).encode())
    return FeatureSample(
        key=sample.key,
        split=sample.split,
        members=tuple(sorted([*members, record, *sample.foreign.items()])),
        recordings=tuple(sorted(recordings)),
    )


def _describe(sample: MadeSample, recordings: Sequence[str]) -> dict[str, Any]:
    label = sample.label or "dog"
    sources = [
        {"concept": label, "description": f"sound of {label}", "label": label, "clip": f"{name}#0", "recording": name}
        for name in recordings
    ]
    caption = sample.caption or f"a photo called {sample.key}"
    return {
        "key": sample.key,
        "split": sample.split,
        "image_uri": f"photos/{sample.key}.jpg",
        "scenes": [{"scene": scene, "caption": caption, "sources": sources} for scene in sample.audio_TD],
    }
