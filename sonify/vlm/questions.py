"""What passes between a stage and a vision-language model: images and prompts in, answers out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from sonify.rows import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """An RGB image, already of the size that the model is to see, and what is asked of it."""

    image: Image.Image
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said, unparsed; `finished` is False where the token limit cut it."""

    text: str
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """This one question has no answer, and asking again would not help."""

    reason: Reason
    detail: str


class Vlm(Protocol):
    """A loaded model; it may be called from several threads where `sonify.vlm.backends` says so."""

    def __call__(self, questions: Sequence[Question]) -> list[Answer | NoAnswer]:
        """Answer questions, in their order.

        Raises:
            TransientError: the model's server is not there or not well; nothing is wrong with the questions.
        """
        ...

    def close(self) -> None:
        """Stop what was started."""
        ...
