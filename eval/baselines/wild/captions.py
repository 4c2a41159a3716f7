"""Where captions come from: a file, or a network of transformers that is asked word by word how sure it is (ACT is in
`eval.baselines.wild.act`).

B  sounds (1), T V  places and words of a decoder
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from eval.baselines.wild.attention import Heard, Nouns
from eval.towers.inputs import at_rate
from eval.towers.tower import Sound
from sonify.errors import InputError
from sonify.models.fetch import (
    TOKENIZER,
    FetchedModel,
    Files,
    check_processor,
    check_tokenizer,
    check_type,
    check_weights,
    fetch_model,
)
from sonify.models.loading import computing, load_network, load_part

MAX_WORDS = 30
MAX_TOKENS = 120  # four a word
DIGITS = 4  # to which the published program rounds a probability
NOUN_FILE = "the file of captions"
CAPTION_FILE_BYTES = 64 * 2**20
CAPTIONER_FILES = Files(
    patterns=(*TOKENIZER, "*.safetensors"),
    checks=(check_type("whisper", "one that was trained to caption"), check_weights, check_tokenizer, check_processor),
)


class Captioner(Protocol):
    """Says what is heard in a sound: words, each with how sure it is of it, 0 to 1."""

    def __call__(self, sound: Sound, /) -> Sequence[tuple[str, float]]: ...


def hear(caption: Captioner, nouns: Nouns, sound: Sound) -> Heard:
    """Caption a sound, and score its words.

    Raises:
        InputError: the caption has no word, or the sound cannot be heard.
    """
    said = caption(sound)
    if not said:
        raise InputError("its caption is empty: expected at least one word")
    words = tuple(word for word, _ in said)
    probabilities = tuple(p for _, p in said)
    return Heard(words=words, probabilities=probabilities, noun_scores=tuple(nouns.scores(words)), nouns_by=nouns.by)


# --- a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A line of a file of captions."""

    words: tuple[str, ...]
    probabilities: tuple[float, ...]
    noun_scores: tuple[float, ...] | None

    def heard(self, nouns: Nouns) -> Heard:
        """With the nouns' scores of the file, or by `nouns`."""
        scores, by = self.noun_scores, NOUN_FILE
        if scores is None:
            scores, by = tuple(nouns.scores(self.words)), nouns.by
        return Heard(words=self.words, probabilities=self.probabilities, noun_scores=scores, nouns_by=by)


def read_captions(path: Path) -> dict[str, Written]:
    """Read a CSV with the columns id and caption; `probabilities` and `nouns`, numbers between spaces, are one a word.

    A published caption, without probabilities, is sure (1). A line without a word is kept, and its item fails.

    Raises:
        InputError: it cannot be read, or a line says something else.
    """
    try:
        if path.stat().st_size > CAPTION_FILE_BYTES:
            raise InputError(f"captions: {path}: larger than {CAPTION_FILE_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"captions: {path}: cannot be read as text ({why}); expected a CSV with id and caption"
        ) from None
    # a caption may hold what Python, and no CSV, takes for the end of a line
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    found: dict[str, Written] = {}
    try:
        if lacking := sorted({"id", "caption"} - set(table.fieldnames or ())):
            names = ", ".join(table.fieldnames or ()) or "none"
            raise InputError(f"captions: {path}: expected the columns id and caption, found {names}; no {lacking[0]}")
        if len(set(table.fieldnames or ())) < len(table.fieldnames or ()):
            raise InputError(f"captions: {path}: expected each column once, found {', '.join(table.fieldnames or ())}")
        for row in table:
            where = f"captions: {path}, line {table.line_num}"
            if None in row:
                raise InputError(f"{where}: more cells than columns; a caption with a comma in it belongs in quotes")
            id = row["id"] or ""
            if id in found:
                raise InputError(f"{where}: {id} has a caption already; leave one")
            found[id] = _written(row, where)
    except csv.Error as error:
        raise InputError(f"captions: {path}, line {table.line_num}: cannot be read as CSV ({error})") from None
    return found


def _written(row: dict[str, str | None], where: str) -> Written:
    words = tuple((row["caption"] or "").split())
    probabilities = _numbers(row.get("probabilities"), len(words), f"{where}: probabilities")
    scores = _numbers(row.get("nouns"), len(words), f"{where}: nouns")
    return Written(words=words, probabilities=probabilities or (1.0,) * len(words), noun_scores=scores)


def _numbers(text: str | None, count: int, where: str) -> tuple[float, ...] | None:
    """As many numbers from 0 to 1 as there are words; None where the file says none."""
    if not text or not text.strip():
        return None
    try:
        values = tuple(float(part) for part in text.split())
    except ValueError:
        values = (math.nan,)
    if len(values) != count or not all(0 <= value <= 1 for value in values):
        raise InputError(
            f"{where}: expected {count} numbers from 0 to 1 between spaces, one a word, found {text[:60]!r}"
        )
    return values


# --- a network of transformers


class WhisperCaptioner:
    """A Whisper that was trained to caption, greedily; a word's probability is the product of its tokens'.

    Published ones are told the style of a caption in front of it, such as `clotho > caption: `. The decoder's own loop
    is here, because what is asked for is how sure it is of each token.
    """

    def __init__(self, fetched: FetchedModel, prompt: str, device: torch.device) -> None:
        self._device = device
        self._network: Any = load_network(WhisperForConditionalGeneration, fetched, device, torch.float32)
        self._front_end: Any = load_part(WhisperFeatureExtractor, fetched)
        self._tokenizer: Any = load_part(WhisperTokenizer, fetched)
        self._prompt = [*self._tokenizer.prefix_tokens, *self._tokenizer.encode(prompt, add_special_tokens=False)]
        places = self._network.config.max_target_positions
        if len(self._prompt) >= places:
            raise InputError(
                f"captioner_prompt: expected fewer than {places} tokens with its start, found {len(self._prompt)}"
            )
        self._most = min(MAX_TOKENS, places - len(self._prompt))
        self._special = set(self._tokenizer.all_special_ids)

    def __call__(self, sound: Sound) -> list[tuple[str, float]]:
        """At most 30 words; of a sound longer than Whisper's 30 s the beginning is heard."""
        rate_hz = self._front_end.sampling_rate
        features = self._front_end(at_rate(sound, rate_hz), sampling_rate=rate_hz, return_tensors="pt")
        with computing(torch.get_num_threads()):
            return self._decode(features.input_features.to(self._device))

    def _decode(self, features: torch.Tensor) -> list[tuple[str, float]]:
        encoded = self._network.get_encoder()(features)
        ids, probabilities = list(self._prompt), list[float]()
        for _ in range(self._most):
            logits_BTV = self._network(encoder_outputs=encoded, decoder_input_ids=self._as_batch(ids)).logits
            best = logits_BTV[0, -1].softmax(-1).max(-1)
            if int(best.indices) in self._special:
                break
            ids.append(int(best.indices))
            probabilities.append(float(best.values))
            if len(self._text(ids).split()) > MAX_WORDS:
                break
        return self._as_words(ids[len(self._prompt) :], probabilities)

    def _as_batch(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self._device)

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids[len(self._prompt) :])

    def _as_words(self, ids: list[int], probabilities: list[float]) -> list[tuple[str, float]]:
        """A token belongs to the word that the text ends with once it is there; one of a space alone to the next."""
        words = self._tokenizer.decode(ids).split()[:MAX_WORDS]
        sure = [1.0] * len(words)
        for n, p in enumerate(probabilities):
            before = self._tokenizer.decode(ids[: n + 1])
            word = len(before.split()) - (0 if before[-1:].isspace() else 1)
            if 0 <= word < len(words):
                sure[word] *= p
        return [(word, round(p, DIGITS)) for word, p in zip(words, sure, strict=True)]


def open_captioner(model: str, revision: str | None, prompt: str, device: torch.device) -> Captioner:
    """Load a captioner of Whisper's class.

    Raises:
        InputError: it cannot be had or used.
    """
    return WhisperCaptioner(fetch_model(model, revision, CAPTIONER_FILES), prompt, device)
