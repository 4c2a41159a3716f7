"""An answer read for its form alone: a caption, and names with what was said of them. What they mean comes later."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sonify.vlm.vocabulary import BOX_KEYS, DESCRIPTION_KEYS, NAME_KEYS, PROMINENCE_KEYS, PROMINENCES


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A name as it was written, and what was said of it. `listed` is False for what looks like a heading."""

    name: str
    description: str = ""
    prominence: str = ""
    box: tuple[float, ...] = ()
    listed: bool = True


@dataclass(slots=True)
class Draft:
    """What reading has found so far."""

    caption: str = ""
    entries: list[Entry] = field(default_factory=list)


def key_of(text: str) -> str:
    """A heading or a key in one form: `**Concept 1**` and `concept` are one."""
    return " ".join(text.lower().replace("_", " ").strip(" *`\"'().:#0123456789").split())


def entry_of(said: Mapping[str, object], name: str = "", section: str = "") -> Entry | None:
    """The entry that the keys and values of an object or of a table's row make, or None where nothing is the name."""
    told = {key_of(key): value for key, value in said.items()}
    name = name or _text(told, NAME_KEYS)
    if not name:
        return None
    silent = False in (told.get("audible"), told.get("sounding"), told.get("sound"))
    return Entry(
        name=name,
        description="silent" if silent else _text(told, DESCRIPTION_KEYS),
        prominence=PROMINENCES.get(key_of(_text(told, PROMINENCE_KEYS)), section),
        box=_box(told),
    )


def _text(told: Mapping[str, object], keys: frozenset[str]) -> str:
    return next((v.strip() for k, v in told.items() if k in keys and isinstance(v, str)), "")


def _box(told: Mapping[str, object]) -> tuple[float, ...]:
    """The four numbers of a box, or none."""
    raw = next((value for key, value in told.items() if key in BOX_KEYS), None)
    numbers = tuple(n for n in raw if isinstance(n, float)) if isinstance(raw, list) else ()
    return numbers if len(numbers) == 4 else ()
