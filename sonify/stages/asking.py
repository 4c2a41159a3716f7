"""Asking a model about images: decoded off the model's thread, a window ahead, and every answer is kept.

What was answered before to the same question is not asked again, so that a new parser or filter costs nothing.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path

from PIL import Image

from sonify import layout
from sonify.config import VlmExtractor
from sonify.engine.files import Transaction
from sonify.engine.job import Sink
from sonify.engine.tables import TableWriter, read_rows
from sonify.errors import WorkError
from sonify.media.pixels import ImageInfo, UnreadableImage, decode_for_model
from sonify.rows import RecordedAnswer, Rejected
from sonify.vlm.backends import load_vlm, model_name, overlap_of, window_of
from sonify.vlm.questions import NoAnswer, Question

log = logging.getLogger(__name__)

# Decoding 2 megapixels to a model's size takes some 10 ms, an answer of a real model ten times as long and more.
DECODING_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A file's bytes, and what is asked of the image in it."""

    key: str
    data: bytes
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An image and what was said of it. `image` is dropped once the model has seen it."""

    info: ImageInfo
    image: Image.Image | None
    said: RecordedAnswer


Begun = Future[list[Asked | Rejected]]


class Asker:
    """Asks one model, unit after unit; `name` is that of its folder of answers."""

    def __init__(self, config: VlmExtractor, run_dir: Path, name: str) -> None:
        self._image_size = config.image_size
        self._run_dir = run_dir
        self._name = name
        self._model = model_name(config)
        self.window = window_of(config)
        self._vlm = cache(lambda: load_vlm(config, run_dir / layout.LOGS))
        self._decoders = ThreadPoolExecutor(DECODING_THREADS)
        self._callers = ThreadPoolExecutor(overlap_of(config))
        self._known: dict[RecordedAnswer, RecordedAnswer] = {}
        self._table: TableWriter | None = None
        if not any((run_dir / layout.ANSWERS / name).glob("*.parquet")):
            self._vlm()  # what is wrong with it shows before any unit; where answers are kept, it may not be needed

    def open(self, unit: str, transaction: Transaction, sink: Sink) -> "AskedSink":
        """Begin a unit: recall its answers, and keep those that come beside the stage's own table."""
        path = layout.answers(self._name, unit)
        self._known = {_unanswered(said): said for said in _read_answers(self._run_dir / path)}
        self._table = TableWriter(transaction.create(path), RecordedAnswer)
        return AskedSink(self._table, sink)

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
        for result in results:
            if isinstance(result, Asked) and self._table is not None:
                self._table.write(result.said)
        return results

    def close(self) -> None:
        """End the threads, and what the model has started."""
        self._decoders.shutdown(cancel_futures=True)
        self._callers.shutdown(cancel_futures=True)
        if self._vlm.cache_info().currsize:
            self._vlm().close()

    def _see(self, ask: Ask) -> Asked | Rejected:
        """Decode an image, once, and find what was said of it before."""
        try:
            info, image = decode_for_model(ask.data, self._image_size)
        except UnreadableImage as error:
            return Rejected(key=ask.key, reason=error.reason, detail=error.detail)
        question = RecordedAnswer(
            image=ask.key,
            image_sha256=sha256(ask.data).hexdigest(),
            model=self._model,
            prompt=ask.prompt,
            answer="",
            finished=False,
        )
        known = self._known.get(question)
        return Asked(info=info, image=None if known else image, said=known or question)

    def _answer(self, seen: Sequence[Future[Asked | Rejected]]) -> list[Asked | Rejected]:
        """Put what is not answered yet to the model, as one batch."""
        results = [future.result() for future in seen]
        open_questions = {
            n: Question(image=result.image, prompt=result.said.prompt)
            for n, result in enumerate(results)
            if isinstance(result, Asked) and result.image is not None
        }
        answers = self._vlm()(list(open_questions.values())) if open_questions else []
        for n, answer in zip(open_questions, answers, strict=True):
            asked = results[n]
            assert isinstance(asked, Asked)
            if isinstance(answer, NoAnswer):
                results[n] = Rejected(key=asked.said.image, reason=answer.reason, detail=answer.detail)
            else:
                said = replace(asked.said, answer=_storable(answer.text), finished=answer.finished)
                results[n] = Asked(info=asked.info, image=None, said=said)
        return results


class AskedSink:
    """A stage's own sink, and the table of answers beside it."""

    def __init__(self, answers: TableWriter, sink: Sink) -> None:
        self._answers = answers
        self._sink = sink

    def write(self, row: object) -> None:
        """Add one row of the stage's."""
        self._sink.write(row)

    def close(self) -> None:
        """Finish both tables."""
        self._sink.close()
        self._answers.close()


def _unanswered(said: RecordedAnswer) -> RecordedAnswer:
    """The question alone, under which an answer is found again."""
    return replace(said, answer="", finished=False)


def _read_answers(path: Path) -> list[RecordedAnswer]:
    """Answers of an earlier time; no commit vouches for them, so damaged ones are asked for again."""
    if not path.is_file():
        return []
    try:
        return list(read_rows(path, RecordedAnswer))
    except WorkError:
        log.warning("%s: damaged; its questions are asked again", path)
        return []


def _storable(text: str) -> str:
    """Text that Parquet accepts: a server's JSON may hold half a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()
