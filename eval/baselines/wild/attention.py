"""From a caption to what conditions Stable Diffusion: how much each word counts, and what it becomes in the text tower.

P  places of CLIP's text (77), D  width of the text tower
Source: the published program's arithmetic; the numbers are checked against its own (tests/golden/in_the_wild.json).
"""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from sonify.captions.ontology import load_ontology, table_rows
from sonify.captions.words import plural, tokenize, verb_forms
from sonify.errors import InputError

IS_NOUN = 0.7  # a score above it
NO_NOUN = 1  # the word, counted from 0, that is taken for one where there is none

# How much each of these words is a noun, 0 to 1. The published system asks flair's `pos-english`: P(NN) + P(NNS).
Nouns = Callable[[Sequence[str]], Sequence[float]]
NOUN_LIST = "closed list of WordNet's and AudioSet's nouns"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A caption, word by word: how sure its captioner was of each, and how much each is a noun."""

    words: tuple[str, ...]
    probabilities: tuple[float, ...]
    noun_scores: tuple[float, ...]

    @property
    def text(self) -> str:
        """The caption."""
        return " ".join(self.words)

    @property
    def weights(self) -> tuple[float, ...]:
        """How much each word counts: later ones more, nouns more, and what was heard surely more."""
        rows = zip(self.probabilities, self.noun_scores, strict=True)
        return tuple(
            1 / (2 + math.exp(2 - 0.5 * place)) + (noun + 0.1 * p if noun > IS_NOUN else p)
            for place, (p, noun) in enumerate(rows)
        )

    @property
    def nouns(self) -> tuple[int, ...]:
        """Which words are nouns; of a caption without one the second word is taken, or its only one."""
        found = tuple(n for n, score in enumerate(self.noun_scores) if score > IS_NOUN)
        return found or (min(NO_NOUN, len(self.words) - 1),)


def listed_nouns(words: Sequence[str]) -> list[float]:
    """1 for a word of a closed list, 0 for any other: it knows what sounds and no grammar, so that the verb in "cats
    ring a bell" is one as well."""
    heads = [tokenize(word)[-1:] for word in words]
    return [float(bool(head) and head[0] in _noun_list()) for head in heads]


@cache
def _noun_list() -> frozenset[str]:
    """The heads of our tables' nouns with their plurals, and the classes of one word; what the tables have as a verb
    ("barks", "chirp") is left out, since that is what captions mean by it."""
    text = files("sonify.captions").joinpath("kinds.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    names = [name for row in rows for key in ("names", "words") for name in row[key].split(";")]
    patterns = [pattern.strip() for row in table_rows() for pattern in row["words"].split(";")]
    names += [pattern for pattern in patterns if not {"~", "!"} & set(pattern)]
    heads = {tokens[-1] for name in names if (tokens := tokenize(name))}
    classes = {name for known in load_ontology().values() for name in known.alternatives if not name.endswith("ing")}
    verbs = {form for pattern in patterns if pattern.endswith("~") for form in verb_forms(pattern.split()[-1][:-1])}
    return frozenset({*heads, *map(plural, heads), *(name for name in classes if " " not in name)} - verbs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """A caption as the text tower has it, and the weights that are optimised, one for each number of it.

    `noun_places` are the places of nouns' tokens; `cut` is how many words were left out, for want of places.
    """

    z_1PD: Tensor
    weights_P: Tensor
    noun_places: tuple[int, ...]
    cut: int

    def parameters(self) -> tuple[Tensor, Tensor]:
        """The nouns' weights (N, 1, D) and the others' (P - N, 1, D), each token's the same over its row at first."""
        width = self.z_1PD.shape[-1]
        rows_P1D = self.weights_P[:, None, None].expand(-1, 1, width)
        is_noun_P = self._is_noun()
        return rows_P1D[is_noun_P].clone(), rows_P1D[~is_noun_P].clone()

    def weigh(self, nouns_N1D: Tensor, others_M1D: Tensor) -> Tensor:
        """What conditions the UNet: z under these weights, brought back to the mean of z."""
        is_noun_P = self._is_noun()
        order_P = torch.cat([is_noun_P.nonzero()[:, 0], (~is_noun_P).nonzero()[:, 0]]).argsort()
        weights_1PD = torch.cat([nouns_N1D, others_M1D])[order_P].transpose(0, 1)
        y_1PD = weights_1PD * self.z_1PD
        return y_1PD * (self.z_1PD.mean() / y_1PD.mean())

    def _is_noun(self) -> Tensor:
        is_noun_P = torch.zeros(len(self.weights_P), dtype=torch.bool, device=self.weights_P.device)
        is_noun_P[list(self.noun_places)] = True
        return is_noun_P


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A caption's tokens: the start, each word's as it is written alone, and padding by the end's token to the last
    place."""

    ids: tuple[int, ...]
    words: tuple[int | None, ...]  # of which word each token is

    def weights(self, of_words: Sequence[float]) -> list[float]:
        """Each token's: that of its word, 1 for start and padding."""
        return [1.0 if word is None else of_words[word] for word in self.words]


def tokenize_words(tokenizer: Any, words: Sequence[str]) -> Tokens:
    """Tokenize word by word, as the published program does; what has no place is cut (there it is a crash).

    Raises:
        InputError: the caption has no word that is a token.
    """
    places: int = tokenizer.model_max_length
    pieces = [(n, token) for n, word in enumerate(words) for token in tokenizer.encode(word, add_special_tokens=False)]
    pieces = pieces[: places - 1]
    if not pieces:
        raise InputError("its caption is empty: expected words, found none that the tokenizer knows")
    padding = places - 1 - len(pieces)
    ids = (tokenizer.bos_token_id, *(token for _, token in pieces), *[tokenizer.eos_token_id] * padding)
    return Tokens(ids=ids, words=(None, *(word for word, _ in pieces), *[None] * padding))


def condition(heard: Heard, tokenizer: Any, encode: Callable[[Tensor], Tensor], device: torch.device) -> Conditioning:
    """Bring a caption into the text tower; `encode` takes (1, P) tokens to (1, P, D)."""
    tokens = tokenize_words(tokenizer, heard.words)
    kept = {word for word in tokens.words if word is not None}
    # where all nouns were cut, as where there is none
    nouns = [word for word in heard.nouns if word in kept] or [min(NO_NOUN, max(kept))]
    with torch.no_grad():
        z_1PD = encode(torch.tensor([tokens.ids], device=device)).float()
    return Conditioning(
        z_1PD=z_1PD,
        weights_P=torch.tensor(tokens.weights(heard.weights), device=device),
        noun_places=tuple(place for place, word in enumerate(tokens.words) if word in nouns),
        cut=len(heard.words) - len(kept),
    )
