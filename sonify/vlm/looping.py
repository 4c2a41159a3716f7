"""Seeing that a model said the same again and again, as models do until the token limit stops them."""

import re

import numpy as np

# Four times the same, and at least 16 words of it: "woof woof woof woof" inside a description is no loop.
MIN_REPEATS = 4
MIN_WORDS = 16
# A whole answer of a caption and five concepts, said again and again, has a period of about 100 words.
MAX_PERIOD_WORDS = 400
# Writing without spaces, "!!!!!" of a model that computes NaN: eight times the same, and at least 64 characters of it.
MIN_CHAR_REPEATS = 8
MIN_CHARS = 64
MAX_PERIOD_CHARS = 32
# A loop whose repeats differ in a word: few distinct runs of four words in a long answer. Lists in the asked form have
# above 0.6.
MIN_DISTINCT = 0.25
LONG_ANSWER_WORDS = 200

_LIST_NUMBER = re.compile(r"\b\d{1,4}[.):]\s")
_RULER = re.compile(r"[-=_*|:#\s]+")
_WORD = re.compile(r"\w+")


def is_looping(text: str) -> bool:
    """Whether the text repeats itself. Linear in its length, times the periods that are tried."""
    words = _WORD.findall(_LIST_NUMBER.sub(" ", text.lower()))
    places: dict[str, int] = {}
    word_ids = np.array([places.setdefault(word, len(places)) for word in words], dtype=np.int32)
    if _repeats(word_ids, MAX_PERIOD_WORDS, MIN_REPEATS, MIN_WORDS) or _says_little(word_ids):
        return True
    # rulers and the padding of tables are no loops
    chars = np.frombuffer(_RULER.sub(" ", text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return _repeats(chars, MAX_PERIOD_CHARS, MIN_CHAR_REPEATS, MIN_CHARS)


def _repeats(ids: np.ndarray, max_period: int, min_repeats: int, min_length: int) -> bool:
    """Whether a run of at least `min_length` items, and of `min_repeats` periods, repeats with some period."""
    for period in range(1, min(max_period, len(ids) // min_repeats) + 1):
        needed = max(min_length, min_repeats * period) - period
        same = ids[period:] == ids[:-period]
        if np.count_nonzero(same) >= needed and _longest_run(same) >= needed:
            return True
    return False


def _longest_run(same: np.ndarray) -> int:
    breaks = np.flatnonzero(~same)
    return int(np.diff(breaks, prepend=-1, append=len(same)).max()) - 1


def _says_little(word_ids: np.ndarray) -> bool:
    if len(word_ids) < LONG_ANSWER_WORDS:
        return False
    runs = np.lib.stride_tricks.sliding_window_view(word_ids, 4)
    return len(np.unique(runs, axis=0)) < MIN_DISTINCT * len(runs)
