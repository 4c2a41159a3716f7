from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.order import Order, generator

shard_sizes = st.lists(st.integers(1, 12), min_size=1, max_size=12)
seeds = st.integers(0, 2**31)


def visits(order: Order, positions: Sequence[int]) -> list[tuple[int, int]]:
    return [order.locate(position) for position in positions]


def all_places(sizes: list[int]) -> list[tuple[int, int]]:
    return [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]


@settings(deadline=None)
@given(sizes=shard_sizes, window=st.integers(1, 14), seed=seeds, epoch=st.integers(0, 3))
def test_each_epoch_visits_each_image_once(sizes: list[int], window: int, seed: int, epoch: int) -> None:
    order = Order(sizes, window, seed)

    found = visits(order, range(epoch * order.num_images, (epoch + 1) * order.num_images))

    assert sorted(found) == all_places(sizes)


@settings(deadline=None)
@given(sizes=shard_sizes, window=st.integers(1, 14), seed=seeds, positions=st.lists(st.integers(0, 500), max_size=30))
def test_a_position_is_the_same_image_whatever_was_asked_before(
    sizes: list[int], window: int, seed: int, positions: list[int]
) -> None:
    straight = visits(Order(sizes, window, seed), range(501))

    assert visits(Order(sizes, window, seed), positions) == [straight[position] for position in positions]


@settings(deadline=None)
@given(sizes=shard_sizes, window=st.integers(1, 14), seed=seeds)
def test_a_window_holds_whole_shards_only(sizes: list[int], window: int, seed: int) -> None:
    order = Order(sizes, window, seed)
    found = visits(order, range(order.num_images))

    seen: list[int] = []
    start = 0
    while start < len(found):
        group: set[int] = set()
        end = start
        while end < len(found) and (len(group) < window or found[end][0] in group):
            group.add(found[end][0])
            end += 1
        assert end - start == sum(sizes[shard] for shard in group)
        seen += group
        start = end

    assert sorted(seen) == list(range(len(sizes)))


def test_epochs_and_seeds_differ() -> None:
    order = Order([50, 50, 50, 50], 2, seed=0)

    first, second = visits(order, range(200)), visits(order, range(200, 400))

    assert first != second
    assert first != visits(Order([50, 50, 50, 50], 2, seed=1), range(200))


def test_epochs_of_one_shard_differ() -> None:
    order = Order([50], 1, seed=0)

    assert visits(order, range(50)) != visits(order, range(50, 100))


def test_epochs_group_other_shards() -> None:
    order = Order([1] * 8, 4, seed=0)

    groups = {frozenset(visits(order, range(8 * epoch, 8 * epoch + 4))) for epoch in range(10)}

    assert len(groups) > 5


def test_the_first_visit_is_any_image_alike() -> None:
    """Chi-squared over 2,000 seeds and 8 images; the 99.99 % bound for 7 degrees of freedom is 29.9."""
    counts = dict.fromkeys(all_places([1, 2, 5]), 0)
    for seed in range(2000):
        counts[Order([1, 2, 5], 3, seed).locate(0)] += 1

    assert sum((count - 250) ** 2 / 250 for count in counts.values()) < 29.9


def test_a_window_is_mixed_across_its_shards() -> None:
    found = visits(Order([100] * 8, 8, seed=0), range(800))

    assert len({shard for shard, _ in found[:50]}) == 8


def test_a_thousand_million_images_cost_a_window_only() -> None:
    order = Order([10_000] * 100_000, 4, seed=0)

    shard, row = order.locate(999_999_999)

    assert 0 <= shard < 100_000
    assert 0 <= row < 10_000


@pytest.mark.parametrize("purpose", [(0, "visit", 7), (1, "visit", 7), (0, "window", 7), (0, "visit", 8)])
def test_random_numbers_depend_on_seed_purpose_and_place(purpose: tuple[int, str, int]) -> None:
    same = generator(*purpose).random() == generator(0, "visit", 7).random()

    assert same == (purpose == (0, "visit", 7))
