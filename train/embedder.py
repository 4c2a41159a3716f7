"""What AudioToken trains: an embedder that makes one word of a sound, the prompt that it stands in, and the losses.

    audio features --Embedder--> token --TokenPrompt--> hidden states of the text tower --> UNet

The text tower stays as it is: the token takes the place of a placeholder's embedding, and what it learns, it learns
through the tower. A release holds this file too, so it needs nothing of this package.

B  images or sounds    T  times of the features    F  their width    D  width of a token and of the text tower
L  places of a prompt    C H W  channels, height and width of latents

Sources: AudioToken (arXiv 2305.13050) and its code, guyyariv/AudioToken ab7d280; the pooling is factor graph attention
(arXiv 1904.05880) of one modality.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

PLACEHOLDER = "<*>"
TRAINING_PROMPT = "a photo of <*>"
UNARY_DROPOUT = 0.5


class Unary(nn.Module):
    """How much a time says by itself."""

    def __init__(self, width: int, upstream_dropout: bool) -> None:
        super().__init__()
        self.embed = nn.Conv1d(width, width, 1)
        self.feature_reduce = nn.Conv1d(width, 1, 1)
        self.upstream_dropout = upstream_dropout

    def forward(self, hidden_BDT: Tensor) -> Tensor:
        """(B, T)."""
        dropped = self.training or self.upstream_dropout
        active_BDT = functional.dropout(self.embed(hidden_BDT).relu(), UNARY_DROPOUT, training=dropped)
        return self.feature_reduce(active_BDT)[:, 0]


class SelfPairwise(nn.Module):
    """How much a time is like all of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed_X = nn.Conv1d(width, width, 1)
        self.embed_Y = nn.Conv1d(width, width, 1)

    def forward(self, hidden_BDT: Tensor) -> Tensor:
        """(B, T): the mean over t' of the cosine of X_t and Y_t'.

        A mean of products with one vector is the product with the mean: neither a loop nor a T x T table is needed.
        """
        x_BDT = functional.normalize(self.embed_X(hidden_BDT), dim=1)
        y_BDT = functional.normalize(self.embed_Y(hidden_BDT), dim=1)
        return (x_BDT * y_BDT.mean(2, keepdim=True)).sum(1)


class FactorGraphAttention(nn.Module):
    """The weight of each time in the token. Its parts lie in lists, as upstream's do, for the names of the weights."""

    def __init__(self, width: int, upstream_dropout: bool) -> None:
        super().__init__()
        self.un_models = nn.ModuleList([Unary(width, upstream_dropout)])
        self.pp_models = nn.ModuleList([SelfPairwise(width)])
        self.reduce_potentials = nn.ModuleList([nn.Conv1d(2, 1, 1, bias=False)])

    def potential(self, hidden_BTD: Tensor) -> Tensor:
        """(B, T), what the weights are the softmax of."""
        hidden_BDT = hidden_BTD.transpose(1, 2)
        both_B2T = torch.stack([self.un_models[0](hidden_BDT), self.pp_models[0](hidden_BDT)], dim=1)
        return self.reduce_potentials[0](both_B2T)[:, 0]

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """(B, T), of sum one."""
        return self.potential(hidden_BTD).softmax(-1)


class Embedder(ModelMixin, ConfigMixin):
    """Makes a token of a sound's features, of as many times as there are; its weights have upstream's names.

    `upstream_dropout` leaves the dropout on when pictures are made, as upstream's code does: the same sound is then
    another token each time. It is for comparison with that code.
    """

    @register_to_config
    def __init__(self, audio_width: int = 2304, token_width: int = 768, upstream_dropout: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(audio_width, audio_width)
        self.fc2 = nn.Linear(audio_width, token_width)
        self.fga = FactorGraphAttention(token_width, upstream_dropout)

    def hidden(self, audio_BTF: Tensor) -> Tensor:
        """(B, T, D), each time by itself."""
        return self.fc2(functional.gelu(self.fc1(audio_BTF)))

    def forward(self, audio_BTF: Tensor) -> Tensor:
        """The tokens (B, D).

        Raises:
            ValueError: the features have another width than the embedder was made for.
        """
        width = self.config["audio_width"]
        if audio_BTF.ndim != 3 or audio_BTF.shape[2] != width or not audio_BTF.shape[1]:
            raise ValueError(
                f"expected audio features (B, T, {width}), as the embedder was made for, found"
                f" {tuple(audio_BTF.shape)}; take the features of the encoder and layers that it was trained on"
            )
        hidden_BTD = self.hidden(audio_BTF)
        return (self.fga(hidden_BTD)[:, :, None] * hidden_BTD).sum(1)


class TokenPrompt:
    """A prompt with a sound's token in it, through a frozen text tower.

    The tower gets no attention mask and all its places, as Stable Diffusion has it. The placeholder becomes a word of
    a copy of the tokenizer; the tokenizer and the tower's table of words stay as they are.

    Raises:
        ValueError: the placeholder or the prompt cannot be used.
    """

    def __init__(
        self,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        placeholder: str = PLACEHOLDER,
        prompt: str = TRAINING_PROMPT,
    ) -> None:
        self.text_encoder = text_encoder.requires_grad_(False)
        self.tokenizer = tokenizer
        self.placeholder = placeholder
        config: Any = text_encoder.config
        self.width: int = config.hidden_size
        self.num_places: int = config.max_position_embeddings
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} words and the text tower {config.vocab_size}; take both from one"
                " model"
            )
        self._with_placeholder, self.token_id = add_placeholder(tokenizer, placeholder)
        self.prompt = prompt
        self.input_ids(prompt)

    def input_ids(self, prompt: str) -> Tensor:
        """(L,): the prompt's words, the placeholder's `token_id` among them.

        Raises:
            ValueError: the placeholder is not in it, or more than once, or it is too long.
        """
        ids_L = self._tokenize(self._with_placeholder, prompt)
        if (found := int((ids_L == self.token_id).sum())) != 1:
            raise ValueError(
                f"expected the placeholder {self.placeholder} once in the prompt, found it"
                f" {found or 'no'} time{'s' if found else ''}: {prompt!r}"
            )
        return ids_L

    def __call__(self, token_BD: Tensor, prompt: str | None = None) -> Tensor:
        """The tower's last hidden states (B, L, D) of the prompt with each of the tokens; gradients reach the tokens.

        Raises:
            ValueError: the prompt cannot be used, or the tokens are not as wide as the tower.
        """
        if token_BD.ndim != 2 or token_BD.shape[1] != self.width:
            raise ValueError(
                f"expected tokens (B, {self.width}), as wide as the text tower, found {tuple(token_BD.shape)}; take"
                " an embedder of its token_width"
            )
        ids_L = self.input_ids(self.prompt if prompt is None else prompt).to(token_BD.device)
        is_token_L1 = (ids_L == self.token_id)[:, None]

        def put_tokens(_module: nn.Module, _inputs: tuple[Any, ...], words_BLD: Tensor) -> Tensor:
            return torch.where(is_token_L1, token_BD[:, None].to(words_BLD), words_BLD)

        # the tower takes no embeddings, only the numbers of words: what its table gives is replaced on the way
        hook = self.text_encoder.embeddings.token_embedding.register_forward_hook(put_tokens)
        try:
            any_word_L = ids_L.masked_fill(is_token_L1[:, 0], 0)  # the table ends before the placeholder
            return self._encode(any_word_L.expand(len(token_BD), -1))
        finally:
            hook.remove()

    def encode_text(self, text: str, device: torch.device | None = None) -> Tensor:
        """The tower's last hidden states (1, L, D) of a text without a token; an offloaded tower is told its device."""
        ids_L = self._tokenize(self.tokenizer, text)
        return self._encode(ids_L[None].to(self.text_encoder.device if device is None else device))

    def embed_labels(self, labels: Sequence[str]) -> Tensor:
        """(B, D): of each label, the mean of its words in the tower's table, without start and end.

        Raises:
            ValueError: a label has no words.
        """
        table: Tensor = self.text_encoder.embeddings.token_embedding.weight
        means: list[Tensor] = []
        for label in labels:
            ids = self.tokenizer(label, add_special_tokens=False).input_ids
            if not ids:
                raise ValueError(f"expected a label with words for the classification term, found {label!r}")
            means.append(table[torch.tensor(ids, device=table.device)].mean(0))
        return torch.stack(means)

    def _encode(self, ids_BL: Tensor) -> Tensor:
        return self.text_encoder(ids_BL).last_hidden_state

    def _tokenize(self, tokenizer: CLIPTokenizer, text: str) -> Tensor:
        found = len(tokenizer(text).input_ids)
        if found >= self.num_places:
            raise ValueError(
                f"expected a prompt under {self.num_places} tokens, with its start and end, found {found}:"
                f" {text[:80]!r}"
            )
        padded = tokenizer(text, padding="max_length", max_length=self.num_places, return_tensors="pt")
        return padded.input_ids[0]


def add_placeholder(tokenizer: CLIPTokenizer, placeholder: str) -> tuple[CLIPTokenizer, int]:
    """A copy of the tokenizer that knows the placeholder as one new word, and that word's number.

    Raises:
        ValueError: it is no new word: the tokenizer knows it, or would split it still.
    """
    number = len(tokenizer)
    alone = tokenizer(placeholder, add_special_tokens=False).input_ids
    if len(alone) == 1 or placeholder in tokenizer.get_vocab():
        raise ValueError(
            f"the placeholder {placeholder!r} is a word that the tokenizer knows; take another, such as <*>"
        )
    known = copy.deepcopy(tokenizer)
    known.add_tokens(placeholder)
    found = known(f"a {placeholder}, b").input_ids
    if known(placeholder, add_special_tokens=False).input_ids != [number] or found.count(number) != 1:
        raise ValueError(
            f"the placeholder {placeholder!r} is not one token to the tokenizer, which splits it into {len(alone)};"
            " take another, such as <*>"
        )
    return known, number


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLosses:
    """One value an image; `total_B` is what is minimised.

    `penalty_B`, the classification term, is of the mean cosine of all images, so each has the same; 0 without labels.
    """

    mse_B: Tensor
    l1_B: Tensor
    l2sq_B: Tensor
    penalty_B: Tensor
    total_B: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        """What is logged of it beside the total."""
        return {"mse": self.mse_B, "l1": self.l1_B, "l2sq": self.l2sq_B, "classification": self.penalty_B}


def token_loss(  # noqa: PLR0913 - what is compared, and what each part weighs
    predicted_BCHW: Tensor,
    noise_BCHW: Tensor,
    token_BD: Tensor,
    label_BD: Tensor | None = None,
    *,
    l1_weight: float = 0.01,
    l2sq_weight: float = 0.0,
    label_weight: float = 0.01,
) -> TokenLosses:
    """Squared error of the predicted noise, and what keeps tokens small; with labels the classification term too.

    Source: AudioToken, section 3.2: the term is (1 - cos)^2 of a token and the mean of its label's words.
    """
    token_BD = token_BD.float()
    mse_B = (predicted_BCHW.float() - noise_BCHW.float()).square().flatten(1).mean(1)
    l1_B, l2sq_B = token_BD.abs().mean(1), token_BD.square().sum(1)
    penalty_B = torch.zeros_like(mse_B)
    if label_BD is not None:
        cosine_B = functional.cosine_similarity(token_BD, label_BD.float(), dim=1)
        penalty_B = (1 - cosine_B.mean()).square().expand_as(mse_B)
    total_B = mse_B + l1_weight * l1_B + l2sq_weight * l2sq_B + label_weight * penalty_B
    return TokenLosses(mse_B=mse_B, l1_B=l1_B, l2sq_B=l2sq_B, penalty_B=penalty_B, total_B=total_B)


def make_noise_scheduler(sampler: Any) -> DDPMScheduler:
    """The noise of training, `add_noise`, over the schedule that a Stable Diffusion's sampler has in its settings.

    Raises:
        ValueError: the model predicts something else than the noise.
    """
    if (found := sampler.config.get("prediction_type", "epsilon")) != "epsilon":
        raise ValueError(f"expected a model whose prediction_type is epsilon, the noise, found {found}")
    taken = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    return DDPMScheduler(**{key: sampler.config[key] for key in taken})
