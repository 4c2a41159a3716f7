"""Answers in JSON: objects with keys for name and description, or names mapped to descriptions, in lists or not."""

from collections.abc import Sequence

from sonify.vlm.drafts import Draft, Entry, entry_of, key_of
from sonify.vlm.line_form import split_pair
from sonify.vlm.naming import strip_marks
from sonify.vlm.vocabulary import BOX_KEYS, CAPTION_KEYS, DESCRIPTION_KEYS, PROMINENCE_KEYS, PROMINENCES, is_heading

_FIELDS = DESCRIPTION_KEYS | PROMINENCE_KEYS | BOX_KEYS


def draft_from_json(values: Sequence[object]) -> Draft:
    """Read the objects and lists of an answer."""
    draft = Draft()
    for value in values:
        _read(value, "", draft)
    return draft


def is_empty(values: Sequence[object]) -> bool:
    """Whether an answer says `[]` or `{"concepts": []}`."""
    return any(not v or (isinstance(v, dict) and any(inner in ([], {}, None) for inner in v.values())) for v in values)


def _read(value: object, section: str, draft: Draft) -> None:
    if isinstance(value, list):
        for item in value:
            if isinstance(item, str):
                name, description = split_pair(strip_marks(item)[0], listed=True) or (item, "")
                draft.entries.append(Entry(name=name, description=description, prominence=section))
            else:
                _read(item, section, draft)
    elif isinstance(value, dict):
        entry = entry_of(value, section=section)
        if entry is not None:
            draft.entries.append(entry)
        else:
            _read_mapping(value, section, draft)


def _read_mapping(value: dict[str, object], section: str, draft: Draft) -> None:
    """An object without a name: its keys are the names, or headings above more."""
    for raw, inner in value.items():
        key = key_of(raw)
        if isinstance(inner, str):
            if key in CAPTION_KEYS or (key == "description" and not draft.caption):
                draft.caption = draft.caption or inner
            elif key not in _FIELDS:
                draft.entries.append(Entry(name=raw, description=inner, prominence=section))
        elif isinstance(inner, dict) and not is_heading(raw) and any(key_of(k) in _FIELDS for k in inner):
            draft.entries.append(entry_of(inner, name=raw, section=section) or Entry(name=raw))
        else:
            _read(inner, PROMINENCES.get(key, section), draft)
