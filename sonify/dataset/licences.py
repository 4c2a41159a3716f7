"""What licences ask for, and which of that excludes each other.

Corpora write licences in many ways: the address of a deed, an SPDX name, Freesound's words. What is not recognised as a
whole is `unknown`, which allows nothing. This sorts; it is no legal advice.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
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
# The hub's names of licences: https://huggingface.co/docs/hub/repositories-licenses (`other` and `unknown` choose none)
_CREATIVE_COMMONS = {
    "by": ("2.0", "2.5", "3.0", "4.0"),
    "by-sa": ("3.0", "4.0"),
    "by-nc": ("2.0", "3.0", "4.0"),
    "by-nd": ("4.0",),
    "by-nc-nd": ("3.0", "4.0"),
    "by-nc-sa": ("2.0", "3.0", "4.0"),
}
HUB_LICENCES = (
    *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0"),
    *("bigcode-openrail-m", "openrail++", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause"),
    *("bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0"),
    *(f"cc-{parts}-{version}" for parts, versions in _CREATIVE_COMMONS.items() for version in versions),
    *("wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl", "gpl-2.0"),
    *("gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "osl-3.0"),
    *("postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license", "llama2"),
    "gemma",
)


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


def disagreements(chosen: str, licences: Mapping[str, int], what: str) -> tuple[str, ...]:
    """Where a licence for something made of works says else than theirs, with the number of the works.

    `licences` counts the works, which are called `what`, by licence. Whether weights are made of what they were trained
    on, in the sense of these licences, is not settled: this names what a choice has to stand up to.
    """
    total = sum(licences.values())
    counts: Counter[str] = Counter()
    for licence, works in licences.items():
        counts.update(dict.fromkeys(conditions_of(licence), works))
    kept = conditions_of(chosen)
    says = "is not known to say" if UNKNOWN in kept else "does not say"
    same = f"want the same licence for what is made of them, and {chosen} is another"
    found = {
        NC: f"are for no commercial use (NC), which {chosen} {says}",
        SA: f"{same} (SA)",
        NC_SA: f"{same} (NC-SA)",
        ND: "let nothing be made of them (ND)",
        RESEARCH_ONLY: "are for research only",
        NO_REDISTRIBUTION: "may not be passed on",
        UNKNOWN: "have a licence that is not known here, which allows nothing",
    }
    broken = [one for one in found if counts[one] and (one in _FORBIDDING or one not in kept)]
    return tuple(f"{counts[one]:,} of {total:,} {what} {found[one]}" for one in broken)
