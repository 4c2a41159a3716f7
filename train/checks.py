"""What is checked of a folder's parts before a library builds by their settings, and of their weights after."""

import inspect
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.utils import logging as diffusers_logging

from sonify.errors import InputError
from sonify.models.fetch import FetchedModel, read_json, read_shapes
from sonify.models.loading import cannot_load

# No number of a part's settings is larger, unless a side of its weights is.
MAX_SETTING = 65_536
MAX_LATENT_SIDE = 512  # far larger than any
# What of a network is as many as there are parts of it.
COUNTED = re.compile("layers|blocks")
TRAINING_STEPS = 1000
TRIED_STEPS = 20
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
# The layers of CLIP's text tower: how its settings call their number, and its weights each of them.
TEXT_LAYERS = ("num_hidden_layers", re.compile(r"encoder\.layers\.(\d+)\."))


def quiet_libraries() -> None:
    """Keep what the libraries would report of a load from standing above our own line; it is refused instead."""
    for library in (diffusers_logging, transformers.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def is_number(value: object) -> bool:
    """Whether it is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_text(value: object, longest: int) -> bool:
    """Whether it is a text that can be written as UTF-8, which half of a surrogate pair cannot."""
    return isinstance(value, str) and len(value) <= longest and not any("\ud800" <= c <= "\udfff" for c in value)


def check_numbers(path: Path) -> None:
    """Refuse numbers in a part's settings that none has, before a library builds by them whatever they ask for."""
    shapes = read_shapes(path.parent)
    largest = max(MAX_SETTING, *(size for sizes in shapes.values() for size in sizes), 0)
    for key, value in read_json(path).items():
        for number in _flat(value):
            if isinstance(number, int) and abs(number) > largest:
                raise InputError(f"{path}: expected {key} of {largest} at most, found {number}; take another release")
            if isinstance(number, float) and shapes and not math.isfinite(number):
                raise InputError(f"{path}: expected {key} as a finite number, found {number}; take another release")
            if isinstance(number, int) and shapes and COUNTED.search(key) and number > len(shapes):
                raise InputError(
                    f"{path}: expected {key} of {len(shapes)} at most, the tensors in its weights, found {number}"
                )


def _flat(value: object) -> Iterator[object]:
    """What stands in a value, in lists of lists as well."""
    todo = [value]
    while todo:
        found = todo.pop()
        if isinstance(found, list):
            todo += found
        else:
            yield found


def check_layers(path: Path, key: str, layer: re.Pattern[str]) -> None:
    """Refuse a network of more or fewer layers than its weights have."""
    numbers = {int(match[1]) for name in read_shapes(path.parent) if (match := layer.match(name))}
    if (found := read_json(path).get(key)) != len(numbers):
        raise InputError(f"{path}: expected {key} {len(numbers)}, as many as in its weights, found {found}")


def check_types(path: Path, network_class: Any) -> None:
    """Refuse settings of another type than a class of diffusers' says that it takes."""
    built = inspect.unwrap(network_class.__init__)
    hints, parameters = typing.get_type_hints(built), inspect.signature(built).parameters
    for key, value in read_json(path).items():
        if key not in hints or _fits(value, hints[key]):
            continue
        default = parameters[key].default
        if type(value) is not type(default) or isinstance(value, str):
            told = json.dumps(value)[:100]
            raise InputError(
                f"{path}: expected {key} as {network_class.__name__} takes it, such as {default!r}, found {told};"
                " take another release"
            )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of the type of an annotation."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if hint is Any:
        return True
    if (origin or hint) in {tuple, list}:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value if inner)
    if hint is float:
        return is_number(value)
    return type(value) is (origin or hint)


def check_side(path: Path) -> None:
    """Refuse latents larger than any."""
    side = read_json(path).get("sample_size")
    if not (type(side) is int and 1 <= side <= MAX_LATENT_SIDE):
        raise InputError(f"{path}: expected sample_size, the side of latents, of 1 to {MAX_LATENT_SIDE}, found {side}")


def check_schedule(path: Path, scheduler_class: Any) -> None:
    """Refuse a schedule of noise that is none of a thousand steps, before its tables are made."""
    check_types(path, scheduler_class)
    parameters = inspect.signature(inspect.unwrap(scheduler_class.__init__)).parameters
    found = {key: parameter.default for key, parameter in parameters.items()} | read_json(path)
    start, end, betas = found["beta_start"], found["beta_end"], found["trained_betas"]
    ordered = is_number(start) and is_number(end) and 0 < start <= end < 1
    trained = betas is None or (len(betas) == TRAINING_STEPS and all(0 < beta < 1 for beta in betas))
    length = betas if betas is None else f"{len(betas)} numbers"
    checks = (
        ("num_train_timesteps", TRAINING_STEPS, found["num_train_timesteps"] == TRAINING_STEPS),
        ("beta_start", "and beta_end in order between 0 and 1", ordered),
        ("beta_schedule", " or ".join(BETA_SCHEDULES), found["beta_schedule"] in BETA_SCHEDULES),
    )
    for key, expected, holds in checks:
        if not holds:
            raise InputError(f"{path}: expected {key} {expected}, found {found[key]!r}; take another model")
    if not trained:
        raise InputError(
            f"{path}: expected trained_betas as {TRAINING_STEPS} numbers between 0 and 1, found {length};"
            " take another model"
        )


def load_sampler(scheduler_class: Any, fetched: FetchedModel, **settings: Any) -> Any:
    """Build a sampler of a folder's settings, of which a copy takes a step as it would for an image.

    Raises:
        InputError: it cannot be built, or fails in use.
    """
    path = fetched.path / "scheduler_config.json"
    if (offset := (read_json(path) | settings).get("steps_offset", 0)) not in {0, 1}:
        raise InputError(f"{path}: expected steps_offset 0 or 1, found {offset}; take another model")
    try:
        config = scheduler_class.load_config(fetched.path, local_files_only=True)
        found, tried = (scheduler_class.from_config(config, **settings) for _ in range(2))
        tried.set_timesteps(TRIED_STEPS)
        if hasattr(tried, "set_begin_index"):
            tried.set_begin_index(0)
        noise, time = torch.zeros(1, 4, 8, 8), tried.timesteps[0]
        tried.step(tried.scale_model_input(noise, time), time, noise)
    except Exception as error:  # of a damaged folder the library raises whatever its code meets
        raise cannot_load(fetched, error) from error
    return found


def check_words(folder: Path, tower: Path) -> None:
    """Refuse a tokenizer with the number of a word that the text tower's table does not have.

    It is read before it is loaded: the library makes a table as long as the largest number.
    """
    most = read_json(tower / "config.json").get("vocab_size")
    for file in ("vocab.json", "added_tokens.json", "tokenizer.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            continue
        for word, number in _numbered(file, read_json(folder / file)):
            if not (type(number) is int and type(most) is int and 0 <= number < most):
                raise InputError(
                    f"{folder / file}: expected numbers of words below {most}, as many as {tower} has, found"
                    f" {str(number)[:50]} of {str(word)[:50]!r}; take both from one model"
                )


def _numbered(file: str, found: Mapping[str, Any]) -> Iterator[tuple[object, object]]:
    """The words in a tokenizer's file, with their numbers."""
    if file in {"vocab.json", "added_tokens.json"}:
        yield from found.items()
    elif file == "tokenizer.json":
        match found.get("model"):
            case {"vocab": dict(words)}:
                yield from words.items()
        match found.get("added_tokens"):
            case [*added]:
                yield from ((word.get("content"), word.get("id")) for word in added if isinstance(word, dict))
    else:
        match found.get("added_tokens_decoder"):
            case dict(added):
                # the numbers are keys, which JSON has as texts
                yield from (
                    (word, int(key) if key.isdecimal() and len(key) < 20 else key) for key, word in added.items()
                )


def check_finite(folder: Path, network: Any) -> None:
    """Refuse weights with NaN or infinity among them."""
    for name, tensor in network.state_dict().items() if network is not None else ():
        if not tensor.isfinite().all():
            raise InputError(
                f"{folder}: expected finite weights, found NaN or infinity in {name}; take another release"
            )


def check_scaling(folder: Path, vae: Any) -> None:
    """Refuse a VAE whose latents have no scale."""
    factor: Any = vae.config["scaling_factor"]
    if not (is_number(factor) and 0 < factor < math.inf):
        raise InputError(f"{folder}: expected a scaling_factor above 0, found {factor!r}; take another release")
