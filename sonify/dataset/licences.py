"""What licences ask for, and which of that excludes each other.

Corpora write licences in many ways: the address of a deed, an SPDX name, Freesound's words. What is not recognised as a
whole is `unknown`, which allows nothing. This sorts; it is no legal advice.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache

from sonify.errors import InputError, did_you_mean

BY = "BY"
NC = "NC"
SA = "SA"  # of the family of BY-SA, whose works stay usable commercially
NC_SA = "NC-SA"  # of the family of BY-NC-SA, which excludes just that
ND = "ND"
RESEARCH_ONLY = "research only"
NO_REDISTRIBUTION = "no redistribution"
UNKNOWN = "unknown"
CONDITIONS = (BY, NC, SA, NC_SA, ND, RESEARCH_ONLY, NO_REDISTRIBUTION, UNKNOWN)

_FORBIDDING = frozenset({ND, RESEARCH_ONLY, NO_REDISTRIBUTION, UNKNOWN})
SA1B_LICENCE = "SA-1B Dataset Research License"

# Freesound's Sampling+ allows to transform commercially but not to advertise, and whole copies without profit only.
_SAMPLING_PLUS = frozenset({BY, NC})
_NAMED = {
    "public domain": frozenset[str](),
    "public domain mark": frozenset[str](),
    "mark": frozenset[str](),
    "publicdomain": frozenset[str](),
    "pdm": frozenset[str](),
    "pddl": frozenset[str](),
    "unlicense": frozenset[str](),
    "cc0": frozenset[str](),
    "cc0 public domain": frozenset[str](),
    "cc0 cc0 public domain": frozenset[str](),  # the deed's own title
    "zero": frozenset[str](),
    "mit": frozenset({BY}),
    "apache": frozenset({BY}),
    "odc by": frozenset({BY}),
    "cdla permissive": frozenset({BY}),
    "sampling+": _SAMPLING_PLUS,
    "sampling plus": _SAMPLING_PLUS,
    "nc sampling+": _SAMPLING_PLUS,
    "nc sampling plus": _SAMPLING_PLUS,
    "all rights reserved": frozenset({NO_REDISTRIBUTION}),
    # https://sound-effects.bbcrewind.co.uk/licensing
    "remarc": frozenset({BY, NC, RESEARCH_ONLY, NO_REDISTRIBUTION}),
    "youtube research only no redistribution": frozenset({RESEARCH_ONLY, NO_REDISTRIBUTION}),
    # https://ai.meta.com/datasets/segment-anything/
    "sa 1b": frozenset({RESEARCH_ONLY, NO_REDISTRIBUTION}),
    "sa 1b dataset research": frozenset({RESEARCH_ONLY, NO_REDISTRIBUTION}),
}
# As people write them; each is recognised.
EXAMPLES = (
    *(f"CC {parts} 4.0" for parts in ("BY", "BY-SA", "BY-ND", "BY-NC", "BY-NC-SA", "BY-NC-ND")),
    *("CC0-1.0", "public domain", "MIT", "Apache-2.0", "ODC-BY", "all rights reserved", SA1B_LICENCE),
)
_DEED = re.compile(
    r"https?://(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/([a-z+-]+)"
    r"(?:/\d\.\d)?(?:/[a-z]{2,3})?(?:/(?:deed|legalcode)(?:\.[a-z_-]{2,7})?)?/?"
)
# Longer ways to say the same; what is left of a name are its parts.
_WORDS = (
    (re.compile(r"\bcreative commons(?: 0| zero)\b|\bcc[ -](?:0|zero)\b"), "cc0"),
    (re.compile(r"\bcreative commons\b|\bcc\b"), " "),
    (re.compile(r"\bnon[ -]?commercial\b"), "nc"),
    (re.compile(r"\bshare[ -]?alike\b"), "sa"),
    (re.compile(r"\bno[ -]?deriv(?:ative)?s?(?: works)?\b"), "nd"),
    (re.compile(r"\battribution\b"), "by"),
    (re.compile(r"\blicen[cs]e\b|\binternational\b|\bunported\b|\bgeneric\b|\buniversal\b|\bdedication\b"), " "),
    (re.compile(r"(?<![a-z0-9])v?\d\.\d(?![a-z0-9])"), " "),
    (re.compile(r"[\s_,()-]+"), " "),
)
MAX_LICENCE_CHARS = 200
_HUB_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@lru_cache(maxsize=4096)  # a corpus has few licences, and very many clips
def conditions_of(licence: str) -> frozenset[str]:
    """The conditions, of `CONDITIONS`, under which a licence lets its work be used; none for the public domain."""
    text = " ".join(licence.lower().split())
    if len(text) > MAX_LICENCE_CHARS:
        return frozenset({UNKNOWN})
    deed = _DEED.fullmatch(text)
    if deed:
        text = deed.group(1)
    for pattern, word in _WORDS:
        text = pattern.sub(word, text)
    text = text.strip()
    return _NAMED[text] if text in _NAMED else _creative_commons(text.split())


def _creative_commons(parts: Collection[str]) -> frozenset[str]:
    """`by`, with or without `nc` and one of `sa` and `nd`."""
    found = frozenset(parts)
    if "by" not in found or found - {"by", "nc", "sa", "nd"} or {"sa", "nd"} <= found or len(found) < len(parts):
        return frozenset({UNKNOWN})
    family = {"sa": NC_SA if "nc" in found else SA, "nd": ND}
    return frozenset(
        {BY} | ({NC} & {part.upper() for part in found}) | {family[part] for part in found & family.keys()}
    )


def contradictions(conditions: Collection[str]) -> tuple[str, ...]:
    """What of the conditions of a mix excludes each other; a mix is a derivative of all that is heard in it."""
    found: list[str] = []
    if SA in conditions and NC_SA in conditions:
        found.append("BY-SA with BY-NC-SA")
    elif SA in conditions and NC in conditions:
        found.append("BY-SA with NC")
    if ND in conditions:
        found.append("ND in a mix")
    return tuple(found)


def obstacles(conditions: Collection[str]) -> tuple[str, ...]:
    """Why a work under these conditions must not be passed on; empty where it may be."""
    forbidding = [one for one in CONDITIONS if one in conditions and one in _FORBIDDING - {ND}]
    return (*forbidding, *contradictions(conditions))


def redistributable(conditions: Collection[str]) -> bool:
    """Whether a work under these conditions may be passed on, under the same conditions."""
    return not obstacles(conditions)


def in_order(conditions: Collection[str]) -> tuple[str, ...]:
    """Conditions in the order of `CONDITIONS`."""
    return tuple(one for one in CONDITIONS if one in conditions)


def allow_only(chosen: Sequence[str], in_use: Collection[str]) -> Callable[[str], bool]:
    """What `--only-licences` allows: licences by their conditions, and by name as the corpora write them."""
    known = {condition.lower(): condition for condition in CONDITIONS}
    allowed: set[str] = set()
    for word in chosen:
        if word.lower() in known:
            allowed.add(known[word.lower()])
        elif UNKNOWN not in conditions_of(word):
            allowed |= conditions_of(word)
        elif word not in in_use:
            raise InputError(
                f"--only-licences {word}: expected any of {', '.join(CONDITIONS)}, a Creative Commons licence or one"
                f" that is in use here ({', '.join(sorted(in_use))[:300]})"
            )
    return lambda licence: licence in chosen or conditions_of(licence) <= allowed


def describe_unknown(licence: str) -> str:
    """What to say of a licence that is not recognised, which allows nothing; nothing of one that is."""
    if UNKNOWN not in conditions_of(licence) or licence == UNKNOWN:
        return ""
    return (
        f"{licence[:80]!r} is not recognised and counts as unknown, which lets nothing be passed on"
        f"{did_you_mean(licence, EXAMPLES, 0.7)}; recognised are {', '.join(EXAMPLES)}, and their deeds' addresses"
    )


def check_licence(licence: str) -> None:
    """Refuse what the hub takes for no licence."""
    if not _HUB_NAME.fullmatch(licence):
        raise InputError(
            f"licence: expected the hub's name of the metadata's licence, such as cc-by-4.0 or other, found {licence!r}"
        )
