"""Words as captions write them: tokens, plurals, verb forms, words that discard. English, and small on purpose."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

_TOKEN = re.compile(r"[a-z0-9]+")
_POSSESSIVE = re.compile(r"['\u2019]s\b")
_VOWELS = "aeiou"
_IRREGULAR_PLURALS = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "goose": "geese", "mouse": "mice",
    "wolf": "wolves", "calf": "calves", "leaf": "leaves", "hoof": "hooves", "tooth": "teeth", "foot": "feet",
    "knife": "knives", "ox": "oxen", "fireman": "firemen", "policeman": "policemen",
}  # fmt: skip
_IRREGULAR_PASTS = {
    "sing": "sang", "ring": "rang", "run": "ran", "ride": "rode", "drive": "drove", "fly": "flew", "swim": "swam",
    "speak": "spoke", "eat": "ate", "write": "wrote", "blow": "blew", "break": "broke", "fall": "fell",
    "shake": "shook", "take": "took", "beat": "beaten", "hit": "hit", "cut": "cut", "split": "split", "read": "read",
    "swing": "swung", "dig": "dug", "tear": "tore",
}  # fmt: skip


def tokenize(text: str) -> list[str]:
    """Lower-case words and numbers without accents; a possessive `'s` is dropped, a hyphen separates."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(c for c in decomposed if not unicodedata.combining(c)) if not text.isascii() else decomposed
    return _TOKEN.findall(_POSSESSIVE.sub(" ", plain))


def expand(pattern: str) -> Iterator[tuple[str, ...]]:
    """Yield the token sequences that a pattern stands for.

    `word~` is a verb in all its forms, `word!` stays as it is, any other word is a noun in singular and plural.
    """
    yield from product(*(_forms(word) for word in pattern.split()))


def _forms(word: str) -> tuple[str, ...]:
    if word.endswith("~"):
        return verb_forms(word[:-1])
    return (word[:-1],) if word.endswith("!") else (word, plural(word))


@cache
def plural(noun: str) -> str:
    """The plural of an English noun."""
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith("y") and noun[-2:-1] not in _VOWELS:
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def verb_forms(verb: str) -> tuple[str, ...]:
    """The base, -s, -ing and -ed forms of an English verb, and a common irregular past."""
    if verb.endswith("e") and not verb.endswith("ee"):
        stem, past = verb[:-1], verb + "d"
    elif verb.endswith("y") and verb[-2:-1] not in _VOWELS:
        stem, past = verb, verb[:-1] + "ied"
    elif _doubles(verb):
        stem, past = verb + verb[-1], verb + verb[-1] + "ed"
    else:
        stem, past = verb, verb + "ed"
    return (verb, plural(verb), stem + "ing", _IRREGULAR_PASTS.get(verb, past))


def _doubles(verb: str) -> bool:
    """Short verbs of consonant, vowel, consonant double the last: clap, clapping."""
    if len(verb) < 3 or verb[-1] in "aeiouwxy" or verb[-2] not in _VOWELS or verb[-3] in _VOWELS:
        return False
    return sum(letter in _VOWELS for letter in verb) == 1


def find_discard_words(caption: str, words: Sequence[str], match: str) -> tuple[str, ...]:
    """Return the discard words that a caption holds.

    Args:
        caption: any text.
        words: lower-case words.
        match: `word` for whole words in singular or plural; `substring` is the paper's test, in which "sign" also
            finds "design".
    """
    if match == "substring":
        return tuple(word for word in words if word.lower() in caption.lower())
    present = set(re.findall(r"\w+", caption.lower()))
    return tuple(word for word in words if present & {word.lower(), plural(word.lower())})
