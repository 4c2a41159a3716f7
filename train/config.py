"""The configuration of a training run: frozen, typed, refusing what it does not know."""

import math
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from sonify.config.inputs import InputPath, Model, Section, Share
from sonify.config.loader import load_settings
from sonify.config.text import read_text
from sonify.errors import InputError
from sonify.io.write import write_whole

CONFIG = "config.yaml"  # in a training run and in a release, resolved
MIN_ROUTED_TOKENS = 256  # of an image: a share of fewer says too little of it

# Of a power-function average: with it all steps weigh nearly the same; longer ones would weigh the first steps most.
SHORTEST, LONGEST = 0.001, 0.28

Beta = Annotated[float, Field(ge=0, lt=1)]


class Data(Section):
    """What is read: runs of `sonify` that have features. `window_shards` archives are shuffled among each other."""

    runs: tuple[InputPath, ...] = Field(min_length=1)
    split: Literal["train", "validation"] = "train"
    window_shards: int = Field(default=64, ge=1)
    workers: int = Field(default=4, ge=0, le=64)  # loader processes of each GPU; 0 reads in the training process


class RemixableData(Data):
    """`scenes` says what an image is heard with: what `sonify features` stored, or a mix made anew at each visit.

    A remix draws other recordings and gains by the run's own rules, and AST hears it on the device of the training.
    """

    scenes: Literal["stored", "remix"] = "stored"


class Scratch(Section):
    """Random weights, of any size, but for those of a `projector`, as below."""

    kind: Literal["scratch"]
    projector: InputPath | None = None


class Checkpoint(Section):
    """A text-conditioned PixArt-alpha, of which all is kept but the projection of the condition.

    `model` is a hub id or a folder of diffusers'; `projector` a safetensors file with `caption_projection`'s tensors.
    """

    kind: Literal["checkpoint"]
    model: Model = "PixArt-alpha/PixArt-XL-2-512x512"
    revision: str | None = None
    projector: InputPath | None = None


class Transformer(Section):
    """The diffusion transformer; its width is `heads * head_dim`, its input `sample_size` squared latents."""

    init: Annotated[Scratch | Checkpoint, Field(discriminator="kind")] = Scratch(kind="scratch")
    layers: int = Field(default=28, ge=1)
    heads: int = Field(default=16, ge=1)
    head_dim: int = Field(default=72, ge=8)
    patch_size: int = Field(default=2, ge=1)
    sample_size: int = Field(default=64, ge=2)
    latent_channels: int = Field(default=4, ge=1)
    caption_channels: int = Field(default=768, ge=1)  # of one vector of the condition: AST's 768, YAMNet's 521
    null_condition: Literal["zeros", "silence"] = "zeros"

    @model_validator(mode="after")
    def _patches_fit(self) -> "Transformer":
        if self.sample_size % self.patch_size:
            raise ValueError(f"sample_size {self.sample_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % 4:  # its positions are sines and cosines of rows and of columns
            raise ValueError(f"heads times head_dim is {self.width}, expected a multiple of 4")
        return self

    @property
    def width(self) -> int:
        """Of a token."""
        return self.heads * self.head_dim

    @property
    def tokens(self) -> int:
        """Of an image."""
        return (self.sample_size // self.patch_size) ** 2


class Optimizer(Section):
    """AdamW, with PixArt-alpha's settings.

    The rate at a total batch of B is `learning_rate * sqrt(B / reference_batch)`: 3.16e-5 for 640; with the rule
    `linear`, without the root.
    """

    learning_rate: float = Field(default=2.0e-5, gt=0)
    reference_batch: int = Field(default=256, ge=1)
    rule: Literal["sqrt", "linear"] = "sqrt"
    weight_decay: float = Field(default=3.0e-2, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1.0e-10, gt=0)
    warmup_steps: int = Field(default=1000, ge=0)
    clip_norm: Annotated[float, Field(gt=0)] | None = 0.01  # null: gradients are not clipped
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    ema_warmup: bool = True  # the first steps are forgotten faster: of no account after 100,000 steps at 0.9999


def peak_rate(config: Optimizer, total_batch: int) -> float:
    """The rate of a total batch, after the warm-up."""
    ratio = total_batch / config.reference_batch
    return config.learning_rate * (math.sqrt(ratio) if config.rule == "sqrt" else ratio)


class BatchSizes(Section):
    """`total` images a step, however many processes there are; `per_device` of them go through the model at once."""

    total: int = Field(default=640, ge=1)
    per_device: int = Field(default=40, ge=1)


class PowerAverages(Section):
    """Power-function averages beside the exponential one, from which one of any length is made when a run is done.

    Each of `lengths` (EDM2's sigma_rel, such as [0.05, 0.10]; none: off) takes 4 bytes a parameter on every device and
    in every checkpoint, and 2 in each snapshot, all of which stay: of XL/2 two take 4.9 GB, and 2.4 GB each
    `snapshot_every` steps, 243 GB in 500,000. `train.ema` makes averages of them.
    """

    lengths: tuple[Annotated[float, Field(ge=SHORTEST, le=LONGEST)], ...] = ()
    snapshot_every: int = Field(default=5000, ge=1)

    @model_validator(mode="after")
    def _lengths_differ(self) -> "PowerAverages":
        if len({f"{length:g}" for length in self.lengths}) < len(self.lengths):
            raise ValueError(f"lengths {list(self.lengths)}: expected different ones")
        return self


class Checkpoints(Section):
    """How often the whole state is saved, and how many are kept."""

    every: int = Field(default=1000, ge=1)
    keep: int = Field(default=3, ge=1)


class Samples(Section):
    """Pictures made now and then from the first `sounds` scenes of a split, always the same."""

    every: int = Field(default=5000, ge=1)
    split: Literal["validation", "train"] = "validation"  # train: of what is learned from, where nothing is held out
    sounds: int = Field(default=8, ge=0, le=64)
    steps: int = Field(default=20, ge=1, le=1000)
    guidance: float = Field(default=4.5, ge=1, le=100)


class Training(Section):
    """What every trainer is told; `run_dir` gets checkpoints, metrics, sample grids and the released pipeline."""

    run_dir: Path
    seed: int = Field(default=0, ge=0, lt=2**63)
    max_steps: int = Field(ge=1)
    devices: int | None = Field(default=None, ge=1)  # GPUs that must be there; null: all that are visible, or the CPU
    data: Data
    vae: Model = "stabilityai/sd-vae-ft-ema"  # that the latents were made with; samples and the pipeline need it
    vae_revision: str | None = None
    optimizer: Optimizer = Optimizer()
    ema: PowerAverages = PowerAverages()
    batch: BatchSizes = BatchSizes()
    condition_dropout: Share = 0.1
    precision: Literal["bf16", "fp32"] = "bf16"
    recompute: bool = False  # activations are computed again in the backward pass: less memory, a third more work
    log_every: int = Field(default=10, ge=1)
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "comet_ml", "aim"], ...] = ("tensorboard",)
    checkpoints: Checkpoints = Checkpoints()
    samples: Samples = Samples()


class LossWeights(Section):
    """With `min_snr` the squared error of an image counts min(SNR, min_snr) / SNR, SNR being its noise level's: less
    where there is next to no noise; 5 is the published value. The variational bound stays as it is.

    Source: min-SNR, arXiv 2303.09556, as it is for predicted noise.
    """

    min_snr: float | None = Field(default=None, gt=0)  # null: every image counts alike, as in PixArt-alpha


class Routing(Section):
    """While training, the middle blocks see a random `share` of an image's tokens; the others go around them.

    The first `first` and the last `last` blocks see all, and so do all in the last `finish_steps` steps, when pictures
    are made, and wherever the model is used.

    Source: TREAD, arXiv 2501.04765; the finish is SPRINT's, arXiv 2510.21986.
    """

    share: float = Field(default=0.5, gt=0, lt=1)
    first: int = Field(default=2, ge=1)
    last: int = Field(default=4, ge=1)
    finish_steps: int = Field(ge=0)

    def kept_of(self, tokens: int) -> int:
        """How many of an image's tokens the middle blocks see."""
        return max(1, round(self.share * tokens))


class Adapters(Section):
    """What learns under `train: adapters`: the projection of the condition, and of each block what is named here.

    `lora` are low-rank matrices beside a linear layer, of rank `rank`, which a release has added to the layer's own.
    """

    cross_attention: Literal["full", "lora"] = "full"
    others: Literal["lora", "frozen"] = "frozen"  # self-attention and feed-forward
    rank: int = Field(default=16, ge=1)


class TrainConfig(Training):
    """A training of an audio-conditioned PixArt-alpha."""

    data: RemixableData  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    ast: Model | None = "MIT/ast-finetuned-audioset-10-10-0.4593"  # null: the condition is not AST's
    ast_revision: str | None = None
    model: Transformer = Transformer()
    train: Literal["all", "adapters"] = "all"  # adapters: the rest is frozen, in the precision that it computes in
    adapters: Adapters = Adapters()
    loss: LossWeights = LossWeights()
    routing: Routing | None = None  # null: every block sees every token
    compile: bool = True  # each block by torch.compile
    # Linear layers of a float32 model on a CPU as convolutions, which some processors compute faster; auto: what a
    # second of both says when the run begins, and from then on what it began with.
    linears: Literal["auto", "plain", "convolved"] = "auto"
    # What a compiled block keeps for its backward pass, of what it would keep; the rest is computed again. From 0.5 on
    # that is no matrix product; at 0 all of them are. null: torch's own choice, which is 1
    activation_memory_budget: Share | None = None

    @model_validator(mode="after")
    def _hears_what_it_mixes(self) -> "TrainConfig":
        if self.data.scenes == "remix" and self.ast is None:
            raise ValueError(
                "data.scenes is remix, which AST hears, and ast is null: name it, or set data.scenes: stored"
            )
        return self

    @model_validator(mode="after")
    def _routing_fits(self) -> "TrainConfig":
        routing, model = self.routing, self.model
        if routing is None:
            return self
        if model.tokens < MIN_ROUTED_TOKENS:
            raise ValueError(
                f"routing: an image has {model.tokens} tokens, expected at least {MIN_ROUTED_TOKENS}: so few are not to"
                " be spared; leave it out, or train larger images (model.sample_size)"
            )
        if routing.first + routing.last >= model.layers:
            raise ValueError(
                f"routing: of {model.layers} blocks the first {routing.first} and the last {routing.last} see all"
                " tokens, which leaves none between them; set first and last lower"
            )
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> "TrainConfig":
        if self.train == "adapters" and self.model.init.kind != "checkpoint":
            raise ValueError(
                "train: adapters is for model.init.kind checkpoint: random weights have to learn as a whole"
            )
        return self

    @model_validator(mode="after")
    def _budget_has_something_to_act_on(self) -> "TrainConfig":
        if self.activation_memory_budget is None:
            return self
        if not self.compile:
            raise ValueError(
                "activation_memory_budget acts on compiled blocks only, and compile is false: set it to null, or"
                " compile=true"
            )
        if self.recompute:  # all of a block but its input is computed again: what is left to keep is one block's
            raise ValueError(
                "activation_memory_budget and recompute=true are two ways to the same, and together cost the work of"
                " both: set activation_memory_budget to null, or recompute=false"
            )
        return self

    def routing_at(self, step: int) -> Routing | None:
        """How tokens go in a step, counted from 1; None where all go all the way."""
        routed = self.routing is not None and step <= self.max_steps - self.routing.finish_steps
        return self.routing if routed else None


class HeardByBeats(Section):
    """BEATs, as AudioToken has it: a folder that `eval.convert_weights beats` made."""

    kind: Literal["beats"]
    model: Model
    revision: str | None = None


class HeardByAst(Section):
    """AST in the place of BEATs: not the published system, whose name then is `audiotoken_ast`."""

    kind: Literal["ast"]
    model: Model = "MIT/ast-finetuned-audioset-10-10-0.4593"
    revision: str | None = None


class TokenWeights(Section):
    """Of the parts of AudioToken's loss beside the error of the noise; of the classification term null is off."""

    l1: float = Field(default=0.01, ge=0)
    l2: float = Field(default=0.0, ge=0)
    classification: float | None = Field(default=None, gt=0)


class TokenOptimizer(Optimizer):
    """With upstream's settings: 1e-5 for each image of a step of 16, no clipping, no average."""

    learning_rate: float = Field(default=1.6e-4, gt=0)
    reference_batch: int = Field(default=16, ge=1)
    rule: Literal["sqrt", "linear"] = "linear"
    weight_decay: float = Field(default=0.01, ge=0)
    eps: float = Field(default=1.0e-8, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    ema_warmup: bool = False


class TokenBatchSizes(BatchSizes):
    """Upstream's."""

    total: int = Field(default=16, ge=1)
    per_device: int = Field(default=4, ge=1)


class TokenSamples(Samples):
    """As Stable Diffusion 1.4 is sampled."""

    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=1, le=100)


class AudioTokenConfig(Training):
    """A training of AudioToken's embedder: all of Stable Diffusion and the ear are frozen.

    `sd` is a hub id or a folder of diffusers' Stable Diffusion, of which UNet, text encoder, tokenizer and scheduler
    are used; the VAE is that of the features. `encoder` is what their vectors were heard by.
    """

    sd: Model = "CompVis/stable-diffusion-v1-4"
    sd_revision: str | None = None
    encoder: Annotated[HeardByBeats | HeardByAst, Field(discriminator="kind")]
    placeholder: str = Field(default="<*>", min_length=1)
    prompt: str = "a photo of <*>"
    sampling_prompt: str = "a photo of <*>, 4k, high resolution"
    upstream_dropout: bool = False  # the embedder's dropout at inference too, as upstream's code has it
    loss: TokenWeights = TokenWeights()
    optimizer: TokenOptimizer = TokenOptimizer()  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    batch: TokenBatchSizes = TokenBatchSizes()  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    condition_dropout: Share = 0.0  # upstream has none; a dropped image's prompt is empty
    samples: TokenSamples = TokenSamples()  # pyright: ignore[reportIncompatibleVariableOverride] - frozen


# A key by which a configuration is known as another trainer's than PixArt's.
TRAINER_OF = {"sd": "train.audiotoken", "text": "train.projector"}


def check_trainer(file: Path, module: str) -> None:
    """Refuse a configuration that is another trainer's, by its name and not by its first key.

    Raises:
        InputError: it is, or it cannot be read.
    """
    keys = read_text(file).values.keys()
    theirs = next((other for key, other in TRAINER_OF.items() if key in keys), "train.pixart")
    if theirs != module and (theirs != "train.pixart" or "model" in keys):
        raise InputError(f"config {file}: is one for `python -m {theirs}`, not for `python -m {module}`")


def read_config(folder: Path, made_by: str) -> Training:
    """The resolved configuration of a training run, of whichever trainer, whose `run_dir` is where it lies now;
    `made_by` is a command for the message.

    Raises:
        InputError: it is none.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: not a training run: expected {CONFIG} in it; `{made_by}` makes one")
    config = load_settings(path, [], AudioTokenConfig if "sd" in read_text(path).values else TrainConfig)
    return config.model_copy(update={"run_dir": folder})


def write_config(config: Training, folder: Path) -> None:
    """Write it down, resolved: a release of any checkpoint is made with it."""
    write_whole(folder / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
