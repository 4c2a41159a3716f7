"""What the averages are, what is made of stored ones, and that a run which was stopped stores the same."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from sonify.errors import WorkError
from sonify.io.commits import open_record, seal_record
from sonify.report.cost import Prices
from tests.builders import refused
from tests.feature_runs import MadeSample
from tests.train.runs import WIDTH, plain_config, training_config, training_input
from train.averages import Average, Exponential, Fit, Power, fit, power_of
from train.checkpoints import load_averaged
from train.config import Transformer
from train.cost import tell_plan
from train.ema import main, read_held_out
from train.execution import compile_blocks
from train.loop import finish_step, start_learner
from train.memory import checkpoint_bytes, count_snapshots, estimate_memory, snapshots_bytes
from train.model import init_transformer
from train.pixart import train
from train.released import load_pipeline
from train.snapshots import open_snapshots

LENGTHS = [0.05, 0.10]


def set_weights(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def weights(model: nn.Module) -> list[float]:
    return [float(parameter.flatten()[0].detach()) for parameter in model.parameters()]


def model_of(value: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    set_weights(model, value)
    return model


def plain(decay: float) -> Exponential:
    return Exponential(decay=decay, warmup=False)


def test_the_average_is_the_geometric_one() -> None:
    model = model_of(8.0)
    ema = Average(model, plain(0.5))
    for step, value in enumerate((4.0, 2.0), start=1):
        set_weights(model, value)
        ema.update(model, step)
    ema.copy_to(model)
    assert weights(model) == [0.25 * 8 + 0.25 * 4 + 0.5 * 2] * 4


def test_slow_averages_keep_their_digits_beside_weights_of_half_precision() -> None:
    model = model_of(1.0).bfloat16()
    ema = Average(model, plain(0.9999))
    set_weights(model, 2.0)
    for step in range(1, 11):
        ema.update(model, step)
    for average in ema.state_dict().values():
        assert average.dtype == torch.float32
        torch.testing.assert_close(average, torch.full_like(average, 2 - 0.9999**10))


def sample_and_be_interrupted(model: nn.Module, ema: Average) -> None:
    with ema.applied_to(model):
        assert weights(model) == [2.0] * 4
        raise KeyboardInterrupt


def test_the_model_gets_its_own_weights_back() -> None:
    model = model_of(1.0)
    ema = Average(model, plain(0.5))
    set_weights(model, 3.0)
    ema.update(model, 1)
    with pytest.raises(KeyboardInterrupt):
        sample_and_be_interrupted(model, ema)
    assert weights(model) == [3.0] * 4
    assert [float(average.flatten()[0]) for average in ema.state_dict().values()] == [2.0] * 4


@pytest.mark.parametrize("rule", [plain(0.9), Exponential(decay=0.9, warmup=True), Power(length=0.1)])
def test_a_saved_average_goes_on_as_if_never_stopped(rule: Exponential | Power) -> None:
    model, other = model_of(1.0), model_of(5.0)
    ema, resumed = Average(model, rule), Average(other, rule)
    for step, value in enumerate((2.0, 3.0, 5.0), start=1):
        resumed.load_state_dict({name: average.clone() for name, average in ema.state_dict().items()})
        set_weights(model, value)
        for average in (ema, resumed):
            average.update(model, step)
    for name, average in ema.state_dict().items():
        assert torch.equal(average, resumed.state_dict()[name])


def test_another_models_average_is_refused() -> None:
    other = Average(nn.Sequential(nn.Linear(2, 2)), plain(0.9)).state_dict()
    with pytest.raises(ValueError, match=r"1\.bias"):
        Average(model_of(1.0), plain(0.9)).load_state_dict(other)


def test_compiled_blocks_keep_the_names() -> None:
    config = Transformer(layers=1, heads=1, head_dim=8, sample_size=4, caption_channels=3)
    transformer, _ = init_transformer(config, seed=0)
    ema = Average(transformer, plain(0.9))
    compile_blocks(transformer)
    ema.update(transformer, 1)
    assert list(ema.state_dict()) == [name for name, _ in transformer.named_parameters()]
    assert set(ema.state_dict()) == set(transformer.state_dict())


def share_of_first(rule: Exponential | Power, steps: int) -> float:
    return float(np.prod([rule.decay_at(step) for step in range(1, steps + 1)]))


@pytest.mark.parametrize(("steps", "share"), [(5_000, 0.61), (10_000, 0.37), (20_000, 0.135), (500_000, 0.0)])
def test_the_first_weights_stay_long_in_an_average_without_warm_up(steps: int, share: float) -> None:
    assert share_of_first(plain(0.9999), steps) == pytest.approx(share, abs=5e-3)
    assert share_of_first(Exponential(decay=0.9999, warmup=True), steps) < 1e-20
    assert share_of_first(Power(length=0.1), steps) == 0


def test_a_warm_up_is_over_where_it_reaches_the_decay() -> None:
    rule = Exponential(decay=0.9999, warmup=True)
    assert [rule.decay_at(step) for step in (1, 2)] == [1 / 10, 2 / 11]
    assert rule.decay_at(89_000) < 0.9999 == rule.decay_at(90_000)


@pytest.mark.parametrize("length", [0.03, 0.05, 0.0905, 0.10, 0.28])
def test_a_length_is_the_spread_of_the_steps_as_a_share_of_all(length: float) -> None:
    """By the very weights that the rule gives each step, which no formula of them is asked for."""
    steps = 20_000
    rule, weight_of = Power(length=length), np.zeros(steps + 1)
    for step in range(1, steps + 1):
        weight_of *= rule.decay_at(step) if step > 1 else 0.0
        weight_of[step] = 1 - rule.decay_at(step)
    at = np.arange(steps + 1) / steps
    mean = (weight_of * at).sum()
    assert weight_of.sum() == pytest.approx(1)
    assert np.sqrt((weight_of * (at - mean) ** 2).sum()) == pytest.approx(length, rel=1e-3)


def test_the_powers_are_those_of_the_paper() -> None:
    """EDM2 names 6.94 for 10 % and 16.97 for 5 %."""
    assert power_of(0.10) == pytest.approx(6.94, abs=5e-3)
    assert power_of(0.05) == pytest.approx(16.97, abs=5e-3)


STEPS, EVERY = 600, 50


def walk(lengths: list[float]) -> dict[int, dict[float, np.ndarray]]:
    """Averages of weights that wander, tracked step by step, as they are after each `EVERY` steps."""
    rng = np.random.default_rng(0)
    weights_W, tracked, seen = np.full(64, 10.0), {length: np.zeros(64) for length in lengths}, {}
    for step in range(1, STEPS + 1):
        weights_W = weights_W + rng.standard_normal(64) / np.sqrt(STEPS)
        for length, average_W in tracked.items():
            decay = Power(length=length).decay_at(step)
            tracked[length] = decay * average_W + (1 - decay) * weights_W
        if step % EVERY == 0:
            seen[step] = {length: average_W.copy() for length, average_W in tracked.items()}
    return seen


@pytest.fixture(scope="module")
def wandered() -> dict[int, dict[float, np.ndarray]]:
    return walk([0.04, 0.05, 0.07, 0.10, 0.15])


def made(wandered: dict[int, dict[float, np.ndarray]], step: int, length: float) -> tuple[np.ndarray, Fit]:
    stored = [(at, of) for at in wandered if at <= step for of in LENGTHS]
    found = fit(stored, step, length)
    return np.tensordot(found.coefficients, np.stack([wandered[at][of] for at, of in stored]), 1), found


@pytest.mark.parametrize("step", [300, 600])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_stored_average_is_made_as_it_is(wandered, step: int, length: float) -> None:
    average_W, found = made(wandered, step, length)
    np.testing.assert_allclose(average_W, wandered[step][length], rtol=1e-9)
    assert found.misfit < 1e-6
    assert found.growth == pytest.approx(1)


@pytest.mark.parametrize(("length", "most"), [(0.04, 0.02), (0.07, 0.002), (0.15, 0.005)])
def test_another_length_is_made_of_what_is_stored(wandered, length: float, most: float) -> None:
    """Against that length as it was tracked; all in all the weights have moved by 1."""
    average_W, found = made(wandered, STEPS, length)
    apart = min(np.abs(wandered[STEPS][length] - wandered[STEPS][other]).mean() for other in LENGTHS)
    assert np.abs(average_W - wandered[STEPS][length]).mean() < min(most, apart / 4)
    assert found.coefficients.sum() == pytest.approx(1)
    assert 0 < found.misfit < 0.03


def test_lengths_that_are_not_held_are_known(wandered) -> None:
    assert made(wandered, STEPS, 0.01)[1].misfit > 0.3
    assert made(wandered, 50, 0.2)[1].misfit > 0.1


# Of real runs from here on.


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory, one_thread) -> Path:
    folder = tmp_path_factory.mktemp("averages")
    training_input(folder, num_validation=6)
    return folder


AVERAGES: dict[str, Any] = {"ema": {"lengths": LENGTHS, "snapshot_every": 2}, "samples": {"sounds": 0}}
SECTIONS: dict[str, Any] = {**AVERAGES, "max_steps": 9, "checkpoints": {"every": 3, "keep": 1}}


@pytest.fixture(scope="module")
def straight(root) -> Path:
    """A run of nine steps that was never stopped."""
    config = training_config(root, "straight", **SECTIONS)
    train(config)
    return config.run_dir


def stored(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in sorted((run_dir / "averages").rglob("*.*"))}


def test_a_run_stores_its_averages_and_keeps_them_all(straight) -> None:
    names = ("0.05.safetensors", "0.1.safetensors", "state.json")
    steps = (2, 4, 6, 8, 9)
    assert list(stored(straight)) == [f"averages/step-{step:08d}/{name}" for step in steps for name in names]
    assert [path.name for path in (straight / "checkpoints").iterdir()] == ["step-00000009"]


def test_what_is_stored_is_what_a_checkpoint_goes_on_from(straight) -> None:
    powers = load_file(straight / "checkpoints" / "step-00000009" / "powers.safetensors")
    for length in ("0.05", "0.1"):
        for name, half in load_file(straight / "averages" / "step-00000009" / f"{length}.safetensors").items():
            assert half.dtype == torch.float16
            assert torch.equal(half, powers[f"{length}/{name}"].half())


def test_who_finds_a_checkpoint_finds_all_averages_before_it(straight) -> None:
    averages, checkpoint = (straight / kind / "step-00000009" / "state.json" for kind in ("averages", "checkpoints"))
    assert averages.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns


def test_a_run_that_was_stopped_stores_the_same(root, straight) -> None:
    """Stopped at 4, of which there is a checkpoint, and killed at 8, of which there are averages and no checkpoint."""
    config = training_config(root, "stopped", **SECTIONS)
    train(config.model_copy(update={"max_steps": 4}))
    train(config.model_copy(update={"max_steps": 6}))
    later = config.run_dir / "averages" / "step-00000008"
    shutil.copytree(straight / "averages" / "step-00000002", later)
    (config.run_dir / "averages" / ".step-00000008.partial").mkdir()
    train(config)
    assert stored(config.run_dir) == stored(straight)


def test_what_is_of_steps_that_are_not_yet_made_is_forgotten(root, straight) -> None:
    config = training_config(root, "fewer", **SECTIONS)
    train(config.model_copy(update={"max_steps": 3}))
    shutil.copytree(straight / "averages" / "step-00000008", config.run_dir / "averages" / "step-00000008")
    train(config.model_copy(update={"max_steps": 4}))
    assert open_snapshots(config.run_dir, None).step == 4


def test_averages_that_were_not_begun_with_cannot_be_gone_on_with(root) -> None:
    config = training_config(root, "without", samples={"sounds": 0}, max_steps=2)
    train(config)
    assert not (config.run_dir / "averages").exists()
    with refused(r"ema.lengths was \[\] when this checkpoint was made, and is \[0.05, 0.1\] now"):
        train(training_config(root, "without", **AVERAGES))


def as_before(run_dir: Path) -> None:
    """Let the newest checkpoint be one of before there was a warm-up."""
    path = sorted((run_dir / "checkpoints").glob("step-*"))[-1] / "state.json"
    record = open_record(path.read_bytes())
    record["bound"]["optimizer"].pop("ema_warmup", None)
    path.write_bytes(seal_record(record))


def test_a_run_of_before_goes_on_as_it_was_and_is_told_how(root) -> None:
    cold = {"samples": {"sounds": 0}, "optimizer": {"ema_warmup": False}}
    straight, old = (training_config(root, name, **cold) for name in ("cold", "old"))
    train(straight)
    train(old.model_copy(update={"max_steps": 4}))
    as_before(old.run_dir)
    with refused("optimizer.ema_warmup was False when this checkpoint was made, and is True now"):
        train(training_config(root, "old", samples={"sounds": 0}))
    train(old)
    one, other = (load_averaged(config.run_dir, 6).weights for config in (straight, old))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_averages_as_the_rule_says(root) -> None:
    """Against a warm-up that is computed here, by the weights of each step."""
    config = training_config(root).model_copy(update={"max_steps": 9})
    network = nn.Linear(3, 2)
    learner = start_learner(network, config.optimizer, lengths=LENGTHS)
    expected = network.weight.detach().clone()
    for step in range(1, 30):
        network(torch.randn(4, 3)).square().sum().backward()
        finish_step(learner, 1e-2, step)
        decay = min(0.9, step / (step + 9))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    torch.testing.assert_close(learner.ema.state_dict()["weight"], expected)
    assert learner.powers.keys() == set(LENGTHS)


def test_memory_and_disk_are_told(root) -> None:
    without, with_them = training_config(root), training_config(root, **SECTIONS)
    model, _ = init_transformer(without.model, seed=0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert estimate_memory(with_them, 5).state - estimate_memory(without, 5).state == 8 * parameters
    assert (snapshots_bytes(without), count_snapshots(with_them)) == (0, 5)
    assert snapshots_bytes(with_them) == 5 * 4 * parameters
    assert checkpoint_bytes(with_them) - checkpoint_bytes(without) == 8 * parameters
    size = 5 * 4 * parameters / 1e9
    assert f"averages: 5 snapshots, {size:,.1f} GB on the disk when all are there" in tell_plan(with_them, Prices())
    assert not any(line.startswith("averages") for line in tell_plan(without, Prices()))


def test_a_length_is_released_and_said(straight, tmp_path, capsys) -> None:
    out = tmp_path / "model"
    assert main([str(straight), "--length", "0.1", "--step", "8", "--out", str(out), "--licence", "mit"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    half = load_file(straight / "averages" / "step-00000008" / "0.1.safetensors")
    found = dict(load_pipeline(out, torch.device("cpu"), torch.float32).transformer.named_parameters())
    assert found.keys() == half.keys()
    for name, tensor in half.items():
        torch.testing.assert_close(found[name].detach(), tensor.float(), rtol=1e-5, atol=1e-7)
    card = (out / "README.md").read_text()
    assert "The weights are a power-function average of length 0.1 (sigma_rel of arXiv 2312.02696" in card
    assert "k to the power of 6.94), after step 8." in card
    assert "license: mit" in card
    assert "chosen" not in card.split("## Training")[1].split("##")[0]


def test_a_length_is_chosen_on_held_out_images(straight, tmp_path, capsys) -> None:
    out = tmp_path / "model"
    words = ["--sweep", "--lengths", "0.05", "0.1", "0.08", "0.01", "--images", "100", "--out", str(out)]
    assert main([str(straight), *words]) == 0
    first = capsys.readouterr().out
    assert main([str(straight), *words]) == 0
    said = capsys.readouterr().out
    assert said == first
    lines = [line.split() for line in said.splitlines()]
    rows = {row[-1]: float(row[0]) for row in lines if row[-1][:2] == "0."}
    assert rows.keys() == {"0.05", "0.08", "0.1"}, "0.01 is not held by so few"
    assert "the last step's weights" in said
    assert "an exponential average, decay 0.9 (with warm-up" in said
    best = min(rows, key=lambda length: rows[length])
    card = (out / "README.md").read_text()
    assert f"a power-function average of length {best} (" in card
    assert "on 6 images of the\nvalidation split, and by no evaluation" in card
    assert all(f"| {length} | {loss:.5f} |" in card for length, loss in rows.items())


def test_what_a_length_is_chosen_on_is_held_out_and_always_the_same(root) -> None:
    config = training_config(root, **SECTIONS)
    (one, *_), (other, *_), (another, *_) = (read_held_out(config, 6, seed) for seed in (0, 0, 1))
    assert all(key.startswith("validation") for key in one.keys)
    assert torch.equal(one.noise_BCHW, other.noise_BCHW)
    assert torch.equal(one.timesteps_B, other.timesteps_B)
    assert not torch.equal(one.noise_BCHW, another.noise_BCHW)
    assert not one.dropped_B.any()


def test_damaged_averages_are_named(straight, tmp_path) -> None:
    shutil.copytree(straight, tmp_path / "run")
    file = tmp_path / "run" / "averages" / "step-00000004" / "0.1.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WorkError, match=r"step-00000004: damaged \(0.1.safetensors"):
        open_snapshots(tmp_path / "run", None)
    assert open_snapshots(tmp_path / "run", 2).step == 2


def test_averages_of_another_step_than_their_folder_says_are_named(straight, tmp_path) -> None:
    shutil.copytree(straight, tmp_path / "run")
    (tmp_path / "run" / "averages" / "step-00000009").rename(tmp_path / "run" / "averages" / "step-00000400")
    with pytest.raises(WorkError, match=r"step-00000400: damaged \(state.json is that of step 9"):
        open_snapshots(tmp_path / "run", None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN"], "expected either --length L, such as 0.08, or --sweep"),
        (["RUN", "--sweep", "--length", "0.1"], "expected either --length L, such as 0.08, or --sweep"),
        (["RUN", "--length", "0.1"], "--out: expected the folder"),
        (["RUN", "--length", "0.3", "--out", "OUT"], "--length: expected at least 0.001 and at most 0.28, found 0.3"),
        (["RUN", "--length", "0", "--out", "OUT"], "--length: expected at least 0.001"),
        (["RUN", "--sweep", "--lengths", "0.1", "-1"], "--lengths: expected at least 0.001"),
        (["RUN", "--length", "0.01", "--out", "OUT"], "--length 0.01: not held by what is stored: it misses"),
        (["RUN", "--length", "0.1", "--step", "3", "--out", "OUT"], "there are: 2, 4, 6, 8, 9"),
        (["RUN", "--sweep", "--images", "0"], "--images: expected 1 or more"),
        (["WITHOUT", "--sweep"], "no stored averages; a run has them that was trained with lengths"),
        (["ELSEWHERE", "--sweep"], "not a training run"),
        (["RUN", "--length", "0.1", "--out", "OTHER"], "something else than a release"),
    ],
)
def test_wrong_input_is_one_clear_line(
    words: list[str], message: str, root: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    places = {"RUN": straight, "OUT": tmp_path / "out", "ELSEWHERE": tmp_path, "OTHER": tmp_path / "other"}
    places["OTHER"].mkdir()
    (places["OTHER"] / "thesis.txt").write_text("years of work")
    places["WITHOUT"] = tmp_path / "without"
    places["WITHOUT"].mkdir()
    (places["WITHOUT"] / "config.yaml").write_text(yaml.safe_dump(plain_config(root)))
    assert main([str(places.get(word, word)) for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not places["OUT"].exists()


def test_without_held_out_images_nothing_is_chosen(tmp_path, capsys) -> None:
    samples = [
        MadeSample(key=f"one-{n}", latent_CHW=np.zeros((4, 8, 8)), audio_TD={"captions": np.zeros((5, WIDTH))})
        for n in range(8)
    ]
    training_input(tmp_path, samples)
    train(training_config(tmp_path, **AVERAGES))
    assert main([str(tmp_path / "run"), "--sweep"]) == 2
    assert "validation" in capsys.readouterr().err
