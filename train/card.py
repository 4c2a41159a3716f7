"""The card of a released model, README.md: what it is, how it is used, what it was trained on, under which licences."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from sonify.dataset.format import PAPER, escape, plain
from sonify.dataset.licences import HUB_LICENCES, disagreements
from sonify.errors import InputError, did_you_mean
from sonify.models.fetch import fetch_model
from sonify.pool import clip_columns
from train.averages import Held
from train.checkpoints import RECORDINGS, learned_from, projector_recordings
from train.config import CONFIG, AudioTokenConfig, TrainConfig, Training, peak_rate
from train.shards import FeatureData
from train.stable_diffusion import sd_files

CARD = "README.md"
NOT_KNOWN = "not known"
# The card's head where nobody chose: a release of one's own, which is not uploaded.
NOT_CHOSEN = "not-chosen"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
METRICS_HEAD = "One training step's figures, the last that was logged; they are not an evaluation:\n"
# Of the last line of `metrics.jsonl`, in this order, with what each is.
REPORTED = {
    "step": "step",
    "loss": "loss: what is minimised, the sum of what follows by its weights",
    "mse": "squared error of the noise",
    "vb": "variational bound, bits",
    "l1": "mean absolute value of a token",
    "l2sq": "squared length of a token",
    "classification": "the classification term, before its weight",
}
# As the models' own cards state them.
NETWORK_LICENCES = {
    "PixArt-alpha/PixArt-XL-2-512x512": "openrail++",
    "stabilityai/sd-vae-ft-ema": "mit",
    "MIT/ast-finetuned-audioset-10-10-0.4593": "bsd-3-clause",
    "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
}
RAIL = "openrail"  # licences of this family bind what is made of a model to the same uses


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What whoever publishes a model says of it: its licence, the images', and the repository that it goes to.

    A licence is one of the hub's names or the address of its text; a model that stays where it is needs none.
    """

    licence: str | None = None
    image_licence: str | None = None
    repo: str | None = None


NOTHING_SAID = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedOn:
    """What a model has seen: `licences` counts recordings, `lufs` are the ranges of loudness of its runs' sources.

    `runs_of_models` counts the runs in which models chose the sounds, `runs_of_pairs` those in which somebody did
    (`train.pairs`). `of_projector` counts the recordings of the projector that it began with, which are among the
    others; None where nobody named them.
    `networks` are its frozen networks with their identities: commits of the hub, or digests of folders. `system` is the
    name that says by what it hears.
    """

    step: int
    num_images: int
    recordings: Sequence[str]
    licences: Mapping[str, int]
    lufs: Sequence[tuple[float, float]]
    networks: Mapping[str, str]
    system: str = ""
    runs_of_models: int = 1
    runs_of_pairs: int = 0
    of_projector: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What tells one kind of model from another on its card.

    `base` is what training began with or what the model holds as it is: its name, the revision where it is pinned, and
    what the card calls that; None where all began with random weights. `ear` is None where it hears no sound itself.
    """

    what: str
    tags: tuple[str, ...]
    base: tuple[str, str | None, str] | None
    ear: str | None
    citations: tuple[str, ...]


def about(config: Training) -> About:
    """What the card says of the model of a configuration."""
    if isinstance(config, AudioTokenConfig):
        return _about_audiotoken(config)
    assert isinstance(config, TrainConfig)
    return _about_pixart(config)


def _about_pixart(config: TrainConfig) -> About:
    model, init = config.model, config.model.init
    began = (init.model, init.revision, "Training began with") if init.kind == "checkpoint" else None
    heard = " and its AST" if config.ast else ""
    return About(
        what=f"""An audio-conditioned PixArt-alpha with its VAE{heard}: {model.layers} blocks of width
{model.width}, {model.sample_size} x {model.sample_size} latents, a condition of vectors of
{model.caption_channels} numbers.""",
        tags=("pixart-alpha", "diffusion-transformer", f"arxiv:{PAPER}"),
        base=began,
        ear=config.ast,
        citations=("petermann2025seeing", "chen2023pixart", "gong2021ast"),
    )


def _about_audiotoken(config: AudioTokenConfig) -> About:
    ear = config.encoder.kind
    return About(
        what=f"""A Stable Diffusion as it is, and an embedder that makes of a sound the word
`{config.placeholder}` in `{config.sampling_prompt}`.
Only the embedder was trained, with the prompt `{config.prompt}`.""",
        tags=("audiotoken", "stable-diffusion", "arxiv:2305.13050"),
        base=(config.sd, config.sd_revision, "It holds, unchanged,"),
        ear=config.encoder.model,
        citations=("yariv2023audiotoken", "rombach2022high", "chen2023beats" if ear == "beats" else "gong2021ast"),
    )


def describe_data(config: Training, data: FeatureData, step: int) -> TrainedOn:
    """Count what a run has read.

    Raises:
        InputError: the recordings beside the projector cannot be read.
        WorkError: a table of a pool is damaged.
    """
    of_pairs = sum(run.own_pairs for run in data.runs.values())
    recordings, of_projector = learned_from(config, data), projector_recordings(config)
    networks = {config.vae: data.features.vae_identity}
    if isinstance(config, AudioTokenConfig):
        networks[config.sd] = fetch_model(config.sd, config.sd_revision, sd_files(with_vae=False)).identity
    if (ear := about(config).ear) is not None:
        networks[ear] = data.features.ear_identity
    return TrainedOn(
        step=step,
        num_images=data.num_images,
        recordings=recordings,
        licences=count_licences((Path(str(run)) for run in config.data.runs), recordings),
        lufs=sorted({run.lufs for run in data.runs.values()}),
        networks=networks,
        system=data.features.audiotoken if isinstance(config, AudioTokenConfig) else "",
        runs_of_models=len(data.runs) - of_pairs,
        runs_of_pairs=of_pairs,
        of_projector=None if of_projector is None else len(set(of_projector)),
    )


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


def check_model_licence(licence: str) -> str | None:
    """Refuse what chooses no licence; say what is odd about one that the hub may not know.

    Raises:
        InputError: it is neither a name as the hub has them nor an address.
    """
    if is_address(licence):
        return None
    if licence in ("other", "unknown", NOT_CHOSEN) or not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise InputError(
            f"--licence {plain(licence, 200)!r}: names no licence: expected a name as the hub has them, such as"
            f" cc-by-nc-4.0 or openrail++, or the address of its text{did_you_mean(licence, HUB_LICENCES, 0.7)}"
        )
    if licence in HUB_LICENCES:
        return None
    close = did_you_mean(licence, HUB_LICENCES, 0.7)
    return f"{licence} is not among the hub's licences known here, and the hub refuses what it does not know{close}"


def is_address(licence: str) -> bool:
    """Whether a licence is named by where its text lies."""
    return re.fullmatch(r"https://[\w.-]+/[^\s\"<>\\^`{|}]*", licence) is not None


def objections(config: Training, trained_on: TrainedOn, terms: Terms) -> tuple[str, ...]:
    """What speaks against the licence that was chosen: the recordings', the images', and the model's it began with."""
    if terms.licence is None:
        return ()
    found = disagreements(terms.licence, trained_on.licences, "recordings")
    if terms.image_licence:
        found += disagreements(terms.licence, {terms.image_licence: trained_on.num_images}, "images")
    base = base_model(config)
    begun = NETWORK_LICENCES.get(base or "", "")
    if RAIL in begun and RAIL not in terms.licence:
        found += (f"it began with {base}, whose licence, {begun}, binds what is made of it to the same uses",)
    return found


def base_model(config: Training) -> str | None:
    """The hub id of the weights that the model began with or holds; a folder is nobody else's business."""
    base = about(config).base
    return base[0] if base and not is_folder(base[0]) else None


def is_folder(model: str) -> bool:
    """Whether a model is a folder rather than a hub id."""
    return Path(model).expanduser().is_dir() or not HUB_ID.fullmatch(model)


def make_card(  # noqa: PLR0913 - what a card is made of
    config: Training,
    trained_on: TrainedOn,
    metrics: Mapping[str, float],
    *,
    held: Held,
    terms: Terms,
    code: Mapping[str, str],
    files_bytes: int,
) -> str:
    """The card's text, with its metadata at the top; `metrics` is one line of `metrics.jsonl`, or empty, `held` says
    which average of the weights it is, and `code` the sha256 of each file of code."""
    licence, licence_name, licence_link = _licence_of_head(terms.licence)
    data = ModelCardData(
        license=licence,
        license_name=licence_name,
        license_link=licence_link,
        library_name="diffusers",
        pipeline_tag="any-to-any",  # the hub has no task from sound to image
        tags=["audio-to-image", *about(config).tags[:-1], "sonify", about(config).tags[-1]],
        base_model=base_model(config),
    )
    sections = (
        _head(config, trained_on, files_bytes),
        _usage(config, terms.repo or "you/name", code),
        _data(config, trained_on),
        _training(config, metrics, held, trained_on.step),
        _licences(config, trained_on, terms),
        _limits(trained_on.runs_of_models, trained_on.runs_of_pairs),
        _citation(config),
    )
    text = "\n".join(sections)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _licence_of_head(licence: str | None) -> tuple[str, str | None, str | None]:
    """The hub's name of a licence and, where it has none, what it is called and where it stands."""
    if licence is None:
        return "other", NOT_CHOSEN, CARD
    return ("other", "own", licence) if is_address(licence) else (licence, None, None)


def _head(config: Training, trained_on: TrainedOn, files_bytes: int) -> str:
    said = about(config)
    named = f"`{trained_on.system}`. " if trained_on.system else ""
    if trained_on.system not in ("", "audiotoken"):
        named = f"`{trained_on.system}`, not the published AudioToken, which hears by BEATs, layers 4, 8 and 12. "
    return f"""# Images from sounds

{named}{said.what} {_began(said)}{_projected(config, trained_on)}
All weights are safetensors, {files_bytes / 1e6:,.1f} MB.
"""


def _projected(config: Training, trained_on: TrainedOn) -> str:
    if not isinstance(config, TrainConfig) or config.model.init.projector is None:
        return ""
    heard = (
        f"its {trained_on.of_projector:,} recordings are named in `{RECORDINGS}` as well"
        if trained_on.of_projector is not None
        else f"which recordings it heard is not known: no `{RECORDINGS}` lay beside it"
    )
    return f"\nIts projector was trained before, on sounds and texts (`train.projector`); {heard}."


def _began(said: About) -> str:
    if said.base is None:
        return "Training began with random weights."
    model, revision, verb = said.base
    return f"{verb} `{shown(model)}`{f' (`{revision}`)' if revision else ''}."


OWN = """\
Where sonify is installed, it runs its own code and no file of this repository:

    sonify generate --model {name} --audio a.wav --out out.png
"""


def _usage(config: Training, name: str, code: Mapping[str, str]) -> str:
    hears = about(config).ear is not None
    heard = (
        'images = pipeline("dog.wav").images  # one for each window of `pipeline.config["clip_seconds"]`'
        if hears
        else "images = pipeline(audio_features=features_BTD).images  # the condition is not AST's: bring your own"
    )
    files = "\n".join(f"The sha256 of `{name}` is `{sha256}`." for name, sha256 in code.items())
    return f"""## Use

`{name}` is this repository, or the folder of its files. With diffusers, and nothing of the toolkit that made it:

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}", custom_pipeline="{name}", trust_remote_code=True)
{heard}
```

`trust_remote_code=True` runs code of this repository on your machine, with your rights: read it first.
{files}
To keep to what you have read, name its commit as `revision` and as `custom_revision`.

{OWN.format(name=name) if hears else ""}"""


def _data(config: Training, trained_on: TrainedOn) -> str:
    runs = ", ".join(f"`{Path(str(run)).name}`" for run in config.data.runs)
    lufs = ", ".join(f"{low:g} to {high:g} LUFS" for low, high in trained_on.lufs)
    return f"""## Data

| what | how many |
|---|---|
| runs of `sonify` | {len(config.data.runs)}: {runs} |
| split | {config.data.split} |
| images | {trained_on.num_images:,} |
| recordings | {len(trained_on.recordings):,}, all named in `{RECORDINGS}` |
| visits of an image, on average | {trained_on.step * config.batch.total / trained_on.num_images:,.1f} |
| loudness of each source (`mix.lufs`) | {lufs} |

Every clip of a recording was brought to a loudness of that range by itself, and then mixed: how loud it was within its
recording, the model has not seen. The pipeline does so too (`level="window"`); with `level="recording"` a recording's
quiet stretches stay quiet.
"""


def _training(config: Training, metrics: Mapping[str, float], held: Held, step: int) -> str:
    lines = [f"| {text} | {_number(metrics[key])} |" for key, text in REPORTED.items() if key in metrics]
    table = (
        "\n".join([METRICS_HEAD, "| what | of that step |", "|---|---|", *lines]) if lines else "Metrics: not logged."
    )
    rate = peak_rate(config.optimizer, config.batch.total)
    ways = "".join(f"{way}\n" for way in _ways(config)) if isinstance(config, TrainConfig) else ""
    return f"""## Training

The weights are {held.rule}, after step {step:,}.
{_choice(held)}{ways}
Total batch {config.batch.total}, learning rate {rate:.3g},
condition dropout {config.condition_dropout}, precision {config.precision}, seed {config.seed}; everything else is in
`{CONFIG}`.

{table}
"""


def _ways(config: TrainConfig) -> Iterator[str]:
    """What of the training was not as usual."""
    if config.train == "adapters":
        rounded = ", rounded to bfloat16" if config.precision == "bf16" else ""
        yield f"Only adapters were trained ({config.adapters}); all else is the model that it began with{rounded}."
    if config.data.scenes == "remix":
        yield "Each visit of an image heard a scene mixed anew: the recordings are all that may have been heard."
    if config.routing:
        yield f"Tokens were routed around the middle blocks ({config.routing})."
    if config.loss.min_snr:
        yield f"The error was weighed by min-SNR-{config.loss.min_snr:g}."


def _choice(held: Held) -> str:
    """The losses that a length was chosen by, where it was."""
    if not held.losses:
        return ""
    rows = "\n".join(f"| {length:g} | {loss:.5f} |" for length, loss in held.losses.items())
    return f"""That length was chosen by the squared error of the predicted noise on {held.images:,} images of the
validation split, and by no evaluation:

| length | error |
|---|---|
{rows}
"""


def _licences(config: Training, trained_on: TrainedOn, terms: Terms) -> str:
    rows = "\n".join(f"| {_cell(licence)} | {count:,} |" for licence, count in trained_on.licences.items())
    networks = "\n".join(f"| {' | '.join(row)} |" for row in _networks(config, trained_on))
    images = (
        f"The licence of the images, as the publisher states it: {escape(terms.image_licence)}."
        if terms.image_licence
        else "The licences of the images are those of their collections, which the runs do not record."
    )
    against = [f"- {escape(one, 500)}" for one in objections(config, trained_on, terms)]
    weighed = "\n".join(["", "What has to be weighed against it:", "", *against, ""]) if against else ""
    return f"""## Licences

{_chosen(terms.licence)}
{weighed}
Of the recordings, as the pools state them:

| licence | recordings |
|---|---|
{rows}

{images}

Networks that this one holds or began with:

| network | its commit or digest | its licence |
|---|---|---|
{networks}
"""


def _chosen(licence: str | None) -> str:
    if licence is None:
        return "The licence of these weights is not chosen: whoever publishes them has to."
    return f"These weights are under {f'<{licence}>' if is_address(licence) else f'`{licence}`'}."


def _networks(config: Training, trained_on: TrainedOn) -> list[tuple[str, str, str]]:
    """Name, identity and licence of each; of a folder of this machine its last name."""
    known = dict(trained_on.networks)
    if (base := about(config).base) is not None and base[0] not in known:
        known = {base[0]: base[1] or "not pinned", **known}
    return [
        (f"`{shown(name)}`", f"`{identity}`", NETWORK_LICENCES.get(name, "see its card"))
        for name, identity in known.items()
    ]


def _limits(of_models: int, of_pairs: int) -> str:
    def which(runs: int) -> str:
        return f"In {runs} of {of_models + of_pairs} runs, which" if of_models and of_pairs else "Which"

    chosen = f"""- {which(of_models)} sound belongs to which image was chosen by models that look at images
  and compare texts; nobody heard the images' own sound. What such models wrongly associate, this one has learned.
"""
    paired = f"""- {which(of_pairs)} sound belongs to which image was decided by whoever made the
  pairs (`train.pairs`), and by no model: how well they fit was not measured.
"""
    return f"""## Limits

- Image quality (FID), agreement of image and sound (AIS, IIS): not measured.
- Behaviour on sounds unlike those in the data: not measured.
{chosen if of_models else ""}{paired if of_pairs else ""}"""


PAPERS = {
    "petermann2025seeing": """\
  title         = {Seeing Sound: Assembling Sounds from Visuals for Audio-to-Image Generation},
  author        = {Petermann, Darius and Kalayeh, Mahdi M.},
  year          = {2025},
  eprint        = {2501.05413},
  archivePrefix = {arXiv}""",
    "chen2023pixart": """\
  title         = {PixArt-$\\alpha$: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image
                   Synthesis},
  author        = {Chen, Junsong and others},
  year          = {2023},
  eprint        = {2310.00426},
  archivePrefix = {arXiv}""",
    "gong2021ast": """\
  title         = {AST: Audio Spectrogram Transformer},
  author        = {Gong, Yuan and Chung, Yu-An and Glass, James},
  year          = {2021},
  eprint        = {2104.01778},
  archivePrefix = {arXiv}""",
    "yariv2023audiotoken": """\
  title         = {AudioToken: Adaptation of Text-Conditioned Diffusion Models for Audio-to-Image Generation},
  author        = {Yariv, Guy and Gat, Itai and Wolf, Lior and Adi, Yossi and Schwartz, Idan},
  year          = {2023},
  eprint        = {2305.13050},
  archivePrefix = {arXiv}""",
    "rombach2022high": """\
  title         = {High-Resolution Image Synthesis with Latent Diffusion Models},
  author        = {Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and Ommer, Bj\\"orn},
  year          = {2021},
  eprint        = {2112.10752},
  archivePrefix = {arXiv}""",
    "chen2023beats": """\
  title         = {BEATs: Audio Pre-Training with Acoustic Tokenizers},
  author        = {Chen, Sanyuan and others},
  year          = {2022},
  eprint        = {2212.09058},
  archivePrefix = {arXiv}""",
}


def _citation(config: Training) -> str:
    papers = "\n".join(f"@misc{{{key},\n{PAPERS[key]}\n}}" for key in about(config).citations)
    return f"""## Citation

The method, what draws, and what hears:

```bibtex
{papers}
```
"""


def shown(model: str) -> str:
    """A hub id, or a folder's last name."""
    return Path(model).name if is_folder(model) else model


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
