"""What is wrong with a configuration, in words: the key, what was expected, what was found, what may be meant."""

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from upath import UPath

from sonify.config.inputs import Section
from sonify.errors import did_you_mean

# Keys whose value is not shown.
SECRET = frozenset({"api_key_env"})
MOST_SHOWN = 3
KEYS_ALIKE = 0.75  # of letters that two keys share, in difflib's measure
# What pydantic calls a wrong type, in the words of who writes YAML.
_EXPECTED = (
    (("int_type", "int_parsing", "int_from_float"), "expected a whole number"),
    (("float_type", "float_parsing"), "expected a number"),
    (("bool_type", "bool_parsing"), "expected true or false"),
    (("string_type",), "expected text"),
    (("tuple_type", "list_type"), "expected a list, such as [a, b]"),
    (("model_type", "model_attributes_type", "dict_type"), "expected a section, such as {key: value}"),
)
_NUMBER = re.compile(r"([+-]?\d+)(\.\d*)?[eE]([+-]?)(\d+)")


def describe(errors: Sequence[Mapping[str, Any]], kind: type[Section], lines: Mapping[str, int]) -> str:
    """The first few of pydantic's errors in one line; `lines` says where in the file a key stands."""
    found = [(*_locate(kind, error), error) for error in errors]
    places = [error["loc"] for error in errors]
    by_key: dict[str, list[str]] = {}
    for key, sections, error in found:
        # a list none of whose items is right is also called too short
        inside = any(len(loc) > len(error["loc"]) and loc[: len(error["loc"])] == error["loc"] for loc in places)
        # and a default that follows from another key says that this key is wrong, which is told already
        if (error["type"] == "too_short" and inside) or error["type"] == "default_factory_not_called":
            continue
        line = f" (line {lines[key]})" if key in lines and error["type"] != "missing" else ""
        by_key.setdefault(f"{key}{line}", []).append(_say(key, error, sections, kind))
    said = [f"{key and f'{key}: '}{_together(list(dict.fromkeys(texts)))}" for key, texts in by_key.items()]
    more = len(said) - MOST_SHOWN
    return "; ".join([*said[:MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def keys_of(kind: type[Section]) -> list[str]:
    """Every key that there is, in full; items of lists are shown by the first."""
    return list(dict.fromkeys(_keys(kind, "")))


def suggest_key(key: str, kind: type[Section], beside: Sequence[str] = ()) -> str:
    """What may have been meant by a key that does not exist: one beside it, else one of that name elsewhere."""
    prefix, _, last = key.rpartition(".")
    known = keys_of(kind)
    generic = re.sub(r"(?<=\.)\d+(?=\.)", "0", key)
    if generic in known:  # of another branch of the union
        holders = [section for section in _all_sections(kind) if last in section.model_fields]
        return f" here; it belongs to {' and '.join(dict.fromkeys(t for one in holders for t in _tags(one)))}"
    names: dict[str, list[str]] = {}
    for each in known:
        names.setdefault(each.rpartition(".")[2], []).append(each)
    near = did_you_mean(last, beside, KEYS_ALIKE)
    if near and last not in names:
        return near.replace("mean ", f"mean {prefix}.") if prefix else near
    nearest = get_close_matches(last, names, 1, KEYS_ALIKE)
    same = names.get(last) or [each for name in nearest for each in names[name]]
    return f"; did you mean {' or '.join(same[:MOST_SHOWN])}?" if same else ""


def explain_option(kind: type[Section]) -> Callable[[str, str], str]:
    """What a parser says of an option that does not exist: a key may be meant, which is written without dashes."""

    def explained(option: str, value: str) -> str:
        key = next((each for each in keys_of(kind) if option == each or option.startswith(f"{each}.")), None)
        if key is None:
            return ""
        return f"keys are written without dashes: {option}={value if value and not value.startswith('-') else '...'}"

    return explained


def explain_word(word: str, following: str, kind: type[Section]) -> str:
    """What is wrong with a word that is no `key=value`."""
    key, colon, value = word.partition(":")
    first = key.partition(".")[0]
    if first not in kind.model_fields:
        hint = did_you_mean(first, kind.model_fields, KEYS_ALIKE) if "." in key else ""
        return f"unknown argument {short(word)}: expected key=value, such as seed=3{hint}"
    if not colon:
        value = following if following and "=" not in following and not following.startswith("-") else "..."
    return f"{short(word)}: a key and its value are joined by =: {key}={value}"


def short(value: object) -> str:
    """A value as a message shows it: untrusted, so not longer than a line."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")  # as YAML has it
    text = str(value) if isinstance(value, Path | UPath) and str(value).isprintable() else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _all_sections(kind: type[Section]) -> list[type[Section]]:
    inner = [section for field in kind.model_fields.values() for section in _sections(field.annotation)]
    return [kind, *(each for section in inner for each in _all_sections(section))]


def _keys(kind: type[Section], prefix: str) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        yield key
        item = ".0" if _is_list(field.annotation) else ""
        for section in _sections(field.annotation):
            yield from _keys(section, f"{key}{item}.")


def _locate(kind: type[Section], error: Mapping[str, Any]) -> tuple[str, list[type[Section]]]:
    """The key of an error as it is written, and the sections in which its last part is looked for.

    pydantic puts the branch of a union into the path (`images.folder.x`, `image.literal['original']`).
    """
    names: list[str] = []
    annotations: list[Any] = [kind]
    around: list[type[Section]] = [kind]
    parts = error["loc"]
    for n, part in enumerate(parts):
        sections = [section for one in annotations for section in _sections(one)]
        last = n == len(parts) - 1
        if isinstance(part, int):
            names.append(str(part))
        elif sections[1:] and (branches := [section for section in sections if part in _tags(section)]):
            around = annotations = branches
        elif holders := [section for section in sections if part in section.model_fields]:
            names.append(part)
            around = holders
            annotations = [section.model_fields[part].annotation for section in holders]
        elif last and error["type"] == "extra_forbidden":
            names.append(str(part))
            around = sections
        elif any(_is_mapping(one) for one in annotations) and part != "[key]":
            names.append(str(part))
            annotations = []
    if error["type"].startswith("union_tag"):
        names.append(error["ctx"]["discriminator"].strip("'"))
    return ".".join(names), around


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that a value of this type may be, those in a list among them."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(
        _is_list(part) for part in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType)
    )


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(_is_mapping(part) for part in get_args(annotation))


def _tags(section: type[Section], name: str = "") -> tuple[str, ...]:
    """What tells a branch of a union from the others, by the field of that name or by any."""
    names = {name} if name else {"kind", "backend"}
    fields = [section.model_fields[each].annotation for each in names & section.model_fields.keys()]
    return tuple(tag for one in fields if get_origin(one) is Literal for tag in get_args(one))


def _say(key: str, error: Mapping[str, Any], around: Sequence[type[Section]], kind: type[Section]) -> str:
    what = error["type"]
    if what == "extra_forbidden":
        beside = [name for section in around for name in section.model_fields]
        return f"no such key{suggest_key(key, kind, beside) or '; check the spelling'}"
    if what == "missing":
        return "missing, must be set"
    if what == "union_tag_not_found":
        return f"missing, must be set to one of {', '.join(_tags_at(around, key))}"
    if what == "value_error":
        return _lower(error["msg"].removeprefix("Value error, "))
    if key.rpartition(".")[2] in SECRET:  # what stands where a variable's name belongs may be the key itself
        return _lower(error["msg"])
    return _say_expected(key, error, around)


def _say_expected(key: str, error: Mapping[str, Any], around: Sequence[type[Section]]) -> str:
    """Of a value that is not what the key takes."""
    what, value, context = error["type"], error["input"], error.get("ctx", {})
    if what == "union_tag_invalid":
        value = context["tag"]
    words = context.get("expected_tags") or (context.get("expected") if what == "literal_error" else None)
    expected = f"expected one of {words}" if what == "union_tag_invalid" else f"expected {words}"
    hint = _as_yaml_reads(key, value, what)
    if words:
        # as other libraries call it, which in letters is nearer to cpu
        meant = "cuda" if str(value).lower() == "gpu" else str(value)
        hint = hint or did_you_mean(meant, _quoted(words))
    else:
        few = what == "too_short" and f"expected at least {context['min_length']}"
        expected = few or _expected(what) or _lower(error["msg"])
        hint = hint or _as_section(key, value, around)
    return f"{expected}, found {short(value)}{hint}"


def _expected(what: str) -> str:
    return next((text for types_, text in _EXPECTED if what in types_), "")


def _together(texts: Sequence[str]) -> str:
    """What several branches of a union expected of one value."""
    if len(texts) < 2 or not all(text.startswith("expected ") and ", found " in text for text in texts):
        return "; ".join(texts)
    expected = [text.removeprefix("expected ").partition(", found ")[0] for text in texts]
    return f"expected {' or '.join(expected)}, found {texts[0].partition(', found ')[2]}"


def _as_yaml_reads(key: str, value: object, what: str) -> str:
    """What YAML makes of a value that was meant otherwise, and how it is written."""
    if isinstance(value, bool) and what in ("literal_error", "string_type"):
        return "; YAML reads no, off, yes and on as false and true: put the word in quotes"
    if isinstance(value, int | float) and what == "string_type":
        return f"; put it in quotes: '{value}'"
    if not isinstance(value, str):
        return ""
    if (number := _NUMBER.fullmatch(value)) and _expected(what).endswith("number"):
        return f"; {_write_number(value, number, what.startswith('int'))}"
    if what.startswith(("model", "dict")) and (pair := re.match(r"([A-Za-z_]\w*):(\S.*)", value)):
        return f"; a blank belongs behind the colon: {pair.group(1)}: {short(pair.group(2))[1:-1]}"
    listed = what.startswith(("tuple", "list")) and "," in value
    return f"; write {key}=[{value.strip('[]() ')}]" if listed else ""


def _write_number(text: str, number: re.Match[str], whole: bool) -> str:
    """How a number with an exponent is written so that YAML takes it for one."""
    if whole:
        return f"write {float(text):.0f}" if len(number.group(4)) < 3 else "write it without an exponent"
    digits, fraction, sign, power = number.groups()
    if not fraction or fraction == ".":
        fraction = ".0"
    return f"YAML takes it for text: write {digits}{fraction}e{sign or '+'}{power}"


def _as_section(key: str, value: object, around: Sequence[type[Section]]) -> str:
    """What may have been meant where a word stands in the place of a section."""
    last = key.rpartition(".")[2]
    fields = [section.model_fields[last].annotation for section in around if last in section.model_fields]
    sections = [section for one in fields for section in _sections(one)]
    if not isinstance(value, str) or not sections:
        return ""
    if any(value in _tags(section, "kind") for section in sections):
        return f"; did you mean {{kind: {value}}}?"
    item = ".0" if any(_is_list(one) for one in fields) else ""
    return f"; did you mean {key}{item}.path?" if any("path" in section.model_fields for section in sections) else ""


def _tags_at(around: Sequence[type[Section]], key: str) -> list[str]:
    """The branches that a union has, by the field that tells them apart, which is the key's last part."""
    *parents, name = key.split(".")
    parent = next((part for part in reversed(parents) if not part.isdigit()), "")
    fields = [section.model_fields[parent].annotation for section in around if parent in section.model_fields]
    sections = [section for one in fields for section in _sections(one)] or list(around)
    return list(dict.fromkeys(tag for section in sections for tag in _tags(section, name)))


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _lower(message: str) -> str:
    return f"{message[0].lower()}{message[1:]}"
