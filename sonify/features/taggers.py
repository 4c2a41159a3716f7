"""Taggers: sounds at 16 kHz to scores of AudioSet's classes, by a network of transformers or by LiteRT on a CPU.

A tagger hears a clip in windows of its own length and scores each; what a clip's score is does not depend on what is
heard beside it. Its classes are brought to the ontology's by their ids or their names.
"""

import csv
import io
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from sonify.captions.ontology import load_ontology, match_sounds, most_specific
from sonify.captions.words import tokenize
from sonify.config import Tagger
from sonify.config.models import AST_SAMPLE_RATE_HZ
from sonify.errors import InputError, WorkError, require
from sonify.io.places import read_whole
from sonify.io.write import sha256_of
from sonify.media.mixing import FULL_SCALE
from sonify.models.fetch import AUDIO_CLASSIFIER_FILES, FetchedModel, fetch_model, named

SAMPLE_RATE_HZ = AST_SAMPLE_RATE_HZ
# A tail shorter than this share of a window is not heard apart: most of its window would be silence.
SHORTEST_TAIL = 0.5
MOST_NAMED = 5
# A class map of AudioSet has 527 lines; a larger file is another one.
MAX_LABELS_BYTES = 1 << 20
AST_TYPE = "audio-spectrogram-transformer"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A class of a tagger: its name there, and the class of the ontology that it is (empty: none)."""

    name: str
    class_id: str


class LoadedTagger(Protocol):
    """A loaded tagger; `arithmetic` is what the last bits of its scores depend on besides the model."""

    labels: tuple[Label, ...]
    arithmetic: str

    def __call__(self, sounds: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Score (S,) int16 sounds at 16 kHz: (W, C) float32 for each, of its windows."""
        ...


def fetch_tagger(settings: Tagger) -> dict[str, str]:
    """Get a tagger here and see that it is one; its name and what exactly it is.

    Raises:
        InputError: a library or the model is not there, or the model is no tagger.
    """
    if settings.is_tflite:
        load_tflite(settings)
        return {settings.model: _identify_tflite(settings)}
    require("torch", "transformers", what="retrieval.confirm")
    fetched = fetch_model(settings.model, settings.revision, AUDIO_CLASSIFIER_FILES)
    return {named(settings.model, settings.revision): fetched.identity}


def load_tagger(settings: Tagger) -> LoadedTagger:
    """Load the tagger that a configuration names.

    Raises:
        InputError: as `fetch_tagger`; or its classes are none of the ontology's.
    """
    return load_tflite(settings) if settings.is_tflite else _load_transformers(settings)


def match_labels(names: Sequence[str], mids: Sequence[str], where: str) -> tuple[Label, ...]:
    """Bring a tagger's classes to the ontology's.

    Args:
        names: what it calls them.
        mids: their ids, where it has any; else as many empty texts.
        where: what to call it in a message.

    Raises:
        InputError: not one is a class of sound.
    """
    labels = tuple(
        Label(name=name, class_id=find_class(name, mid) or "") for name, mid in zip(names, mids, strict=True)
    )
    unknown = [label.name for label in labels if not label.class_id]
    if len(unknown) == len(labels):
        said = ", ".join(names[:MOST_NAMED]) or "nothing"
        raise InputError(
            f"retrieval.confirm: {where}: none of its {len(labels)} classes is one of AudioSet's ontology ({said}):"
            " take a classifier whose labels are AudioSet's, such as MIT/ast-finetuned-audioset-10-10-0.4593"
        )
    if unknown:
        shown = ", ".join(unknown[:MOST_NAMED]) + (", ..." if len(unknown) > MOST_NAMED else "")
        log.warning("%s: %d of its %d classes are none of the ontology: %s", where, len(unknown), len(labels), shown)
    return labels


def find_class(name: str, mid: str = "") -> str | None:
    """The class of the ontology that a label names: by id, by full name, by one of its names, or as captions do."""
    if mid in load_ontology():
        return mid
    plain = _plain(name)
    if (found := _ids_by_plain_name().get(plain)) is not None:
        return found
    matches = most_specific(match_sounds(tokenize(plain)))
    return matches[0].class_id if len(matches) == 1 else None


@cache
def _ids_by_plain_name() -> dict[str, str]:
    """Class ids by full name, and by each name that a class lists and no other does."""
    by_name: dict[str, set[str]] = {}
    for sound in load_ontology().values():
        for name in sound.alternatives:
            by_name.setdefault(_plain(name), set()).add(sound.id)
    single = {name: next(iter(ids)) for name, ids in by_name.items() if len(ids) == 1}
    return single | {_plain(sound.name): sound.id for sound in load_ontology().values()}


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def cut_windows(sound: np.ndarray, window: int, hop: int) -> list[np.ndarray]:
    """The (window,) pieces of a sound, each `hop` after the other; what is shorter than one is one, as it is.

    What is left behind the last is a piece of its own, and as short, where it is at least half a window.
    """
    starts = list(range(0, max(len(sound) - window, 0) + 1, hop))
    pieces = [sound[start : start + window] for start in starts]
    rest = sound[starts[-1] + window :]
    return [*pieces, rest] if len(rest) >= SHORTEST_TAIL * window else pieces


# --- LiteRT


class TfliteTagger:
    """A network that takes a window of samples and gives a score for each class, such as YAMNet."""

    def __init__(self, interpreter: Any, labels: tuple[Label, ...], threads: int) -> None:
        self.labels = labels
        self.arithmetic = f"tflite, {threads} threads"
        self._interpreter = interpreter
        self._input = interpreter.get_input_details()[0]
        self._output = _scores_of(interpreter, len(labels))["index"]
        self.window = math.prod(int(side) for side in self._input["shape"])

    def __call__(self, sounds: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """As `LoadedTagger`; windows overlap by half, as YAMNet's own do."""
        for sound in sounds:
            pieces = cut_windows(sound, self.window, self.window // 2)
            yield checked(np.stack([self._score(piece) for piece in pieces]))

    def _score(self, piece: np.ndarray) -> np.ndarray:
        samples = np.zeros(self.window, np.float32)
        samples[: len(piece)] = piece / np.float32(FULL_SCALE)
        self._interpreter.set_tensor(self._input["index"], samples.reshape(self._input["shape"]))
        self._interpreter.invoke()
        return np.array(self._interpreter.get_tensor(self._output), np.float32).reshape(-1)


def load_tflite(settings: Tagger) -> TfliteTagger:
    """Load a `.tflite` file and the names of its classes."""
    require("ai_edge_litert", extra="tagger", what="retrieval.confirm.model")
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - the extra `tagger`; prints when it is imported

    labels = _read_labels(settings)
    if not Path(settings.model).is_file():
        raise InputError(f"retrieval.confirm.model: no such file: {settings.model}")
    try:
        interpreter = Interpreter(model_path=settings.model, num_threads=settings.cpus)
        interpreter.allocate_tensors()
        inputs = interpreter.get_input_details()
    except Exception as error:  # of a damaged file the library raises whatever its code meets
        why = " ".join(str(error).split())[:200]
        raise InputError(f"retrieval.confirm.model: {settings.model}: LiteRT cannot load it ({why})") from error
    length = math.prod(int(side) for side in inputs[0]["shape"]) if len(inputs) == 1 else 0
    if length < 2 or inputs[0]["dtype"] != np.float32:
        shapes = ", ".join(f"{one['shape'].tolist()} {np.dtype(one['dtype']).name}" for one in inputs)
        raise InputError(
            f"retrieval.confirm.model: {settings.model}: expected one input, a window of float32 samples at 16 kHz as"
            f" YAMNet's [15600], found {shapes}"
        )
    return TfliteTagger(interpreter, labels, settings.cpus)


def _scores_of(interpreter: Any, classes: int) -> Any:
    """The output that has a score for each class."""
    outputs = interpreter.get_output_details()
    for output in outputs:
        if math.prod(int(side) for side in output["shape"]) == classes and output["dtype"] == np.float32:
            return output
    shapes = ", ".join(f"{one['shape'].tolist()}" for one in outputs)
    raise InputError(
        f"retrieval.confirm: labels names {classes} classes, and the model has outputs of {shapes}: take the class map"
        " that belongs to it"
    )


def _read_labels(settings: Tagger) -> tuple[Label, ...]:
    assert settings.labels is not None
    where = f"labels {settings.labels}"
    try:
        data = read_whole(settings.labels)
        assert len(data) <= MAX_LABELS_BYTES
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
        named = {int(row["index"]): (row["display_name"], row["mid"]) for row in rows}
        complete = sorted(named) == list(range(len(rows))) and all(name and mid for name, mid in named.values())
        assert rows
        assert complete
    except OSError as error:
        raise InputError(f"retrieval.confirm: {where}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AssertionError, csv.Error) as error:
        raise InputError(
            f"retrieval.confirm: {where}: expected a CSV of index, mid and display_name with a line for each class,"
            " numbered from 0"
        ) from error
    names, mids = zip(*(named[n] for n in range(len(rows))), strict=True)
    return match_labels(names, mids, where)


def _identify_tflite(settings: Tagger) -> str:
    assert settings.labels is not None
    return f"sha256:{sha256_of(Path(settings.model))} {sha256_of(settings.labels)}"


# --- transformers


class TransformersTagger:
    """An audio classifier of transformers: AST by a front end of our own, any other by its own.

    On a CPU, and where the front end is the library's, a window goes through the network alone; AST's on a GPU go in
    batches that always have the same shape.
    """

    def __init__(self, network: Any, front_end: Any, labels: tuple[Label, ...], settings: Tagger) -> None:
        self.labels = labels
        self._network = network
        self._front_end = front_end
        self._threads = settings.cpus
        self._is_ast = network.config.model_type == AST_TYPE
        self._batch = settings.batch_size if self._is_ast and network.device.type != "cpu" else 1
        self._window = round(front_end.max_length * SAMPLE_RATE_HZ / 100) if self._is_ast else 10 * SAMPLE_RATE_HZ
        # who was trained to tell one class from all others says shares of one
        self._shares = network.config.problem_type == "single_label_classification"
        self.arithmetic = f"{network.device.type}, {self._threads} threads, batches of {self._batch}"

    def __call__(self, sounds: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """As `LoadedTagger`."""
        pieces = [cut_windows(sound, self._window, self._window) for sound in sounds]
        scores = self._score([piece / np.float32(FULL_SCALE) for some in pieces for piece in some])
        for some in pieces:
            yield checked(np.stack([next(scores) for _ in some]))

    def _score(self, windows: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        import torch  # noqa: PLC0415 - takes seconds to import

        from sonify.models.loading import computing  # noqa: PLC0415

        for start in range(0, len(windows), self._batch):
            batch = windows[start : start + self._batch]
            with computing(self._threads):
                logits = self._network(**self._inputs(batch)).logits.float()
                scores = logits.softmax(-1) if self._shares else torch.sigmoid(logits)
            yield from scores.cpu().numpy()[: len(batch)]

    def _inputs(self, batch: Sequence[np.ndarray]) -> dict[str, Any]:
        import torch  # noqa: PLC0415

        device = self._network.device
        if not self._is_ast:
            inputs = self._front_end(batch[0], sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
            return {name: value.to(device) for name, value in inputs.items()}
        # windows may differ in length, what AST sees of them does not
        spectrograms = [self._log_mel(torch.from_numpy(np.ascontiguousarray(w))[None].to(device)) for w in batch]
        spectrograms += [spectrograms[0]] * (self._batch - len(batch))
        return {"input_values": torch.cat(spectrograms)}

    def _log_mel(self, waveform_BS: Any) -> Any:
        from sonify.features.ast import AstLogMel  # noqa: PLC0415

        if not isinstance(self._front_end, AstLogMel):
            self._front_end = AstLogMel(self._front_end).to(self._network.device)
        return self._front_end(waveform_BS)


def _load_transformers(settings: Tagger) -> TransformersTagger:
    require("torch", "transformers", what="retrieval.confirm")
    import torch  # noqa: PLC0415 - takes seconds to import
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification  # noqa: PLC0415

    from sonify.models.loading import choose_device, load_network, load_part  # noqa: PLC0415

    fetched = fetch_model(settings.model, settings.revision, AUDIO_CLASSIFIER_FILES)
    device = choose_device(settings.device)
    network = load_network(AutoModelForAudioClassification, fetched, device, torch.float32)
    front_end = load_part(AutoFeatureExtractor, fetched)
    _check_front_end(front_end, network, fetched)
    names = cast(dict[int, str], network.config.id2label)
    named = [str(names[n]) for n in sorted(names)]
    return TransformersTagger(network, front_end, match_labels(named, [""] * len(named), str(fetched.path)), settings)


def _check_front_end(front_end: Any, network: Any, fetched: FetchedModel) -> None:
    found = getattr(front_end, "sampling_rate", None)
    if found != SAMPLE_RATE_HZ:
        raise InputError(
            f"retrieval.confirm.model: {fetched.path}: expected a front end of {SAMPLE_RATE_HZ} Hz, found {found}"
        )
    if network.config.model_type == AST_TYPE:
        ours = (front_end.num_mel_bins, front_end.max_length)
        its = (network.config.num_mel_bins, network.config.max_length)
        if ours != its:
            raise InputError(
                f"retrieval.confirm.model: {fetched.path}: expected a front end of (mel bands, frames) {its}, found"
                f" {ours}"
            )


def checked(scores: np.ndarray) -> np.ndarray:
    """Refuse scores that are none: (W, C) between 0 and 1.

    Raises:
        WorkError: NaN, infinity, or numbers that are no scores.
    """
    if not np.isfinite(scores).all():
        raise WorkError("retrieval.confirm: the tagger gives NaN or infinity: its weights are damaged")
    if scores.min() < -1e-3 or scores.max() > 1 + 1e-3:
        raise WorkError(
            f"retrieval.confirm: the tagger gives {scores.min():.3g} to {scores.max():.3g}, and scores lie between 0"
            " and 1: take a model that ends in a sigmoid"
        )
    return scores.clip(0, 1)
