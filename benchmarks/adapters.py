"""Fine-tuning a part of a small text checkpoint against all of it; and min-SNR and token routing against neither.

    python -m benchmarks.adapters --data DIR [--what adapters | cheaper] [--seeds 2]

DIR holds `learning/` and `weights/`, as for `benchmarks.learning`. `adapters`: a transformer with random weights learns
photographs from a few vectors for each of six classes, in the place of a text, and is saved as a folder; from there
every way learns, for as many steps, to hear recordings of the classes. `cheaper`: from random weights at 256 tokens;
the steps of routed runs before their finish, which is a fifth of the plain run, take the seconds, and then the
operations, of the plain one's. Half of each class's photographs and the recordings of fold 5 are held out. One JSON
line a way: the error of the noise on what is held out, the share of it for which the error under its own class's sound
is below that under another's, and bytes as they were counted. Seconds are the process's, not the clock's. It is small,
and says nothing of how pictures look.

    B  images, C H W  channels, height and width of latents, T D  times and width of the condition
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.adapters", extra="dev"))

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.learning.collection import CLASSES, read_photos, read_recordings, read_squares
from benchmarks.learning.pairing import hear_alone
from benchmarks.learning.senses import Ear
from benchmarks.measure import cpu_name
from eval.projector_start import Held, judge
from sonify.config.loader import make_settings
from sonify.features.vae import encode, load_vae, scaling_factor
from sonify.models.fetch import VAE_FILES, fetch_model
from sonify.terminal import Parser, run_command
from tests.tiny_networks import taesd_folder
from train.averages import learning
from train.config import TrainConfig
from train.diffusion import NUM_TIMESTEPS
from train.loader import Batch, generator
from train.metrics import training_flops
from train.model import init_transformer
from train.pixart import loss_of
from train.trial import Trainee

HELD_FOLD = 5
SIDE_PX = 128
AUDIO_WIDTH, TEXT_WIDTH, TEXT_TOKENS = 521, 64, 4
TEXT_STEPS, STEPS, PLAIN_STEPS = 200, 80, 150
FINISH = 0.2  # of a routed run's budget
WAYS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "full, frozen": {"train": "adapters", "adapters": {"cross_attention": "full", "others": "frozen"}},
    "full, lora": {"train": "adapters", "adapters": {"cross_attention": "full", "others": "lora"}},
    "lora, frozen": {"train": "adapters", "adapters": {"cross_attention": "lora", "others": "frozen"}},
    "lora, lora": {"train": "adapters", "adapters": {"cross_attention": "lora", "others": "lora"}},
}
TEXT_MODEL = {"layers": 4, "heads": 4, "head_dim": 32, "sample_size": 16, "patch_size": 2}
ROUTED_MODEL = {"layers": 8, "heads": 4, "head_dim": 16, "sample_size": 16, "patch_size": 1}
BATCH = {"adapters": 32, "cheaper": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """Latents by class, and what is heard of a class, of each a condition (T, D)."""

    latents: Mapping[str, Tensor]
    audio: Mapping[str, Tensor]


def read_lessons(folder: Path, out: Path) -> tuple[Lessons, Lessons]:
    """What is learned from, and what is held out."""
    data, weights = folder / "learning", folder / "weights"
    vae_folder = taesd_folder(weights / "taesd", out / "taesd")
    vae = load_vae(fetch_model(str(vae_folder), None, VAE_FILES), torch.device("cpu"), torch.float32)
    photos, recordings = read_photos(data), read_recordings(data)
    ear = Ear(weights / "yamnet")
    heard = [hear_alone(data / "sounds", recording, ear) for recording in recordings]
    parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = [({}, {}), ({}, {})]
    for name in CLASSES:
        files = [data / "photos" / photo.file for photo in photos if photo.name == name]
        pixels_NHWC = read_squares(files, SIDE_PX)
        parts_NCHW = [encode(vae, part_BHWC).mean_BCHW for part_BHWC in np.array_split(pixels_NHWC, 4)]
        latents = torch.cat(parts_NCHW).float() * scaling_factor(vae)
        for n, (of_latents, of_audio) in enumerate(parts):
            of_latents[name] = latents[n::2]
            of_audio[name] = torch.stack(
                [
                    torch.from_numpy(one.audio_TD).float()
                    for one, recording in zip(heard, recordings, strict=True)
                    if recording.name == name and (recording.fold == HELD_FOLD) == bool(n)
                ]
            )
    first, second = (Lessons(latents=latents, audio=audio) for latents, audio in parts)
    return first, second


def text_lessons(lessons: Lessons) -> Lessons:
    """The same photographs with a few random vectors for each class, in the place of a text's."""
    shape = (1, TEXT_TOKENS, TEXT_WIDTH)
    return Lessons(
        latents=lessons.latents,
        audio={
            name: torch.from_numpy(generator(0, "text", name).standard_normal(shape, np.float32)) for name in CLASSES
        },
    )


def make_config(folder: Path, batch: int, steps: int, **sections: Any) -> TrainConfig:
    rate = {"learning_rate": 1e-3, "reference_batch": batch, "warmup_steps": 0, "clip_norm": 1.0, "ema_decay": 0.95}
    base = {
        "run_dir": str(folder / "run"),
        "max_steps": steps,
        "data": {"runs": [str(folder)]},
        "ast": None,
        "optimizer": rate,
        "batch": {"total": batch, "per_device": batch},
        "precision": "fp32",
        "compile": False,
    }
    return make_settings(base | sections, TrainConfig)


def draw_batch(lessons: Lessons, config: TrainConfig, step: int) -> Batch:
    """The images of a step, counted from 0, each with a sound of its class: the same for every way."""
    size = config.batch.total
    random = generator(config.seed, "benchmark", step)
    names = [CLASSES[n] for n in random.integers(len(CLASSES), size=size)]
    latents = torch.stack([_one_of(lessons.latents[name], random) for name in names])
    return Batch(
        position=step * size,
        keys=tuple(names),
        latents_BCHW=latents,
        noise_BCHW=torch.from_numpy(random.standard_normal(latents.shape, np.float32)),
        timesteps_B=torch.from_numpy(random.integers(NUM_TIMESTEPS, size=size)),
        audio_BTD=torch.stack([_one_of(lessons.audio[name], random) for name in names]),
        dropped_B=torch.from_numpy(random.random(size) < config.condition_dropout),
    )


def _one_of(rows: Tensor, random: np.random.Generator) -> Tensor:
    return rows[int(random.integers(len(rows)))]


def held_scenes(lessons: Lessons, per_class: int = 12) -> Held:
    """Held-out photographs, each with a sound of its class and one of the next."""
    rows = [(name, n) for name in CLASSES for n in range(min(per_class, len(lessons.latents[name])))]
    after: dict[str, str] = dict(zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True))
    return Held(
        keys=tuple(f"{name}-{n}" for name, n in rows),
        latents_NCHW=torch.stack([lessons.latents[name][n] for name, n in rows]),
        audio_NTD=torch.stack([lessons.audio[name][n % len(lessons.audio[name])] for name, n in rows]),
        other_NTD=torch.stack([lessons.audio[after[name]][n % len(lessons.audio[after[name]])] for name, n in rows]),
    )


def learn(lessons: Lessons, config: TrainConfig) -> tuple[Trainee, float]:
    """All steps of a configuration by the product's trainer, and the seconds of one."""
    model, _ = init_transformer(config.model, config.seed)
    null_TD = torch.zeros_like(next(iter(lessons.audio.values()))[0])
    trainee = Trainee(config, Accelerator(cpu=True), model, null_TD)
    began = time.process_time()
    for step in range(config.max_steps):
        trainee.step([draw_batch(lessons, config, step)])
    return trainee, (time.process_time() - began) / config.max_steps


def count_bytes(trainee: Trainee, config: TrainConfig, batch: Batch) -> dict[str, int]:
    """Of weights; of gradients, moments and average; and of what a step saves for its backward pass."""
    model = trainee.transformer
    weights = {parameter.untyped_storage().data_ptr(): parameter.nbytes for parameter in model.parameters()}
    state = sum(4 * parameter.numel() for parameter in learning(model).values())  # gradients
    state += sum(one.nbytes for each in trainee.learner.optimizer.state.values() for one in each.values())
    state += sum(average.nbytes for average in trainee.learner.ema.state_dict().values())
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            saved[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model, batch, torch.zeros_like(batch.audio_BTD[0]), config).total_B.mean()
    del loss
    return {
        "learning": sum(parameter.numel() for parameter in learning(model).values()),
        "weights_bytes": sum(weights.values()),
        "state_bytes": state,
        "saved_bytes": sum(saved.values()),
    }


def judge_averaged(trainee: Trainee, held: Held) -> tuple[float, float]:
    model = trainee.transformer
    with trainee.learner.ema.applied_to(model):
        torch.nn.Module.eval(model)
        return judge(model, held, 0, 64, torch.device("cpu"))


def report(name: str, way: str, judged: Sequence[tuple[float, float]], **facts: Any) -> None:
    """Print one line; a value of each seed."""
    losses, accuracies = zip(*judged, strict=True)
    rounded = {"held_loss": [round(one, 4) for one in losses], "accuracy": [round(one, 3) for one in accuracies]}
    print(json.dumps({"name": name, "way": way, **rounded, **facts, "cpu": cpu_name()}), flush=True)


def compare_adapters(train: Lessons, held: Held, folder: Path, seeds: int) -> None:
    batch = BATCH["adapters"]
    size = {"model": TEXT_MODEL | {"caption_channels": TEXT_WIDTH}}
    text, _ = learn(text_lessons(train), make_config(folder, batch, TEXT_STEPS, **size))
    text.learner.ema.copy_to(text.transformer)
    text.transformer.save_pretrained(folder / "text" / "transformer")
    init = {"kind": "checkpoint", "model": str(folder / "text")}
    model = TEXT_MODEL | {"caption_channels": AUDIO_WIDTH, "init": init}
    for way, sections in WAYS.items():
        judged, seconds, facts = [], [], {}
        for seed in range(seeds):
            config = make_config(folder, batch, STEPS, model=model, seed=seed, **sections)
            trainee, taken = learn(train, config)
            judged.append(judge_averaged(trainee, held))
            seconds.append(taken)
            facts = count_bytes(trainee, config, draw_batch(train, config, 0))
        report("adapters", way, judged, steps=STEPS, seconds_of_a_step=round(min(seconds), 4), **facts)


def compare_cheaper(train: Lessons, held: Held, folder: Path, seeds: int) -> None:
    batch, model = BATCH["cheaper"], ROUTED_MODEL | {"caption_channels": AUDIO_WIDTH}
    routing = {"share": 0.5, "first": 2, "last": 2}
    plain = make_config(folder, batch, PLAIN_STEPS, model=model)
    tokens = train.audio[CLASSES[0]].shape[1]
    _, full_sec = learn(train, make_config(folder, batch, 10, model=model))
    with_route = make_config(folder, batch, 10, model=model, routing=routing | {"finish_steps": 0})
    _, routed_sec = learn(train, with_route)
    ratios = {
        "equal seconds": full_sec / routed_sec,
        "equal operations": training_flops(plain, tokens) / training_flops(with_route, tokens),
    }
    runs: dict[str, tuple[int, Mapping[str, Any]]] = {
        "plain": (PLAIN_STEPS, {}),
        "min_snr 5": (PLAIN_STEPS, {"loss": {"min_snr": 5}}),
    }
    finish = round(FINISH * PLAIN_STEPS)
    for way, ratio in ratios.items():
        steps = finish + round((PLAIN_STEPS - finish) * ratio)
        runs[f"routed, {way}"] = steps, {"routing": routing | {"finish_steps": finish}}
    for way, (steps, sections) in runs.items():
        judged, seconds = [], []
        for seed in range(seeds):
            trainee, taken = learn(train, make_config(folder, batch, steps, model=model, seed=seed, **sections))
            judged.append(judge_averaged(trainee, held))
            seconds.append(round(steps * taken, 1))
        report("cheaper", way, judged, steps=steps, seconds=seconds)


COMPARED = {"adapters": compare_adapters, "cheaper": compare_cheaper}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="benchmarks.adapters", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--what", choices=tuple(COMPARED), default="adapters")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args(argv)

    def work() -> None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            train, held = read_lessons(arguments.data, Path(folder))
            COMPARED[arguments.what](train, held_scenes(held), Path(folder), arguments.seeds)

    return run_command("benchmarks.adapters", work)
