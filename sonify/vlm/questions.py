"""What a vision-language model is asked about an image, and the types in which it is asked and answers.

Two questions: what can be heard; and, as a check, whether what was named is there, asked together with two foils.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Protocol

from PIL import Image

from sonify.captions.ontology import class_ids_by_name, load_ontology, match_sounds, most_specific
from sonify.captions.words import tokenize
from sonify.config.models import LANGUAGES
from sonify.config.sections import PRESENCES
from sonify.keys import hash64
from sonify.rows import Concept, Reason
from sonify.vlm.vocabulary import name_key

# Rises with every change of the words: answers to another prompt are other answers.
PROMPT_VERSION = 1
# The paper's own example ("Seeing Sound", section 3). A small model copies it into its answer: the parser knows it.
EXAMPLE_NAME = "dog"
EXAMPLE_DESCRIPTION = "sound of a dog barking while running in the grass"
# "visible and present in the image" is the paper's: without it models name what is off camera, seagulls at any beach.
CONCEPTS_PROMPT = (
    "What can be heard in this image? Answer in plain lines, without markdown.\n"
    "First line: caption: one sentence that describes the image\n"
    "Then at most {max_concepts} lines, one for each thing that is visible and present in the image and makes a sound"
    " right now:\n"
    "name: description (foreground, background or ambience)\n"
    "The description says how the thing sounds here. An example, from another image:\n"
    f"{EXAMPLE_NAME}: {EXAMPLE_DESCRIPTION} (foreground)\n"
    "Leave out what is silent and what is outside the image. If nothing sounds, write none instead of the names."
)
# The same for answers in JSON; of the schema too.
JSON_PROMPT_VERSION = 1
# Boxes are asked for in thousandths of the image, as Qwen3-VL (and Qwen2-VL, InternVL) give them; Qwen2.5-VL, which was
# trained on pixels, may give those whatever it is told.
JSON_PROMPT = (
    "What can be heard in this image? Answer with one JSON object, without markdown. It has two keys.\n"
    "caption: one sentence that describes the image\n"
    "concepts: a list, first at most {max_concepts} things that are visible and present in the image and make a sound"
    " right now, then at most {max_concepts} more that belong to the scene but cannot be seen, or are silent now\n"
    "Each of the list is an object with these keys.\n"
    "name: what it is, in one to three words\n"
    "description: how it sounds here, as in: {example}\n"
    "presence: visible if it can be seen, implied if something that is seen speaks for it, off_screen if it is outside"
    " the image\n"
    "sounding: true if it makes a sound right now, else false\n"
    "prominence: foreground, background or ambience\n"
    "box: [left, top, right, bottom] in thousandths of the image's width and height, or [] if it cannot be seen\n"
    "confidence: how sure you are, from 0 to 1\n"
    "Name nothing twice. If there is no such thing, the list is empty.\n"
    "Write the caption, the names and the descriptions in {language}."
)
LANGUAGE_LINE = "Write the caption, the names and the descriptions in {language}; keep the words of the form."
# Rises with every change of the question, of the foils, or of what an answer to it means.
CHECK_VERSION = 1
_QUESTION = (
    "Look at this image again and answer in plain lines. Some of the things named below are not in it.\n"
    "First line: what is the image: photo, drawing, statue (a photo of a statue or a toy), logo or screen (a photo of"
    " one), or other?\n"
    "medium: one of these words\n"
    "Then one line for each of these names, in this order: {names}\n"
    "name: visible yes or no, real yes or no, sounding yes or no\n"
    "visible: it can be seen in the image. real: it is the thing itself and no picture, toy or statue of it."
    " sounding: it is making a sound right now."
)
# Ordinary sounding things that few photographs show, over many branches of the ontology; no people, for a model may
# well call some woman an opera singer.
FOILS = (
    "accordion", "bagpipes", "harp", "church organ", "xylophone", "drum kit", "trombone", "harmonica", "gong",
    "rooster", "donkey", "frog", "owl", "turkey", "whale", "pig", "rattlesnake", "mosquito", "lion", "crow",
    "helicopter", "steam train", "fire engine", "speedboat", "skateboard", "race car", "lawn mower", "chainsaw",
    "jackhammer", "sewing machine", "typewriter", "vacuum cleaner", "hair dryer", "blender", "cash register",
    "alarm clock", "telephone ringing", "kettle", "fireworks", "waterfall", "volcano eruption",
)  # fmt: skip
# What is below one of these only is not related: a bus and a blender. All animals are, all instruments, all vehicles.
BROAD_CLASSES = ("Sounds of things", "Source-ambiguous sounds", "Channel, environment and background")
UNRELATED_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """An RGB image, already of the size that the model is to see, and what is asked of it.

    `schema` is the JSON schema of the answer, to which a server is to hold the model; None where it may say anything.
    """

    image: Image.Image
    prompt: str
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundQuestion:
    """A recording as the bytes of a WAV file, and what is asked of it."""

    wav: bytes
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said, unparsed; `finished` is False where the token limit cut it."""

    text: str
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """This one question has no answer, and asking again would not help; `status` is a server's that refuses it."""

    reason: Reason
    detail: str
    status: int = 0


class LoadedVlm(Protocol):
    """A loaded model; it may be called from several threads where `sonify.vlm.backends` says so."""

    def __call__(self, questions: Sequence[Question]) -> list[Answer | NoAnswer]:
        """Answer questions, in their order.

        Raises:
            TransientError: the model's server is not there or not well; nothing is wrong with the questions.
            ConcernsAll: the server refuses every question: the key, the model, the address, what a request holds.
            MemoryError: they do not fit on the GPU together.
        """
        ...

    def close(self) -> None:
        """Stop what was started."""
        ...


def concepts_prompt(max_concepts: int, answers: str = "text", language: str | None = None) -> str:
    """The question to ask of each image, for answers in one of the forms and in a language (a code)."""
    if answers != "text":
        return JSON_PROMPT.format(
            max_concepts=max_concepts, example=EXAMPLE_DESCRIPTION, language=LANGUAGES[language or "en"]
        )
    asked = CONCEPTS_PROMPT.format(max_concepts=max_concepts)
    return f"{asked}\n{LANGUAGE_LINE.format(language=LANGUAGES[language])}" if language else asked


def concepts_schema(max_concepts: int) -> dict[str, Any]:
    """The JSON schema of an answer to the JSON question.

    Of what schemas can say only what all of vLLM, SGLang, LMDeploy, llama.cpp and OpenAI's strict form take: no bounds
    of numbers, every key required, no others. The order of the keys is that in which a model writes.
    """
    text = {"type": "string"}
    told = {
        "name": text,
        "description": text,
        "presence": {"type": "string", "enum": list(PRESENCES)},
        "sounding": {"type": "boolean"},
        "prominence": {"type": "string", "enum": ["foreground", "background", "ambience"]},
        "box": {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
        "confidence": {"type": "number"},
    }
    concepts = {"type": "array", "items": _object_of(told), "maxItems": 2 * max_concepts}
    return _object_of({"caption": text, "concepts": concepts})


def _object_of(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def ordered_names(concepts: Sequence[str], foils: Sequence[str], key: str, seed: int) -> tuple[str, ...]:
    """Concepts and foils in an order that tells nothing, so that the place of a foil does not give it away."""
    return tuple(sorted([*concepts, *foils], key=lambda name: hash64(seed, "check order", key, name)))


def check_question(names: Sequence[str]) -> str:
    """The question over all names, in their order."""
    return _QUESTION.format(names=", ".join(names))


def foils_for(concepts: Sequence[Concept], key: str, seed: int) -> tuple[str, str]:
    """Two foils for an image, drawn by its key, unlike its concepts and unlike each other.

    Where the concepts leave no foil that is unrelated, it is one that is as far from them as can be.
    """
    said = {concept.concept: f"{concept.concept}; {concept.description}" for concept in concepts}
    first = _draw(FOILS, said, key, seed)
    others = [foil for foil in FOILS if foil != first]
    return first, _draw(others, {**said, first: first}, key, seed)


def _draw(foils: Sequence[str], said: Mapping[str, str], key: str, seed: int) -> str:
    """The foil of the highest hash among those that share no word and no near ancestor with what is said."""
    taken = {word for name in said for word in name_key(name)}
    classes = {class_id for text in said.values() for class_id in _classes(text)}

    def rank(foil: str) -> tuple[bool, int, int]:
        return taken.isdisjoint(name_key(foil)), _steps(_classes(foil), classes), hash64(seed, "foil", key, foil)

    return max(foils, key=rank)


@lru_cache(maxsize=10_000)
def _classes(text: str) -> tuple[str, ...]:
    return tuple(match.class_id for match in most_specific(match_sounds(tokenize(text))))


def _steps(ours: Iterable[str], theirs: Iterable[str]) -> int:
    """Steps through the nearest common ancestor that is no broad class; `UNRELATED_STEPS` where there is none."""
    ontology = load_ontology()
    broad = {class_ids_by_name()[name] for name in BROAD_CLASSES}
    pairs = product((ontology[one].distances for one in ours), [ontology[other].distances for other in theirs])
    shared = ((one, two, ancestor) for one, two in pairs for ancestor in (one.keys() & two.keys()) - broad)
    return min((one[ancestor] + two[ancestor] for one, two, ancestor in shared), default=UNRELATED_STEPS)
