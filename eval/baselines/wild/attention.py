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

NOUN_LIST = "closed list of WordNet's and AudioSet's nouns"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nouns:
    """Says how much each word is a noun, 0 to 1; `by` is for the record. The published system asks flair's
    `pos-english`: P(NN) + P(NNS)."""

    by: str
    scores: Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A caption, word by word: how sure its captioner was of each, and how much each is a noun, by whom."""

    words: tuple[str, ...]
    probabilities: tuple[float, ...]
    noun_scores: tuple[float, ...]
    nouns_by: str

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


def listed_nouns(words: Sequence[str]) -> list[float]:
    """1 for a word of a closed list, 0 for any other: it knows what sounds and no grammar, so that the verb in "cats
    ring a bell" is one as well."""
    heads = [tokenize(word)[-1:] for word in words]
    return [float(bool(head) and head[0] in _noun_list()) for head in heads]


LISTED_NOUNS = Nouns(by=NOUN_LIST, scores=listed_nouns)


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
    """A caption as the text tower has it, and how much each of its tokens counts at first.

    `cut` is how many words were left out, for want of places.
    """

    z_1PD: Tensor
    weights_P: Tensor
    cut: int

    def start(self) -> Tensor:
        """The weights that are optimised (P, D), one for each number of z, each token's the same over its row.

        The published program has those of nouns and of other words in two groups of Adam. Both have one rate, and Adam
        takes each number by itself, so that one tensor gives the same.
        """
        return self.weights_P[:, None].expand(self.z_1PD.shape[1:]).clone()

    def weigh(self, weights_PD: Tensor) -> Tensor:
        """What conditions the UNet: z under these weights, brought back to the mean of z."""
        y_1PD = weights_PD * self.z_1PD
        return y_1PD * (self.z_1PD.mean() / y_1PD.mean())


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
    with torch.no_grad():
        z_1PD = encode(torch.tensor([tokens.ids], device=device)).float()
    return Conditioning(
        z_1PD=z_1PD,
        weights_P=torch.tensor(tokens.weights(heard.weights), device=device),
        cut=len(heard.words) - len(kept),
    )
