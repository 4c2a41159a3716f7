"""Nobody is given its own picture, nor one of its like, wherever that can be had."""

from collections.abc import Sequence

import pytest

from eval.suites.derange import derange
from eval.suites.suite import Item, Stored
from tests.builders import refused


def item(name: str, recording: str = "", labels: Sequence[str] = (), sound: str = "", pictures: str = "") -> Item:
    return Item(
        id=name,
        recording=recording or name,
        ids=(),
        labels=tuple(labels),
        captions=(),
        split="",
        group="",
        sound=Stored(file=f"sounds/{name}.flac", sha256=sound or name),
        seconds=1.0,
        sample_rate_hz=16_000,
        window=None,
        window_start_sec=0.0,
        references=tuple(Stored(file=f"references/{each}.png", sha256=each) for each in pictures),
    )


def items_of(counts: dict[str, int]) -> list[Item]:
    return [item(f"{label}-{n}", labels=[label]) for label, count in counts.items() for n in range(count)]


@pytest.mark.parametrize(
    "counts", [{"dog": 20, "cat": 20}, {"dog": 5, "cat": 3, "rain": 2}, {"dog": 50, "cat": 25, "rain": 25}]
)
@pytest.mark.parametrize("seed", range(5))
def test_each_is_given_one_of_another_label_and_each_gives_once(counts: dict[str, int], seed: int):
    items = items_of(counts)
    donors = derange(items, seed)
    assert sorted(donors) == sorted(donors.values()) == sorted(one.id for one in items)
    assert all(taker.split("-")[0] != donor.split("-")[0] for taker, donor in donors.items())


def test_it_depends_on_the_seed_and_not_on_the_order():
    items = items_of({"dog": 20, "cat": 20, "rain": 20})
    assert derange(items, 3) == derange(items[::-1], 3)
    assert derange(items, 3) != derange(items, 4)


def test_one_of_several_labels_in_common_is_enough_to_be_alike():
    items = [item("a", labels=["dog", "rain"]), item("b", labels=["rain"]), item("c", labels=["cat"])]
    with refused("3 items cannot all be given"):
        derange(items, 0)
    donors = derange([*items, item("d", labels=["cat"])], 0)
    assert {donors["a"], donors["b"]} == {"c", "d"}


def test_without_labels_other_recordings_do():
    items = [item(f"{recording}{n}", recording) for recording in "abc" for n in range(4)]
    donors = derange(items, 0)
    assert all(taker[0] != donor[0] for taker, donor in donors.items())


def test_the_same_sound_or_picture_is_no_other():
    """Of four recordings two show the same picture among others, and two have the same sound."""
    items = [item("a", pictures="xy"), item("b", pictures="yz"), item("c", sound="s"), item("d", sound="s")]
    for seed in range(20):
        donors = derange(items, seed)
        assert {donors["a"], donors["b"]} == {"c", "d"}
    with refused("2 of them are of the file 'y'; expected that none has more than half"):
        derange(items[:2], 0)


def test_across_recordings_a_label_may_come_again():
    items = items_of({"dog": 9, "cat": 1})
    with refused("9 of them are of the label 'dog'"):
        derange(items, 0)
    donors = derange(items, 0, across="recordings")
    assert all(taker != donor for taker, donor in donors.items())
    assert any(taker.startswith("dog") and donor.startswith("dog") for taker, donor in donors.items())


@pytest.mark.parametrize(("items", "why"), [([item("a")], "1 items"), ([item("a", "r"), item("b", "r")], "'r'")])
def test_of_a_single_recording_there_is_none(items: list[Item], why: str):
    with refused(why):
        derange(items, 0, across="recordings")


def test_none_at_all_is_nothing():
    assert derange([], 0) == {}
