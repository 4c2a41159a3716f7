"""Have a model, or a control, make the pictures of a suite.

    python -m eval.baseline --recipe RECIPE --suite SUITE --seeds 4 --out FOLDER [key=value ...]

RECIPE is a YAML file, or one that comes along: `references`, `shuffled`, `images` (a folder of another model's
pictures), `generate` (a pipeline of `train.release`), or a system of other people, such as `sound2scene`. FOLDER then
holds `images/`, `manifest.jsonl`, which evaluation reads, and `failed.csv`, what is missing of what was asked for. The
same command goes on where it was interrupted.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.baseline", extra="eval"))

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.baselines.controls import take_images, take_references, take_shuffled, write_taken
from eval.baselines.folder import VERSION, Counts, MadeFor, ask, check_folder
from eval.baselines.recipe import (
    CommandRecipe,
    ImagesRecipe,
    Recipe,
    ShuffledRecipe,
    load_recipe,
    program_files,
    recipe_digest,
)
from eval.baselines.runner import run_recipe
from eval.suites.suite import Suite, read_suite
from sonify.errors import InputError
from sonify.stores import to_folder
from sonify.terminal import Parser, argument_of, run_command

log = logging.getLogger(__name__)

MAX_SEEDS = 10_000
MAX_SEED = 2**63 - 1
EPILOG = """\
examples:
  {command} --recipe references --suite SUITE --out runs/references
  {command} --recipe shuffled --suite SUITE --out runs/shuffled of=runs/theirs
  {command} --recipe images --suite SUITE --seeds 4 --out runs/theirs name=theirs images=DIR pattern={{id}}-{{seed}}.png
  {command} --recipe generate --suite SUITE --seeds 4 --out runs/ours model=DIR
  {command} --recipe theirs.yaml --suite SUITE --seeds 4 --out runs/theirs
"""


def main(argv: Sequence[str] | None = None, prog: str = "eval.baseline") -> int:
    """Run the command and return its exit code."""
    parser = Parser(
        prog=prog,
        description="Have a model, or a control, make the pictures of a suite.",
        epilog=EPILOG.format(command=prog if " " in prog else f"python -m {prog}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", required=True, metavar="FILE|NAME", help="a YAML file, or one that comes along")
    parser.add_argument("--suite", type=argument_of(to_folder), required=True, help="a folder of `eval.prepare`")
    parser.add_argument("--seeds", type=int, default=1, help="how many pictures of each sound (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--out", type=argument_of(to_folder), required=True, help="the folder for the pictures")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="in the place of a key of the recipe")
    arguments = parser.parse_intermixed_args(argv)  # an override may stand anywhere
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    for option, value, least, most in (
        ("--seeds", arguments.seeds, 1, MAX_SEEDS),
        ("--seed", arguments.seed, 0, MAX_SEED - MAX_SEEDS),
    ):
        if not least <= value <= most:
            raise InputError(f"{option}: expected {least:,} to {most:,}, found {value}")
    _check_places(arguments.suite, arguments.out)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    suite = read_suite(arguments.suite)
    counts = make_baseline(recipe, suite, range(arguments.seed, arguments.seed + arguments.seeds), arguments.out)
    failed = f"; {counts.failed:,} are not there: {arguments.out / 'failed.csv'}" if counts.failed else ""
    sys.stdout.write(
        f"{counts.pictures:,} pictures of {counts.items:,} of {len(suite.items):,} items in {arguments.out}{failed}\n"
    )


def _check_places(suite: Path, out: Path) -> None:
    """Refuse names that no list can hold, and pictures in the suite: it is read, and stays as it is."""
    for option, place in (("--suite", suite), ("--out", out)):
        try:
            str(place.absolute()).encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{option}: expected a place whose name is UTF-8, found {str(place.absolute())!a}"
            ) from None
    one, other = (Path(os.path.realpath(place)) for place in (suite, out))
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise InputError(f"--out {out}: expected a folder beside the suite's, found one in or around {suite}")


def make_baseline(recipe: Recipe, suite: Suite, seeds: range, folder: Path) -> Counts:
    """Fill a folder with the pictures of a suite; what is done of just this is not done again.

    Raises:
        InputError: the recipe, the suite or the folder is wrong.
        WorkError: the program of a recipe broke its protocol, failed or took too long.
    """
    folder = folder.absolute()
    if isinstance(recipe, CommandRecipe):
        made_for = _made_for(recipe, suite, seeds, program_files(recipe, folder))
        check_folder(folder, made_for)
        return run_recipe(recipe, ask(suite, recipe.takes, seeds), made_for, folder)
    if isinstance(recipe, ImagesRecipe):
        asked, taken = take_images(recipe, suite, seeds)
    elif isinstance(recipe, ShuffledRecipe):
        asked, taken = take_shuffled(recipe, suite, seeds)
    else:
        asked, taken = take_references(suite, seeds)
    made_for = _made_for(recipe, suite, asked.seeds)  # of references there are as many as there are
    check_folder(folder, made_for)
    return write_taken(asked, taken, made_for, folder)


def _made_for(recipe: Recipe, suite: Suite, seeds: range, program: Mapping[str, str] | None = None) -> MadeFor:
    return MadeFor(
        version=VERSION,
        suite=suite.name,
        suite_digest=suite.digest,
        recipe=getattr(recipe, "name", recipe.kind),
        recipe_sha256=recipe_digest(recipe),
        first_seed=seeds[0],
        seeds=len(seeds),
        trained_on=getattr(recipe, "trained_on", ()),
        program=program or {},
    )
