"""What the program of a recipe left in its folder: which of it is kept when it goes on, and what is taken in the end.

What it did wrong as a whole is `Broken`; a single picture that it could not make is a line of `failed.csv`.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from eval.baselines.folder import (
    MAX_BYTES,
    OUTPUTS,
    Asked,
    Counts,
    Failed,
    Look,
    Pair,
    check_identical,
    clear,
    count,
    look_at,
    mark_odd_sizes,
    one_line,
    spell_pair,
    write_failed,
)
from eval.baselines.recipe import CommandRecipe, outside_settings
from eval.pictures import read_made
from sonify.errors import InputError, WorkError
from sonify.io.places import is_below, open_inside
from sonify.io.write import write_whole
from train.manifest import IMAGES, read_manifest, write_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A line of `outputs.jsonl`: a picture, or why there is none; a program may add keys of its own."""

    __pydantic_config__ = ConfigDict(extra="ignore", strict=True)

    id: str
    seed: int
    image: str | None = None
    error: str | None = None

    @property
    def pair(self) -> Pair:
        """What it answers."""
        return self.id, self.seed


_ANSWER = TypeAdapter(Answer)


class Broken(WorkError):
    """The program broke its protocol, so that nothing that it says is trusted."""


def _lines(folder: Path) -> list[bytes]:
    """The lines that a program wrote; none where it wrote no file."""
    return [line for line in _outputs(folder).split(b"\n") if line.strip()]


def _outputs(folder: Path) -> bytes:
    try:
        with open_inside(folder, OUTPUTS) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise Broken(f"{OUTPUTS} is larger than {MAX_BYTES:,} bytes")
            return file.read()
    except FileNotFoundError:
        return b""
    except (InputError, OSError) as error:
        raise Broken(f"{OUTPUTS} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _look_inside(folder: Path, image: str) -> Look:
    """Look at a file of the folder.

    Raises:
        InputError: it is a link, or lies behind one.
    """
    try:
        with open_inside(folder, image) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            return look_at(file.read()) if size_bytes <= MAX_BYTES else Look(wrong=f"{size_bytes:,} bytes")
    except FileNotFoundError:
        return Look(wrong="no such file")
    except OSError as error:
        return Look(wrong=f"cannot be read ({error.strerror})")


# --- before the program runs, and while it does


def find_kept(folder: Path, asked: Asked) -> dict[Pair, Answer]:
    """The answers of an earlier run whose pictures are whole; nothing is changed.

    Raises:
        Broken: what it wrote cannot be read.
    """
    wanted = set(asked.pairs)
    found: dict[Pair, Answer] = {}
    for line in _lines(folder):
        with suppress(ValidationError):
            answer = _ANSWER.validate_json(line)
            if answer.pair in wanted and answer.image is not None:
                found.setdefault(answer.pair, answer)
    looks = mark_odd_sizes([_look_again(folder, answer.image or "") for answer in found.values()])
    return {pair: answer for (pair, answer), look in zip(found.items(), looks, strict=True) if not look.wrong}


def _look_again(folder: Path, image: str) -> Look:
    try:
        return _look_inside(folder, image) if is_below(image) else Look(wrong="outside")
    except InputError as error:
        return Look(wrong=str(error))


def keep_only(folder: Path, asked: Asked, kept: Mapping[Pair, Answer]) -> None:
    """Leave of an earlier run the answers that are kept; the other pictures that it may have begun go.

    A line that was cut short by a kill would swallow the one behind it, and a program that finds a picture takes it for
    made.
    """
    images = {answer.image for answer in kept.values()}
    for id, seed in asked.pairs:
        name = f"{IMAGES}/{id}-{seed}.png"
        if name not in images:
            clear(folder / name)
    if (folder / OUTPUTS).exists():
        lines = [json.dumps({"id": each.id, "seed": each.seed, "image": each.image}) for each in kept.values()]
        write_whole(folder / OUTPUTS, "".join(f"{line}\n" for line in lines).encode())


def count_answers(folder: Path) -> int:
    """Lines that were answered; of a program that keeps no such file, pictures."""
    try:
        lines = _outputs(folder).count(b"\n")
    except Broken:  # said when it has ended
        lines = 0
    return lines or sum(1 for _ in (folder / IMAGES).glob("*.png"))


# --- when it has ended


def take_manifest(recipe: CommandRecipe, asked: Asked, folder: Path) -> Counts:
    """Take the manifest of a program that writes one itself (`train.generate`) as it is.

    Raises:
        WorkError: it cannot be taken, names what was not asked for, or has no picture.
    """
    try:
        made = read_made(asked.suite, folder)
    except InputError as error:
        raise Broken(f"its program wrote a manifest that cannot be taken: {error}") from None
    there = frozenset((picture.item.id, picture.seed) for picture in made.pictures)
    if unknown := there - set(asked.pairs):
        raise Broken(f"its manifest names {spell_pair(min(unknown))}, which was not asked for")
    if not there:
        raise WorkError(f"{recipe.name}: none of its pictures can be used; {_first(made.unusable)}")
    why = _unusable_pairs(asked, folder, made.unusable)
    left = [pair for pair in asked.pairs if pair not in there]
    failed = tuple(Failed(id=pair[0], seed=pair[1], error=why.get(pair, "no picture")) for pair in left)
    write_failed(folder, failed)
    return count(there, failed)


def _unusable_pairs(asked: Asked, folder: Path, unusable: Mapping[str, str]) -> dict[Pair, str]:
    """Why a picture that the manifest names cannot be used, by what it is of."""
    of = {sha256: id for id, (_, sha256) in asked.sounds.items()}
    return {
        (of[row.sound_sha256[0]], row.seed): unusable[row.image]
        for row in read_manifest(folder, with_images=False)
        if row.image in unusable and row.sound_sha256[0] in of
    }


def _first(unusable: Mapping[str, str]) -> str:
    return next((f"{image}: {why}" for image, why in unusable.items()), "")


def take_outputs(
    recipe: CommandRecipe, asked: Asked, folder: Path, before: Mapping[Pair, Answer], model_sha256: str
) -> Counts:
    """Check the answers, and write what failed and the manifest.

    Raises:
        WorkError: the program broke its protocol, left a pair without an answer, or made no picture that is one.
    """
    answers = _read_answers(asked, folder, before)
    if left := [pair for pair in asked.pairs if pair not in answers]:
        raise WorkError(
            f"{recipe.name}: its program ended well and has not answered {len(left):,} of {len(asked.pairs):,}, such as"
            f" {spell_pair(left[0])}; {OUTPUTS} has a line for each, with image or error"
        )
    named = {pair: answers[pair].image for pair in asked.pairs}
    seen = {pair: _see(folder, image) for pair, image in named.items() if image is not None}
    looks = dict(zip(seen, mark_odd_sizes(list(seen.values())), strict=True))
    usable = {pair: look for pair, look in looks.items() if not look.wrong}
    failed = tuple(
        Failed(id=pair[0], seed=pair[1], error=_why(answers[pair], looks.get(pair)))
        for pair in asked.pairs
        if pair not in usable
    )
    write_failed(folder, failed)
    if not usable:
        raise WorkError(
            f"{recipe.name}: none of {len(asked.pairs):,} pictures can be used; the first: {failed[0].error}"
        )
    if not recipe.deterministic:
        check_identical(usable, recipe.name, items_may_be_alike=recipe.items_may_be_alike)
    model = recipe.name, model_sha256
    settings = outside_settings(recipe)
    write_manifest(folder, [asked.line(pair, named[pair] or "", model, settings) for pair in usable])
    return count(usable, failed)


def _read_answers(asked: Asked, folder: Path, before: Mapping[Pair, Answer]) -> dict[Pair, Answer]:
    """The answer to each pair; one that stands from before the run may be given again."""
    answers: dict[Pair, Answer] = {}
    wanted = set(asked.pairs)
    for number, line in enumerate(_lines(folder), start=1):
        where = f"{OUTPUTS}, line {number}"
        try:
            answer = _ANSWER.validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise Broken(
                f"{where}: expected a JSON object with id, seed and image or error, found {_short(line)}"
                f" ({f'{key}: ' if key else ''}{one_line(first['msg'])})"
            ) from None
        if (answer.image is None) == (answer.error is None):
            raise Broken(f"{where}: expected either image or error, found {_short(line)}")
        if answer.pair not in wanted:
            raise Broken(f"{where}: {spell_pair(answer.pair)} was not asked for")
        if answer.pair in answers and before.get(answer.pair) != answer:
            raise Broken(f"{where}: {spell_pair(answer.pair)} is answered twice")
        answers[answer.pair] = answer
    return answers


def _see(folder: Path, image: str) -> Look:
    """Look at a picture that the program names; it must lie in the folder itself."""
    if not is_below(image):
        raise Broken(f"{OUTPUTS} names {one_line(image)!r}, which is not inside {{out}}")
    try:
        return _look_inside(folder, image)
    except InputError as error:
        raise Broken(f"{OUTPUTS} names {error}") from None


def _why(answer: Answer, look: Look | None) -> str:
    if look is None:
        return one_line(answer.error or "") or "the program gave no reason"
    return f"{answer.image}: {look.wrong}"


def _short(line: bytes) -> str:
    return repr(one_line(line.decode("utf-8", "replace"), 80))
