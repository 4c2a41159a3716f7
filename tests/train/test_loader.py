import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonify.config.loader import make_settings
from sonify.errors import InputError, WorkError
from tests.feature_runs import make_feature_run, random_samples
from train.config import BatchSizes, TrainConfig
from train.loader import Batch, Order, accumulation_steps, generator, make_loader
from train.shards import open_feature_data

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")

IMAGES = 22  # of a total batch of 8: epochs end within a step
STEPS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    return make_feature_run(folder / "run", num_images=IMAGES, scenes=("a", "b"), units=5, std=True, flip=True)


def config_for(run: Path, *, total: int = 8, per_device: int = 2, **changes: object) -> TrainConfig:
    data = {"runs": [str(run)], "window_shards": 2, "workers": changes.pop("workers", 0)}
    batch = {"total": total, "per_device": per_device}
    raw = {"run_dir": "out", "max_steps": STEPS, "data": data, "batch": batch} | changes
    return make_settings(raw, TrainConfig)


def load(config: TrainConfig, *, start_step: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    return make_loader(open_feature_data(config.data), config, 0.5, start_step, rank, world)


def flatten(batches: list[Batch]) -> dict[str, list]:
    """All images of some batches, one after the other."""
    return {
        "keys": [key for batch in batches for key in batch.keys],
        **{
            name: torch.cat([getattr(batch, name) for batch in batches]).tolist()
            for name in ("latents_BCHW", "noise_BCHW", "timesteps_B", "audio_BTD", "dropped_B")
        },
    }


def by_steps(config: TrainConfig, world: int, start_step: int = 0) -> dict[str, list]:
    """What all ranks of a world see, in the order of positions."""
    ranks = [list(load(config, start_step=start_step, rank=rank, world=world)) for rank in range(world)]
    return flatten([batch for micro_step in zip(*ranks, strict=True) for batch in micro_step])


@pytest.mark.parametrize(
    ("world", "per_device", "workers"), [(1, 2, 1), (1, 8, 3), (2, 2, 0), (2, 4, 1), (4, 1, 0), (4, 2, 0)]
)
def test_batches_are_the_same_for_any_processes_and_workers(
    run: Path, world: int, per_device: int, workers: int
) -> None:
    alone = by_steps(config_for(run), world=1)

    assert by_steps(config_for(run, per_device=per_device, workers=workers), world) == alone


@pytest.mark.parametrize(("start_step", "world", "workers"), [(1, 1, 0), (3, 1, 3), (3, 2, 0), (5, 4, 0)])
def test_a_later_start_gives_what_a_run_that_got_there_gets(
    run: Path, start_step: int, world: int, workers: int
) -> None:
    straight = by_steps(config_for(run), world=1)

    resumed = by_steps(config_for(run, workers=workers), world, start_step)

    assert resumed == {name: values[8 * start_step :] for name, values in straight.items()}


LOADS = """
import sys
from tests.train.test_loader import config_for, load
from pathlib import Path
print(len(list(load(config_for(Path(sys.argv[1]), workers=1)))))
"""


def test_workers_hand_batches_over_whatever_the_name_of_the_temporary_folder(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    command = [sys.executable, "-c", LOADS, str(run)]
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [str(4 * STEPS)], done.stderr


def test_a_run_that_is_done_gets_nothing(run: Path) -> None:
    assert list(load(config_for(run), start_step=STEPS)) == []


def test_torchs_own_random_numbers_are_left_alone(run: Path) -> None:
    before = torch.random.get_rng_state()

    next(load(config_for(run, workers=1)))

    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_image_comes_once_an_epoch(run: Path) -> None:
    keys = by_steps(config_for(run), world=2)["keys"]

    assert len(keys) == 48
    assert len(set(keys[:IMAGES])) == len(set(keys[IMAGES : 2 * IMAGES])) == IMAGES
    assert keys[:IMAGES] != keys[IMAGES : 2 * IMAGES]


def test_another_seed_is_another_order_and_other_noise(run: Path) -> None:
    first, second = by_steps(config_for(run), 1), by_steps(config_for(run, seed=1), 1)

    assert first["keys"] != second["keys"]
    assert np.isin(np.ravel(first["noise_BCHW"]), np.ravel(second["noise_BCHW"])).mean() < 0.01


def test_batches_hold_what_was_stored(tmp_path: Path) -> None:
    made = {sample.key: sample for sample in random_samples(8, scenes=("a", "b"))}
    run = make_feature_run(tmp_path / "run", list(made.values()))

    for batch in load(config_for(run)):
        assert batch.latents_BCHW.dtype == batch.noise_BCHW.dtype == batch.audio_BTD.dtype == torch.float32
        assert (batch.timesteps_B.dtype, batch.dropped_B.dtype) == (torch.int64, torch.bool)
        for n, key in enumerate(batch.keys):
            stored = made[key].latent_CHW.astype(np.float16)
            np.testing.assert_array_equal(batch.latents_BCHW[n], stored.astype(np.float32) * 0.5)
            sounds = [audio.astype(np.float16) for audio in made[key].audio_TD.values()]
            assert sum(np.array_equal(batch.audio_BTD[n], sound) for sound in sounds) == 1


def test_scenes_sides_and_the_posterior_are_drawn_at_each_visit(tmp_path: Path) -> None:
    """Means are whole numbers and deviations 1/64: what was drawn can be told from what comes out."""
    (sample,) = random_samples(1, scenes=("a", "b"), std=True, flip=True)
    more = {"latent_flip": np.full((4, 8, 8), 3.0), "latent_flip_std": np.full((4, 8, 8), 1 / 64)}
    more["latent_std"] = more["latent_flip_std"]
    audio_TD = {"a": np.full((5, 16), 1.0), "b": np.full((5, 16), 2.0)}
    sample = replace(sample, latent_CHW=np.full((4, 8, 8), 1.0), more=more, audio_TD=audio_TD)
    run = make_feature_run(tmp_path / "run", [sample], units=1, std=True, flip=True)

    batches = list(load(config_for(run, total=1, per_device=1, max_steps=600)))

    scenes = np.array([batch.audio_BTD[0, 0, 0].item() for batch in batches])
    latents = np.stack([batch.latents_BCHW[0].numpy() for batch in batches]) * 2
    sides = np.rint(latents.mean(axis=(1, 2, 3)))
    deviations = latents - sides[:, None, None, None]
    assert set(scenes) == {1.0, 2.0}
    assert set(sides) == {1.0, 3.0}
    # 600 coins: 4 standard deviations are 49; what is independent meets in a quarter: 42
    assert abs((scenes == 1).sum() - 300) < 49
    assert abs((sides == 1).sum() - 300) < 49
    assert abs(((scenes == 1) & (sides == 1)).sum() - 150) < 42
    assert deviations.std() == pytest.approx(1 / 64, rel=0.02)
    noise = np.stack([batch.noise_BCHW[0].numpy() for batch in batches])
    assert abs(np.corrcoef(noise.ravel(), deviations.ravel())[0, 1]) < 0.02


def test_noise_timesteps_and_drops_have_their_distributions(tmp_path: Path) -> None:
    run = make_feature_run(tmp_path / "run", num_images=4, units=1)
    batches = list(load(config_for(run, total=4, per_device=4, max_steps=500, condition_dropout=0.1)))
    timesteps = torch.cat([batch.timesteps_B for batch in batches]).numpy()
    dropped = torch.cat([batch.dropped_B for batch in batches]).numpy()
    noise = torch.cat([batch.noise_BCHW for batch in batches]).numpy()

    assert (timesteps.min(), timesteps.max()) >= (0, 900)
    assert timesteps.max() <= 999
    assert timesteps.min() < 10
    assert ((np.histogram(timesteps, 10, (0, 1000))[0] - 200) ** 2 / 200).sum() < 33.7  # 99.99 % of 9 degrees
    assert abs(dropped.sum() - 200) < 54  # 4 standard deviations
    assert abs(np.corrcoef(timesteps, dropped)[0, 1]) < 0.09
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert len(np.unique(noise[:, 0, 0, 0])) == 2000


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, 0), (1.0, 8)])
def test_dropout_can_be_never_and_always(run: Path, dropout: float, expected: int) -> None:
    batch = next(load(config_for(run, per_device=8, condition_dropout=dropout)))

    assert batch.dropped_B.sum() == expected


def test_a_batch_moves_as_a_whole(run: Path) -> None:
    batch = next(load(config_for(run))).to(torch.device("meta"))

    assert batch.keys
    assert batch.noise_BCHW.device.type == batch.dropped_B.device.type == batch.audio_BTD.device.type == "meta"


@given(total=st.integers(1, 400), per_device=st.integers(1, 80), world=st.integers(1, 9))
def test_accumulation_keeps_the_total_or_is_refused(total: int, per_device: int, world: int) -> None:
    batch = BatchSizes(total=total, per_device=per_device)
    try:
        steps = accumulation_steps(batch, world)
    except InputError:
        assert total % (per_device * world)
    else:
        assert steps * per_device * world == total


@pytest.mark.parametrize(
    ("per_device", "world", "named"),
    [
        (48, 8, r"batch\.per_device: 48 does not divide the 80 .* of 8 .* do: 1, 2, 4, 5, 8, 10, 16, 20, 40, 80$"),
        (40, 7, r"batch\.total: 640 images do not divide among 7 processes; .* a total such as 637$"),
    ],
)
def test_what_would_divide_is_said(per_device: int, world: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        accumulation_steps(BatchSizes(total=640, per_device=per_device), world)


def test_an_epoch_smaller_than_a_step_is_refused_at_once(run: Path) -> None:
    with pytest.raises(InputError, match=r"22 images of split 'train', fewer than the 24"):
        load(config_for(run, total=24))


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_reaches_the_user_as_one_line(tmp_path: Path, workers: int) -> None:
    run = make_feature_run(tmp_path / "run", num_images=8, units=1)
    batches = load(config_for(run, workers=workers))
    with (run / "features/train/000000.tar").open("r+b") as file:
        file.seek(2000)
        file.write(b"changed")

    with pytest.raises(WorkError) as caught:
        list(batches)
    assert str(caught.value).startswith(f"{run}/features/train/000000.tar: sample train-0-000000: its bytes are not")
    assert "\n" not in str(caught.value)


def test_a_nan_stops_the_batch_and_names_the_image(tmp_path: Path) -> None:
    samples = random_samples(8)
    samples[5] = replace(samples[5], latent_CHW=np.full((4, 8, 8), np.nan))
    run = make_feature_run(tmp_path / "run", samples)

    with pytest.raises(WorkError, match=r"000001\.tar: sample train-0-000005: latent\.npy .* not finite"):
        list(load(config_for(run, workers=1)))


def test_workers_outlive_a_signal_to_the_group_and_end_with_the_loader(run: Path) -> None:
    batches = load(config_for(run, workers=2, max_steps=500))
    first = list(islice(batches, 2))  # one of each worker, which has then left signals to the trainer
    workers = children()
    assert len(workers) == 2

    for pid in workers:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    keys = [batch.keys for batch in [*first, *islice(batches, 98)]]
    del batches

    assert keys == [batch.keys for batch in islice(load(config_for(run, max_steps=500)), 100)]
    assert children() == []


def children() -> list[int]:
    """Processes whose parent this one is, but multiprocessing's own helper."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in listed if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


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
