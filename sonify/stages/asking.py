"""Asking a model about images: decoded off the model's thread, a window ahead, and every answer is kept.

What was answered before to the same question is not asked again, so that a new parser or filter costs nothing. Where a
part of a unit is recalled, the rest is a batch of another shape than in a run from the start: the same bytes are then
promised from the answers on.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from PIL import Image

from sonify import layout
from sonify.config import EndpointVlm, VlmExtractor
from sonify.engine.job import Sink
from sonify.engine.record import require_record
from sonify.errors import InputError, WorkError
from sonify.io.commits import digest_of
from sonify.io.places import machine_folder, size_of, stems
from sonify.io.tables import TableWriter, read_columns, read_rows, storable
from sonify.io.write import Transaction
from sonify.keys import key_order
from sonify.media.pixels import ImageInfo, UnreadableImage, decode_for_model
from sonify.rows import Reason, RecordedAnswer, Rejected
from sonify.stores import Place
from sonify.vlm.backends import fetch_vlm, load_vlm, model_name, overlap_of, request_settings, window_of
from sonify.vlm.questions import LoadedVlm, NoAnswer, Question
from sonify.vlm.replies import advice_for

log = logging.getLogger(__name__)

# Decoding 2 megapixels to a model's size takes some 10 ms, an answer of a real model ten times as long and more.
DECODING_THREADS = 2
# What an answer depends on besides the model and the words.
SETTINGS = {"image_size", "max_new_tokens", "dtype"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """Where a stage's answers are kept, whose they are, and in what words they were asked for."""

    name: str
    vlm: VlmExtractor
    words: str

    def source(self, run_dir: Place) -> str:
        """A digest of all that an answer depends on, save the image: what run.json says the model is, and its settings.

        Empty where the model is not in run.json, since it was never fetched for this run.
        """
        identity = require_record(run_dir).models.get(model_name(self.vlm), "")
        settings = self.vlm.model_dump(mode="json", include=SETTINGS) | request_settings(self.vlm)
        return digest_of({"identity": identity, "words": self.words, **settings})[:16] if identity else ""

    def check_here(self, run_dir: Place) -> None:
        """Make sure that this machine's files of the model are those that the run was begun with."""
        expected = require_record(run_dir).models.get(model_name(self.vlm))
        found = fetch_vlm(self.vlm)[model_name(self.vlm)]
        if expected not in (None, found):
            raise InputError(
                f"{self.vlm.model} is {found} on this machine and {expected} in run.json: pin `revision`, or share"
                " HF_HOME"
            )

    def units_answered(self, run_dir: Place, units: Iterable[str]) -> Iterator[str]:
        """The units about whose images today's model was asked before, in the same words."""
        source = self.source(run_dir)
        for unit in units:
            path = run_dir / layout.answers(self.name, unit)
            if size_of(path) is not None and source in _sources(path):
                yield unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A row of the stage's with its image's bytes, and what is asked of the image."""

    row: Any
    key: str
    data: bytes
    prompt: str
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A row and what was said of its image. `image` is dropped once the model has seen it."""

    row: Any
    info: ImageInfo
    image: Image.Image | None
    said: RecordedAnswer
    schema: Mapping[str, Any] | None = None


Begun = Future[list[Asked | Rejected]]


class Asker:
    """Asks one model, unit after unit."""

    def __init__(self, inquiry: Inquiry, run_dir: Place) -> None:
        self._inquiry = inquiry
        self._run_dir = run_dir
        self._source = inquiry.source(run_dir)
        self.window = window_of(inquiry.vlm)
        self._vlm: LoadedVlm | None = None
        self._loading = threading.Lock()
        self._decoders = ThreadPoolExecutor(DECODING_THREADS)
        self._callers = ThreadPoolExecutor(overlap_of(inquiry.vlm))
        self._unit = ""
        self._known: dict[RecordedAnswer, RecordedAnswer] = {}
        self._written: set[RecordedAnswer] = set()
        self._table: TableWriter | None = None
        units = stems(run_dir / layout.ANSWERS / inquiry.name)
        if not next(inquiry.units_answered(run_dir, units), ""):
            self._load()  # what is wrong with it shows before any unit; where answers are kept, it may not be needed

    def open(self, unit: str, transaction: Transaction, sink: Sink) -> "AskedSink":
        """Begin a unit: recall its answers, and keep those that come beside the stage's own table."""
        path = layout.answers(self._inquiry.name, unit)
        if unit != self._unit:  # a unit that is tried again goes on with what it was told the first time
            kept = _read_answers(self._run_dir / path)
            self._known = {_question(said): said for said in kept if not _concerns_all(said.refused)}
        self._unit = unit
        self._written = set()
        self._table = TableWriter(transaction.create(path), RecordedAnswer)
        return AskedSink(self, sink)

    def begin(self, asks: Sequence[Ask]) -> Begun:
        """Start to decode and to ask; the questions of one call are one batch."""
        seen = [self._decoders.submit(self._see, ask) for ask in asks]
        return self._callers.submit(self._answer, seen)

    def collect(self, begun: Begun) -> list[Asked | Rejected]:
        """Wait for the answers and keep them.

        Raises:
            TransientError: the model's server is not well.
        """
        results = begun.result()
        for asked in results:
            if isinstance(asked, Asked) and self._table is not None:
                question = _question(asked.said)
                self._known[question] = asked.said
                self._written.add(question)
                self._table.write(asked.said)
        return [_without_refused(result) for result in results]

    def finish(self) -> None:
        """End a unit's answers; those to questions that were not asked today are kept behind the others."""
        assert self._table is not None
        for question, said in self._known.items():
            if question not in self._written:
                self._table.write(said)
        self._table.close()
        self._table, self._unit = None, ""

    def close(self) -> None:
        """End what is under way, what the model has started, and the threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._callers.shutdown(wait=False, cancel_futures=True)
        if self._vlm is not None:
            self._vlm.close()
        self._callers.shutdown()

    def _load(self) -> LoadedVlm:
        with self._loading:  # two calls may be the first
            if self._vlm is None:
                if not isinstance(self._inquiry.vlm, EndpointVlm):  # whose files are not here
                    self._inquiry.check_here(self._run_dir)
                self._vlm = load_vlm(self._inquiry.vlm, machine_folder(self._run_dir) / layout.LOGS)
            return self._vlm

    def _see(self, ask: Ask) -> Asked | Rejected:
        """Decode an image, once, and find what was said of it before."""
        try:
            info, image = decode_for_model(ask.data, self._inquiry.vlm.image_size)
        except UnreadableImage as error:
            return Rejected(key=ask.key, reason=error.reason, detail=error.detail)
        question = RecordedAnswer(
            image=ask.key,
            image_sha256=sha256(ask.data).hexdigest(),
            model=model_name(self._inquiry.vlm),
            source=self._source,
            prompt=ask.prompt,
        )
        known = self._known.get(_question(question))
        image = None if known else image
        return Asked(row=ask.row, info=info, image=image, said=known or question, schema=ask.schema)

    def _answer(self, seen: Sequence[Future[Asked | Rejected]]) -> list[Asked | Rejected]:
        """Put what is not answered yet to the model, as one batch."""
        results = [future.result() for future in seen]
        pending = {
            n: Question(image=result.image, prompt=result.said.prompt, schema=result.schema)
            for n, result in enumerate(results)
            if isinstance(result, Asked) and result.image is not None
        }
        answers = self._load()(list(pending.values())) if pending else []
        for n, answer in zip(pending, answers, strict=True):
            asked = results[n]
            assert isinstance(asked, Asked)
            if isinstance(answer, NoAnswer):
                said = replace(asked.said, refused=storable(answer.detail) or "without a word")
            else:
                said = replace(asked.said, answer=storable(answer.text), finished=answer.finished)
            results[n] = replace(asked, image=None, said=said)
        return results


class AskedSink:
    """A stage's own sink, and the table of answers beside it."""

    def __init__(self, asker: Asker, sink: Sink) -> None:
        self._asker = asker
        self._sink = sink

    def write(self, row: object) -> None:
        """Add one row of the stage's."""
        self._sink.write(row)

    def close(self) -> None:
        """Finish both tables."""
        self._sink.close()
        self._asker.finish()


def _without_refused(result: Asked | Rejected) -> Asked | Rejected:
    if isinstance(result, Asked) and result.said.refused:
        return Rejected(key=result.said.image, reason=Reason.NO_ANSWER, detail=result.said.refused)
    return result


def _concerns_all(refused: str) -> bool:
    """Whether a server refused every question, in words that are known: kept before such refusals stopped a run."""
    advice = advice_for(refused) if refused else None
    return advice is not None and advice.of_all


def _sources(path: Place) -> list[str]:
    try:
        return read_columns(path, ["source"])["source"].unique().to_pylist()
    except WorkError:
        return []  # damaged: they are asked for again


def _question(said: RecordedAnswer) -> RecordedAnswer:
    """The question alone, under which an answer is found again: of long names and moved models, too.

    A `source` says already what the model is, wherever it lay.
    """
    model = "" if said.source else said.model
    return replace(said, image=key_order(said.image), model=model, answer="", finished=False, refused="")


def _read_answers(path: Place) -> list[RecordedAnswer]:
    """Answers of an earlier time; no commit vouches for them, so damaged ones are asked for again."""
    if size_of(path) is None:
        return []
    try:
        return list(read_rows(path, RecordedAnswer))
    except WorkError:
        log.warning("%s: damaged; its questions are asked again", path)
        return []
