"""AudioToken's way of conditioning against ours, at equal compute, on real photographs and recordings at small size.

    python -m benchmarks.conditioning --data DIR --out runs/conditioning [--steps N] [--seeds 3]

(a) Ours: `train.pixart` learns a transformer from pairs of the same class. (b) AudioToken's way: a small UNet and CLIP
text tower learn from texts of the same photographs and are frozen; then an embedder learns on the same pairs to make a
word of a sound. `SHARE` of the floating-point operations that ours take go into the first phase, the rest into the
second. All begin with random weights, `--seeds` times each. Pictures of held-out recordings are judged as
`benchmarks.learning` judges them; DIR is as there. The same command goes on where it was stopped. OUT gets report.md,
result.json and grids of pictures; so few photographs are learned by heart, and they are for research only.

B  images, C H W  channels, height and width of latents, L D  places and width of a text
T F  times and width of a sound, N  models, R  recordings, S  seeds of pictures
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.conditioning", extra="dev"))

import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.learning.bench import Bench, Fold, ear_accuracy, eye_accuracy, held_out, open_bench
from benchmarks.learning.collection import CLASSES
from benchmarks.learning.judging import GUIDANCE, Judged, judge, load_pipeline, write_grid
from benchmarks.learning.pairing import Paired
from benchmarks.learning.senses import Eye
from benchmarks.learning.training import BATCH, SIDE_PX, encode_photos, train, training_config, write_features
from benchmarks.learning.verdicts import LEVEL, RESAMPLES, Estimate, balanced_accuracy
from sonify.features.vae import Vae, scaling_factor
from sonify.io.write import write_whole
from sonify.terminal import Parser, run_command
from train.config import TrainConfig
from train.diffusion import add_noise, diffusion_loss
from train.embedder import PLACEHOLDER, TRAINING_PROMPT, Embedder, TokenPrompt, make_noise_scheduler, token_loss
from train.model import init_transformer, predict

log = logging.getLogger(__name__)

SHARE = 2 / 3  # of all operations that go into the generator; what it cannot paint no word calls forth
TEXT_DROPOUT = 0.1  # as many images without a text as ours has without a sound
LEARNING_RATE, WARMUP_STEPS, CLIP_NORM = 1.0e-3, 100, 1.0  # those of ours
SAVE_EVERY = 50
PLACES = 16  # of a text; Stable Diffusion's 77 would be mostly padding
AUDIO_WIDTH = 521
TITLES = {"ours": "ours: the sound's vectors, attended to", "token": "AudioToken's way: one word of a frozen generator"}
CONDITIONS = ("audio", "wrong", "zeroed", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What both phases learn from: latents of each pair's photograph, its scenes, and the text of its class."""

    latents_NCHW: Tensor  # noqa: N815 - shape suffix
    audio_NSTF: Tensor  # noqa: N815 - shape suffix
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """A text-to-image model of one's own: UNet, text tower and its tokenizer."""

    unet: UNet2DConditionModel
    prompt: TokenPrompt
    sampler: PNDMScheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Operations of one step, forward and backward, and how many steps each part gets of ours' budget."""

    ours: int
    phase_1: int
    phase_2: int
    steps: int
    steps_1: int
    steps_2: int

    @property
    def spent(self) -> float:
        """Operations of AudioToken's way as a share of ours."""
        return (self.steps_1 * self.phase_1 + self.steps_2 * self.phase_2) / (self.steps * self.ours)


def text_of(name: str) -> str:
    """What a photograph of a class is called: the easiest text that there is to learn."""
    return f"a photo of a {name.replace('_', ' ')}"


def make_generator(seed: int) -> Generator:
    """One with random weights; a larger one would have too few steps of the same compute to learn anything."""
    tokenizer = make_tokenizer([*map(text_of, CLASSES), TRAINING_PROMPT.replace(PLACEHOLDER, "")])
    words = tokenizer.get_vocab()
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=PLACES, bos_token_id=words["<|startoftext|>"], eos_token_id=words["<|endoftext|>"],
        pad_token_id=words["<|endoftext|>"],
    )  # fmt: skip
    shape: dict[str, Any] = {
        "sample_size": SIDE_PX // 8,
        "block_out_channels": (64, 128),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "attention_head_dim": 4,  # heads, by the name that diffusers has for them
        "cross_attention_dim": 128,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, tower = UNet2DConditionModel(**shape), CLIPTextModel(text)
    sampler = PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True)
    return Generator(unet=unet, prompt=TokenPrompt(tower, tokenizer), sampler=sampler)


def make_tokenizer(texts: Sequence[str]) -> CLIPTokenizer:
    """One to which each word of these texts is one token, as frequent words are to CLIP's; always the same."""
    spelt = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted({word for text in texts for word in text.split()})]
    letters = sorted({letter for text in (*texts, PLACEHOLDER) for letter in text if letter != " "})
    merges: Any = []
    while pairs := Counter(pair for parts in spelt for pair in pairwise(parts)):
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))  # the library's trainer takes any of the equals
        spelt = [_merged(parts, merges[-1]) for parts in spelt]
    marks = ("<|startoftext|>", "<|endoftext|>")
    tokens = (*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), *marks)
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=PLACES)


def _merged(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    done: list[str] = []
    for part in parts:
        if done and (done[-1], part) == pair:
            done[-1] += part
        else:
            done.append(part)
    return done


def make_lessons(pairs: Sequence[Paired], photos: Path, vae: Vae) -> Lessons:
    """The pairs as arrays, in their order."""
    files = sorted({pair.photo.file for pair in pairs})
    latents = dict(zip(files, encode_photos(vae, [photos / file for file in files]), strict=True))
    stacked = np.stack([latents[pair.photo.file] for pair in pairs])
    return Lessons(
        latents_NCHW=torch.from_numpy(stacked).float() * scaling_factor(vae),
        audio_NSTF=torch.from_numpy(np.stack([[scene.audio_TD for scene in pair.scenes] for pair in pairs])).float(),
        texts=tuple(text_of(pair.photo.name) for pair in pairs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What one step learns from; the same for the same seed and step, however often it was stopped."""

    latents_BCHW: Tensor  # noqa: N815 - shape suffix
    noise_BCHW: Tensor  # noqa: N815 - shape suffix
    timesteps_B: Tensor  # noqa: N815 - shape suffix
    audio_BTF: Tensor  # noqa: N815 - shape suffix
    texts: tuple[str, ...]


def draw(lessons: Lessons, seed: int, step: int) -> Drawn:
    """A batch: pairs in an order that is drawn anew for each epoch, one of a pair's scenes, times, noise."""
    count = len(lessons.texts)
    places = [divmod(step * BATCH + n, count) for n in range(BATCH)]
    orders = {epoch: np.random.default_rng([seed, 1, epoch]).permutation(count) for epoch, _ in places}
    rows = [int(orders[epoch][place]) for epoch, place in places]
    rng = np.random.default_rng([seed, 2, step])
    scenes = rng.integers(lessons.audio_NSTF.shape[1], size=BATCH)
    latents_BCHW = lessons.latents_NCHW[rows]
    keeps = rng.random(BATCH) >= TEXT_DROPOUT
    return Drawn(
        latents_BCHW=latents_BCHW,
        noise_BCHW=torch.from_numpy(rng.standard_normal(tuple(latents_BCHW.shape), np.float32)),
        timesteps_B=torch.from_numpy(rng.integers(1000, size=BATCH)),
        audio_BTF=lessons.audio_NSTF[rows, torch.from_numpy(scenes)],
        texts=tuple(lessons.texts[row] if keep else "" for row, keep in zip(rows, keeps, strict=True)),
    )


def text_loss(generator: Generator, drawn: Drawn) -> Tensor:
    """Phase 1: the noise, by the text."""
    found = {text: n for n, text in enumerate(dict.fromkeys(drawn.texts))}
    text_XLD = torch.cat([generator.prompt.encode_text(text) for text in found])
    noise_BCHW = _predicted(generator, drawn, text_XLD[[found[text] for text in drawn.texts]])
    return (noise_BCHW.float() - drawn.noise_BCHW).square().mean()


def sound_loss(generator: Generator, embedder: Embedder, drawn: Drawn) -> Tensor:
    """Phase 2: the noise, by the sound's word; the loss is without the classification term, as upstream ships it."""
    token_BD = embedder(drawn.audio_BTF)
    noise_BCHW = _predicted(generator, drawn, generator.prompt(token_BD))
    return token_loss(noise_BCHW, drawn.noise_BCHW, token_BD).total_B.mean()


def _predicted(generator: Generator, drawn: Drawn, text_BLD: Tensor) -> Tensor:
    scheduler = make_noise_scheduler(generator.sampler)
    timesteps: Any = drawn.timesteps_B
    noisy_BCHW = scheduler.add_noise(drawn.latents_BCHW, drawn.noise_BCHW, timesteps)
    return generator.unet(noisy_BCHW, drawn.timesteps_B, text_BLD).sample


def learn(network: nn.Module, loss_of: Callable[[int], Tensor], steps: int, file: Path) -> None:
    """Train to `steps` from where `file` left off, and leave the average over the last tenth in the network.

    Rate, clipping and average are those of ours (`benchmarks.learning.training`).
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.03, eps=1e-10)
    mean = {name: value.detach().clone() for name, value in network.state_dict().items()}
    done = 0
    if file.is_file():
        state = torch.load(file, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        done, mean = state["step"], state["mean"]
    decay, warmup = max(0.0, 1 - 10 / steps), min(WARMUP_STEPS, steps)
    network.train()
    for step in range(done, steps):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)  # of the embedder's dropout
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(step)
            loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / warmup)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in network.state_dict().items():
            mean[name].lerp_(value, 1 - decay) if value.is_floating_point() else mean[name].copy_(value)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            log.info("%s: step %d of %d, loss %.4f", file.stem, step + 1, steps, loss.item())
            buffer = io.BytesIO()
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "mean": mean}
            torch.save({**state, "step": step + 1}, buffer)
            write_whole(file, buffer.getvalue())
    network.load_state_dict(mean)
    network.eval()


def train_token(lessons: Lessons, split: Split, seed: int, folder: Path) -> tuple[Generator, Embedder]:
    """Both phases; what was trained before is taken from the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = make_generator(seed)
    tower = generator.prompt.text_encoder.requires_grad_(True)
    drawn = partial(draw, lessons, seed)
    parts = nn.ModuleList([generator.unet, tower])
    learn(parts, lambda step: text_loss(generator, drawn(step)), split.steps_1, folder / f"text-{split.steps_1}.pt")
    parts.requires_grad_(False)
    embedder = make_embedder(seed)
    learn(
        embedder,
        lambda step: sound_loss(generator, embedder, drawn(split.steps_1 + step)),
        split.steps_2,
        folder / f"embedder-{split.steps_1}-{split.steps_2}.pt",
    )
    return generator, embedder


def make_embedder(seed: int) -> Embedder:
    """AudioToken's, of the ear that is here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Embedder(audio_width=AUDIO_WIDTH, token_width=128)


def split_budget(lessons: Lessons, config: TrainConfig) -> Split:
    """Count the operations of one step of each, and share ours' out."""
    drawn = draw(lessons, 0, 0)
    generator, embedder = make_generator(0), make_embedder(0)
    generator.prompt.text_encoder.requires_grad_(True)
    phase_1 = count_flops(lambda: text_loss(generator, drawn))
    nn.ModuleList([generator.unet, generator.prompt.text_encoder]).requires_grad_(False)
    phase_2 = count_flops(lambda: sound_loss(generator, embedder, drawn))
    transformer, _ = init_transformer(config.model, 0)

    def our_loss() -> Tensor:
        noisy_BCHW = add_noise(drawn.latents_BCHW, drawn.noise_BCHW, drawn.timesteps_B)
        output_BCHW = predict(transformer, noisy_BCHW, drawn.timesteps_B, drawn.audio_BTF)
        losses = diffusion_loss(output_BCHW, drawn.latents_BCHW, noisy_BCHW, drawn.noise_BCHW, drawn.timesteps_B)
        return losses.total_B.mean()

    ours = count_flops(our_loss)
    budget = config.max_steps * ours
    steps_1 = max(1, round(SHARE * budget / phase_1))
    steps_2 = max(1, round((budget - steps_1 * phase_1) / phase_2))
    return Split(ours=ours, phase_1=phase_1, phase_2=phase_2, steps=config.max_steps, steps_1=steps_1, steps_2=steps_2)


def count_flops(loss_of: Callable[[], Tensor]) -> int:
    """Floating-point operations of a loss and its gradients; attention is counted as the products that it is."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss_of().backward()
    return counter.get_total_flops()


class TokenPainter:
    """Makes pictures of sounds by their words, called as `judge` calls a pipeline; `text_R` in the place of sounds."""

    device = torch.device("cpu")

    def __init__(self, generator: Generator, embedder: Embedder, vae: Vae, text_R: Sequence[str] = ()) -> None:
        self.vae = vae
        self._generator = generator
        self._embedder = embedder
        self._text_R = text_R

    @torch.no_grad()
    def __call__(
        self,
        *,
        audio_features: np.ndarray,
        seeds: Sequence[int],
        guidance_scale: float,
        num_inference_steps: int,
        **_: Any,
    ) -> SimpleNamespace:
        """The latents, scaled as the autoencoder's are, in `images`."""
        prompt = self._generator.prompt
        if self._text_R:
            text_RLD = torch.cat([prompt.encode_text(text) for text in self._text_R])
        else:
            text_RLD = prompt(self._embedder(torch.from_numpy(audio_features).float()))
        nothing_RLD = prompt.encode_text("").expand_as(text_RLD)
        sampler: Any = DPMSolverMultistepScheduler.from_config(self._generator.sampler.config)
        sampler.set_timesteps(num_inference_steps)
        shape = (4, SIDE_PX // 8, SIDE_PX // 8)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latents_RCHW = torch.stack(noise) * sampler.init_noise_sigma
        for timestep in sampler.timesteps:
            both, states = latents_RCHW.repeat(2, 1, 1, 1), torch.cat([nothing_RLD, text_RLD])
            without, with_it = self._generator.unet(both, timestep, states).sample.float().chunk(2)
            guided = without + guidance_scale * (with_it - without)
            latents_RCHW = sampler.step(guided, timestep, latents_RCHW).prev_sample
        return SimpleNamespace(images=latents_RCHW)


def donors(true_R: np.ndarray, seed: int = 0) -> np.ndarray:
    """For each recording one of the next class, each used about as often."""
    rng = np.random.default_rng(seed)
    classes = np.unique(true_R)
    chosen = np.empty_like(true_R)
    for place, one in enumerate(classes):
        others = rng.permutation(np.flatnonzero(true_R == classes[(place + 1) % len(classes)]))
        wanting = np.flatnonzero(true_R == one)
        chosen[wanting] = np.resize(others, len(wanting))
    return chosen


def wrong_class(judged: Judged) -> Judged:
    """The same pictures, each held against a recording of another class than the one that it was made from."""
    from_R = donors(judged.true_R)
    return replace(judged, seen_RS=judged.seen_RS[from_R], first_RHWC=judged.first_RHWC[from_R])


def estimate_over(
    true_R: np.ndarray, uploads_R: np.ndarray, first_NR: np.ndarray, second_NR: np.ndarray | None = None
) -> Estimate:
    """Balanced accuracy over models and recordings, or how far the first system's is above the second's.

    The models (seeds of training) are drawn again and, within their class, the uploads with all their takes, which are
    the same for two systems. With three models the interval is only as good as three models let it be.
    """
    rng = np.random.default_rng(0)
    drawn, value = np.zeros(RESAMPLES), 0.0
    classes = np.unique(true_R)
    of_class = [
        [np.flatnonzero((true_R == one) & (uploads_R == upload)) for upload in np.unique(uploads_R[true_R == one])]
        for one in classes
    ]
    picks = [rng.integers(0, len(uploads), (RESAMPLES, len(uploads))) for uploads in of_class]
    for sign, right_NR in ((1, first_NR), (-1, second_NR)):
        if right_NR is None:
            continue
        count = len(right_NR)
        models = rng.integers(0, count, (RESAMPLES, count))
        for uploads, pick in zip(of_class, picks, strict=True):
            takes = np.array([len(rows) for rows in uploads])[pick].sum(axis=1)
            sums_NU = np.stack([right_NR[:, rows].sum(axis=1) for rows in uploads], axis=1)
            for n in range(count):
                drawn += sign * sums_NU[models[:, n, None], pick].sum(axis=1) / takes / count / len(classes)
        value += sign * balanced_accuracy(true_R, right_NR.mean(axis=0))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, low=float(low), high=float(high))


Results = Mapping[str, Mapping[str, Sequence[Judged]]]  # by system and condition, of each model


def judge_token(
    generator: Generator, embedder: Embedder, vae: Vae, held: tuple[np.ndarray, np.ndarray], pictures: int, eye: Eye
) -> dict[str, Judged]:
    """Pictures of the held-out conditions and classes, of no sound, and of the text that says the class."""
    audio_RTF, true_R = held
    texts = [text_of(CLASSES[n]) for n in true_R]
    painter: Any = TokenPainter(generator, embedder, vae)
    reader: Any = TokenPainter(generator, embedder, vae, texts)
    heard = judge(painter, audio_RTF, true_R, pictures, eye)
    return {
        "audio": heard,
        "wrong": wrong_class(heard),
        "zeroed": judge(painter, np.zeros_like(audio_RTF), true_R, pictures, eye),
        "text": judge(reader, audio_RTF, true_R, pictures, eye),
    }


def judge_ours(folder: Path, held: tuple[np.ndarray, np.ndarray], pictures: int, eye: Eye) -> dict[str, Judged]:
    """Pictures of the held-out conditions and classes, and of no sound."""
    audio_RTF, true_R = held
    pipeline = load_pipeline(folder)
    heard = judge(pipeline, audio_RTF, true_R, pictures, eye)
    zeroed = judge(pipeline, np.zeros_like(audio_RTF), true_R, pictures, eye)
    return {"audio": heard, "wrong": wrong_class(heard), "zeroed": zeroed}


def measure(data: Path, out: Path, steps: int, num_models: int, fold: int, pictures: int) -> tuple[str, dict]:
    """Do everything; the page and the line are written to `out` as well."""
    bench = open_bench(data, out)
    eye, ear = eye_accuracy(bench), ear_accuracy(bench, [fold])
    pairs = Fold(bench, fold).pairs("a")
    folder = bench.out / f"fold-{fold}"
    features = write_features(pairs, bench.data / "photos", bench.vae, bench.vae_folder, folder / "features-a")
    lessons = make_lessons(pairs, bench.data / "photos", bench.vae)
    config = training_config(features, bench.vae_folder, folder / f"ours-{steps}", steps)
    split = split_budget(lessons, config)
    log.info("operations of a step: %s", split)
    held, uploads_R = _held(bench, fold)
    judged: dict[str, dict[str, list[Judged]]] = {"ours": {}, "token": {}}
    for seed in range(num_models):
        ours = folder / f"ours-{steps}-seed-{seed}"
        train(config.model_copy(update={"run_dir": ours, "seed": seed}))
        for condition, one in judge_ours(ours / "pipeline", held, pictures, bench.eye).items():
            judged["ours"].setdefault(condition, []).append(one)
        generator, embedder = train_token(lessons, split, seed, folder / f"token-{steps}-seed-{seed}")
        for condition, one in judge_token(generator, embedder, bench.vae, held, pictures, bench.eye).items():
            judged["token"].setdefault(condition, []).append(one)
    for system, conditions in judged.items():
        for condition, of_models in conditions.items():
            write_grid(of_models[0], out / f"grid-{system}-{condition}.png")
    sizes = {"ours": _count(init_transformer(config.model, 0)[0])}
    sizes |= {"unet": _count(make_generator(0).unet), "text_tower": _count(make_generator(0).prompt.text_encoder)}
    sizes |= {"embedder": _count(make_embedder(0))}
    facts = {
        "fold": fold,
        "models": num_models,
        "pictures": pictures,
        "uploads": len(set(uploads_R)),
        "eye": round(eye, 4),
        "ear": round(ear, 4),
    }
    line = json_line(judged, uploads_R, split, parameters=sizes, guidance=GUIDANCE, **facts)
    page = markdown(judged, uploads_R, split)
    (out / "report.md").write_text(page)
    (out / "result.json").write_text(json.dumps(line, indent=1) + "\n")
    return page, line


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _held(bench: Bench, fold: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Conditions and classes of the held-out recordings, and the uploads: `5-9032-B-0.flac` is a take of 9032."""
    held = held_out(bench, fold)
    audio_RTF = np.stack([one.audio_TD for one in held])
    true_R = np.array([CLASSES.index(one.names[0]) for one in held])
    return (audio_RTF, true_R), np.array([Path(one.recordings[0]).name.split("-")[1] for one in held])


def estimates(judged: Results, uploads_R: np.ndarray) -> dict[str, Estimate]:
    """Balanced accuracies of each system and condition, and the differences."""
    true_R = judged["ours"]["audio"][0].true_R
    right = {
        f"{system} {condition}": np.stack([one.right_R for one in of_models])
        for system, conditions in judged.items()
        for condition, of_models in conditions.items()
    }
    found = {name: estimate_over(true_R, uploads_R, each) for name, each in right.items()}
    for system in judged:
        audio = right[f"{system} audio"]
        for control in ("wrong", "zeroed"):
            difference_NR = audio - right[f"{system} {control}"]  # of the same models
            found[f"{system} audio - {control}"] = estimate_over(true_R, uploads_R, difference_NR)
    found["ours - token"] = estimate_over(true_R, uploads_R, right["ours audio"], right["token audio"])
    return found


def each_model(judged: Results) -> dict[str, list[float]]:
    """The balanced accuracy of every single model on held-out sounds."""
    return {
        system: [round(balanced_accuracy(one.true_R, one.right_R), 4) for one in conditions["audio"]]
        for system, conditions in judged.items()
    }


def markdown(judged: Results, uploads_R: np.ndarray, split: Split) -> str:
    """The whole page."""
    found = estimates(judged, uploads_R)
    lines = [f"## Balanced accuracy on held-out recordings (chance {100 / len(CLASSES):.1f} %)", ""]
    lines += ["| conditioning | held-out audio | of a wrong class | audio zeroed | the class's text | each model |"]
    lines += ["|---|---|---|---|---|---|"]
    for system, title in TITLES.items():
        cells = [str(found.get(f"{system} {condition}", "-")) for condition in CONDITIONS]
        singles = ", ".join(f"{100 * one:.1f}" for one in each_model(judged)[system])
        lines.append(f"| {' | '.join([title, *cells, singles])} |")
    lines += ["", f"ours less AudioToken's way: {found['ours - token']}", ""]
    lines += [
        f"Operations: ours {split.steps} steps of {split.ours / 1e9:.1f} G; AudioToken's way {split.steps_1} steps of"
        f" {split.phase_1 / 1e9:.1f} G by text and {split.steps_2} of {split.phase_2 / 1e9:.1f} G by sound,"
        f" {100 * split.spent:.1f} % of ours."
    ]
    return "\n".join([*lines, ""])


def json_line(judged: Results, uploads_R: np.ndarray, split: Split, **facts: object) -> dict:
    """Everything that the page says, as plain values."""
    figures = {
        name: [round(value, 4) for value in (one.value, one.low, one.high)]
        for name, one in estimates(judged, uploads_R).items()
    }
    counted = {name: getattr(split, name) for name in Split.__slots__}
    return {
        "name": "conditioning", **facts, "flops": counted | {"spent": round(split.spent, 4)},
        "balanced_accuracy": figures, "each_model": each_model(judged),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="benchmarks.conditioning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/conditioning"))
    parser.add_argument("--steps", type=int, default=400, help="of each model of ours")
    parser.add_argument("--seeds", type=int, default=3, help="models of each system")
    parser.add_argument("--fold", type=int, default=5, help="is held out")
    parser.add_argument("--pictures", type=int, default=4, help="of each held-out recording")
    arguments = parser.parse_args(argv)

    def work() -> None:
        page, line = measure(
            arguments.data, arguments.out, arguments.steps, arguments.seeds, arguments.fold, arguments.pictures
        )
        print(page)
        print(json.dumps(line))

    return run_command("benchmarks.conditioning", work)
