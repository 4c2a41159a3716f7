"""Make pictures of sounds as "Generating Realistic Images from In-the-wild Sounds" does, by its description.

    python -m eval.baselines.in_the_wild --list sounds_whole.csv --out FOLDER --seed 0 --seeds 4 captions=captions.csv

is what the recipe `in_the_wild` of `eval.baseline` runs. A sound is captioned, each word of the caption gets a weight,
Stable Diffusion draws what the weighted words say, and ten steps of direct optimisation change the weights. FOLDER gets
`images/`, `outputs.jsonl` by the protocol of recipes, and `wild.jsonl`, what was heard and lost of each picture. The
same command makes what is not there yet. A sound of which no picture can be made is a line with its error.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.baselines.in_the_wild", extra="eval"))

import argparse
import csv
import io
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eval.baselines.folder import OUTPUTS, one_line
from eval.baselines.recipe import FAMILY, IN_THE_WILD
from eval.baselines.wild.act import ActCaptioner
from eval.baselines.wild.attention import LISTED_NOUNS, Conditioning, Heard, condition
from eval.baselines.wild.captions import hear, open_captioner, read_captions
from eval.baselines.wild.config import InTheWild
from eval.baselines.wild.diffusion import Painter, open_painter
from eval.baselines.wild.optimise import (
    ClipJudge,
    Judged,
    Losses,
    Similarity,
    open_clip_judge,
    open_wav2clip_similarity,
    optimise,
)
from eval.suites.config import load_kind
from eval.towers.inputs import read_sound
from eval.towers.tower import Sound
from sonify.config.shipped import find_config
from sonify.errors import ConcernsAll, InputError
from sonify.io.write import naming_place, write_whole
from sonify.models.loading import choose_device
from sonify.terminal import Parser, run_command
from train.manifest import IMAGES, encode_png

log = logging.getLogger(__name__)

RECORD = "wild.jsonl"
MAX_SEEDS = 10_000
MAX_ID_BYTES = 200  # a name of a file has 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A sound of the list."""

    id: str
    sound: Path
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """The whole of it, loaded. `caption` takes a row and its sound to what is heard; `judge` is None where the kept
    picture is the first, of which nothing is optimised."""

    settings: InTheWild
    caption: Callable[[Row, Callable[[], Sound]], Heard]
    diffusion: Painter
    judge: ClipJudge | None
    similarity: Similarity | None

    def condition(self, heard: Heard) -> Conditioning:
        """A caption's conditioning."""
        return condition(heard, self.diffusion.tokenizer, self.diffusion.encode, self.diffusion.device)

    def make(
        self, conditioning: Conditioning, heard: Heard, sound: Callable[[], Sound], seed: int
    ) -> tuple[Tensor, list[Losses]]:
        """The picture (1, 3, H, W) that counts, and the losses of those up to it."""
        settings, start_1CHW = self.settings, self.diffusion.noise(seed)

        def draw(y_1PD: Tensor) -> Tensor:
            return self.diffusion.draw(y_1PD, start_1CHW, settings.steps, settings.guidance, settings.checkpointing)

        if self.judge is None:
            with torch.no_grad():
                return draw(conditioning.weigh(conditioning.start())), []
        judged = Judged(
            sound=sound(), caption_1E=self.judge.read(heard.text), judge=self.judge, similarity=self.similarity
        )
        return optimise(conditioning, draw, judged, settings.chosen + 1)


def main(argv: Sequence[str] | None = None, prog: str = "eval.baselines.in_the_wild") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Make pictures of sounds by the In-the-wild system.")
    parser.add_argument("--list", type=Path, required=True, help="a CSV with the columns id, sound and sha256")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the pictures")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="how many pictures of each sound (default: %(default)s)")
    parser.add_argument("--config", default=IN_THE_WILD, metavar="FILE|NAME", help="the recipe (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="in the place of a key of the recipe")
    arguments = parser.parse_intermixed_args(argv)
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.seeds <= MAX_SEEDS or not 0 <= arguments.seed < 2**63 - MAX_SEEDS:
        raise InputError(
            f"--seed and --seeds: expected 0 or more and 1 to {MAX_SEEDS:,}, found {arguments.seed} and"
            f" {arguments.seeds}"
        )
    kinds = {IN_THE_WILD: InTheWild}
    settings = load_kind(find_config(arguments.config, FAMILY), arguments.overrides, kinds)
    rows = read_list(arguments.list)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    with naming_place(arguments.out):
        (arguments.out / IMAGES).mkdir(parents=True, exist_ok=True)
    todo = [(row, left) for row in rows if (left := _left(arguments.out, row, seeds))]
    done = keep_answers(arguments.out, [(row.id, seed) for row in rows for seed in seeds], settings.chosen)
    log.info("%s: %s pictures, of which %s are there", settings.name, f"{len(rows) * len(seeds):,}", f"{done:,}")
    if todo:
        make_all(open_system(settings), todo, arguments.out)


def _left(folder: Path, row: Row, seeds: Sequence[int]) -> list[int]:
    return [seed for seed in seeds if not (folder / _name(row.id, seed)).exists()]


def _name(id: str, seed: int) -> str:
    return f"{IMAGES}/{id}-{seed}.png"


def read_list(path: Path) -> list[Row]:
    """Read a list of sounds as a suite has it.

    Raises:
        InputError: it cannot be read, or lacks a column.
    """
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True)
        if lacking := sorted({"id", "sound", "sha256"} - set(table.fieldnames or ())):
            raise InputError(f"--list {path}: expected the columns id, sound and sha256, found no {lacking[0]}")
        rows = [Row(id=row["id"] or "", sound=Path(row["sound"] or ""), sha256=row["sha256"] or "") for row in table]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"--list {path}: cannot be read as CSV ({error}); expected a list of a suite") from None
    ids = [row.id for row in rows]
    odd = next((id for id in ids if not is_name(id) or ids.count(id) > 1), None)
    if odd is not None or not rows:
        what = "names no sound" if odd is None else f"{odd[:80]!r} is no id of a picture's file, or is there twice"
        raise InputError(f"--list {path}: {what}; expected a list of a suite")
    return rows


def is_name(id: str) -> bool:
    """Whether a file can be called so, in the folder where it belongs."""
    return bool(id) and Path(f"{id}-0.png").name == f"{id}-0.png" and len(id.encode(errors="replace")) <= MAX_ID_BYTES


def keep_answers(folder: Path, pairs: Sequence[tuple[str, int]], chosen: int) -> int:
    """Write the answers anew: a line for each picture that is there. What had failed is tried again, and a line that
    was cut short by a kill is gone."""
    there = [pair for pair in pairs if (folder / _name(*pair)).exists()]
    answers = [{"id": id, "seed": seed, "image": _name(id, seed), "image_of_step": chosen} for id, seed in there]
    lines = [json.dumps(answer) for answer in answers]
    write_whole(folder / OUTPUTS, "".join(f"{line}\n" for line in lines).encode())
    return len(there)


def open_system(settings: InTheWild) -> System:
    """Load what the recipe names; captions and weights that are wrong are said before a picture is made.

    Raises:
        InputError: something cannot be had or used.
    """
    device = choose_device(settings.device)
    caption = _open_captions(settings, device)
    diffusion = open_painter(settings.stable_diffusion, settings.revision, device)
    if settings.steps >= diffusion.times:
        raise InputError(
            f"steps: expected fewer than the {diffusion.times} of the model's schedule, found {settings.steps}"
        )
    judge, similarity = None, None
    if settings.is_optimised:
        assert settings.clip is not None
        judge = open_clip_judge(settings.clip, settings.clip_revision, device)
        if settings.wav2clip is not None:
            similarity = open_wav2clip_similarity(Path(settings.wav2clip), judge, device)
    return System(settings=settings, caption=caption, diffusion=diffusion, judge=judge, similarity=similarity)


def _open_captions(settings: InTheWild, device: torch.device) -> Callable[[Row, Callable[[], Sound]], Heard]:
    if settings.captions is not None:
        path, written = settings.captions, read_captions(settings.captions)

        def look_up(row: Row, _sound: Callable[[], Sound]) -> Heard:
            if row.id not in written:
                raise InputError(f"{path} has no caption of it")
            return written[row.id].heard(LISTED_NOUNS)

        return look_up
    if settings.captioner is not None:
        captioner = open_captioner(settings.captioner, settings.captioner_revision, settings.captioner_prompt, device)
    else:
        assert settings.act is not None
        assert settings.act_words is not None
        captioner = ActCaptioner(settings.act, settings.act_words, device)
    return lambda _row, sound: hear(captioner, LISTED_NOUNS, sound())


def make_all(system: System, todo: Sequence[tuple[Row, Sequence[int]]], folder: Path) -> None:
    """Make what is left of each sound; what cannot be made is said in its line, and the next is made.

    An error that is not of one sound ends the command.
    """
    with (
        (folder / OUTPUTS).open("a", encoding="utf-8") as answers,
        (folder / RECORD).open("a", encoding="utf-8") as record,
    ):

        def say(file: Any, **line: Any) -> None:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()

        for row, seeds in todo:
            for seed, made in _pictures(system, row, seeds):
                if isinstance(made, str):
                    log.info("%s with seed %s: %s", row.id, seed, made)
                    say(answers, id=row.id, seed=seed, error=made)
                    continue
                image, told = made
                write_whole(folder / _name(row.id, seed), encode_png(image))
                chosen = system.settings.chosen
                say(record, id=row.id, seed=seed, image_of_step=chosen, **told)
                say(answers, id=row.id, seed=seed, image=_name(row.id, seed), image_of_step=chosen)


Made = str | tuple[Image.Image, dict[str, Any]]  # why there is none, or the picture and what is told of it


def _pictures(system: System, row: Row, seeds: Sequence[int]) -> Iterator[tuple[int, Made]]:
    """Each seed's picture; a sound is read, where it is needed, and captioned once for all of them."""
    heard_sound: list[Sound] = []

    def sound() -> Sound:
        if not heard_sound:
            heard_sound.append(read_sound(row.sound, row.sha256))
        return heard_sound[0]

    try:
        heard = system.caption(row, sound)
        conditioning = system.condition(heard)
    except ConcernsAll:
        raise
    except InputError as error:
        yield from ((seed, one_line(str(error), 500)) for seed in seeds)
        return
    if conditioning.cut:
        log.info("%s: its caption of %s words is cut by %s: the text tower has no more places", row.id,
                 len(heard.words), conditioning.cut)  # fmt: skip
    for seed in seeds:
        yield seed, _picture(system, conditioning, heard, sound, seed)


def _picture(system: System, conditioning: Conditioning, heard: Heard, sound: Callable[[], Sound], seed: int) -> Made:
    started = time.monotonic()
    try:
        image_13HW, losses = system.make(conditioning, heard, sound, seed)
        image = to_image(image_13HW)
    except torch.OutOfMemoryError:
        raise ConcernsAll(
            f"a picture's optimisation does not fit on the GPU (checkpointing={system.settings.checkpointing}); set"
            " checkpointing=true, take a larger GPU, or optimise=0"
        ) from None
    except InputError as error:
        return one_line(str(error), 500)
    words = zip(heard.words, heard.probabilities, heard.noun_scores, heard.weights, strict=True)
    return image, {
        "caption": heard.text,
        "words": [[word, p, noun, round(weight, 6)] for word, p, noun, weight in words],
        "words_cut": conditioning.cut,
        "nouns_by": heard.nouns_by,
        "losses": [terms.as_json() for terms in losses],
        "seconds": round(time.monotonic() - started, 3),
    }


def to_image(image_13HW: Tensor) -> Image.Image:
    """A picture in 0 to 1 as 8-bit RGB.

    Raises:
        InputError: it has no numbers for pixels.
    """
    if not image_13HW.isfinite().all():
        raise InputError("its picture is not finite: the optimisation diverged, or the sampling did")
    return Image.fromarray((image_13HW[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy())
