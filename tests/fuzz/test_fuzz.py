"""Seeds, what fuzzing found, and a few seconds of blind changes; ten minutes by coverage: python -m tests.fuzz."""

import random

import pytest

from tests.fuzz.seeds import mutate, seeds, with_checksums
from tests.fuzz.targets import TARGETS

# Nothing goes wrong unseen in a callback of a C library either.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")

TRIES = {"tars": 20_000, "answers": 1500, "told": 3000, "replies": 5000, "sounds": 4000, "images": 4000}


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_and_every_finding_keeps_the_promises(target):
    inputs = list(seeds(target))
    assert len(inputs) >= 15
    for data in inputs:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_changed_seeds_keep_the_promises(target):
    rng = random.Random(0)
    inputs = list(seeds(target))
    for number in range(TRIES[target]):
        data = mutate(inputs[number % len(inputs)], rng)
        TARGETS[target](with_checksums(data) if target == "tars" and number % 4 else data)
