"""What an audio language model is asked about a recording, and how what it says is read."""

import io
import re
import wave

import numpy as np

from sonify.captions.ontology import find_sounds
from sonify.config import EndpointVlm, Listener
from sonify.rows import Concept, Reason
from sonify.vlm.answers import parse_concepts
from sonify.vlm.repair import Unusable

# Rises with every change of the words: answers to another question are other answers.
HEARING_VERSION = 1
MOST_SOUNDS = 10
HEARING_PROMPT = (
    "What can be heard in this recording? Answer in English, in plain lines, without markdown.\n"
    f"At most {MOST_SOUNDS} lines, one for each sound that is plainly heard, the clearest first:\n"
    "name: description\n"
    "The name says what sounds, such as dog barking; the description says how it sounds here. Leave out what might be"
    " there and is not heard. If nothing is heard, write none instead."
)
_NEGATION = re.compile(r"\b(?:no|not|none|nothing|without|never|cannot|unable)\b|n't\b", re.IGNORECASE)


def asked_of(listener: Listener) -> EndpointVlm:
    """A listener as the client of a server has it."""
    shared = listener.model_dump(exclude={"kind"})
    return EndpointVlm(kind="vlm", backend="endpoint", name="retrieval-confirm", **shared)


def encode_wav(samples: np.ndarray, sample_rate_hz: int) -> bytes:
    """(S,) int16 samples as a WAV file, which every server reads."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def read_heard(answer: str, finished: bool) -> tuple[Concept, ...] | Unusable:
    """The sounds that an answer names, best first; none where it says that nothing is heard.

    Some models answer in a sentence whatever the form: there the sounds that captions would name count, unless it
    also says what is not heard.
    """
    parsed = parse_concepts(answer, MOST_SOUNDS, None, finished)
    if not isinstance(parsed, Unusable):
        return parsed.concepts
    if parsed.reason == Reason.NO_CONCEPTS:
        return ()
    told = parsed.reason == Reason.BAD_ANSWER and not _NEGATION.search(answer)
    return (find_sounds(answer) if told else ()) or parsed
