"""What a run costs: the arithmetic, prices that make no sense, and the probe that units are measured by."""

from dataclasses import replace

import pytest

from sonify import prepare
from sonify.config import Engine
from sonify.engine.job import Resources
from sonify.engine.record import Measured, read_record, with_unit, write_record
from sonify.engine.worker import LocalExecutor, Outcome
from sonify.io.commits import Commit, Count, open_record, seal_record
from sonify.report.cost import Prices, cost_of, cost_stages, read_prices, tell_amount, tell_costs
from sonify.report.estimate import estimate
from sonify.running import plan_run, run
from sonify.stages.table import stages_of
from tests.builders import hash_run, refused, say, small_config, small_input, vlm_at
from tests.processes import run_python
from tests.vlm.faulty_server import numbered_image, serving

PRICES = Prices(gpu_hour=2.1, cpu_hour=0.04, gpu_watts=700, cpu_watts=8, currency="EUR")
STAGES = ["pool", "embeddings", "concepts/captions", "pair", "render"]


@pytest.fixture
def root(tmp_path):
    small_input(tmp_path)
    return tmp_path


@pytest.fixture
def _small_units(monkeypatch):
    """Four units of recordings."""
    monkeypatch.setattr(prepare, "RECORDINGS_IN_UNIT", 4)


def measured(config):
    """What run.json has of each stage."""
    record = read_record(config.run_dir)
    assert record is not None
    return {key: stage.measured for key, stage in record.stages.items()}


def costs_of(config, prices=PRICES):
    plans = plan_run(config)
    return {cost.stage: cost for cost in cost_stages(config, plans, estimate(config, plans), prices)}


def told(config, prices=PRICES):
    return list(tell_costs(list(costs_of(config, prices).values()), 24, prices))


def put(config, key, found):
    record = read_record(config.run_dir)
    assert record is not None
    stage = replace(record.stages[key], measured=found)
    write_record(config.run_dir, replace(record, stages={**record.stages, key: stage}))


def test_hours_are_priced_by_hand():
    cost = cost_of(3, 10, PRICES)
    assert cost.money == pytest.approx(3 * 2.1 + 10 * 0.04) == pytest.approx(6.7)
    assert cost.kwh == pytest.approx((3 * 700 + 10 * 8) / 1000) == pytest.approx(2.18)


@pytest.mark.parametrize(
    ("hours", "prices", "money", "kwh"),
    [
        ((3, 10), Prices(), None, None),
        ((3, 10), Prices(gpu_hour=2, gpu_watts=700), None, None),  # the CPUs have a price that was not given
        ((3, 10), Prices(gpu_hour=2, cpu_hour=0, cpu_watts=8), 6, None),
        ((0, 10), Prices(cpu_hour=0.5, cpu_watts=8), 5, 0.08),  # no GPU was used: its price need not be known
        ((0, 0), Prices(), 0, 0),
    ],
)
def test_a_price_that_is_needed_and_was_not_given_is_not_known(hours, prices, money, kwh):
    cost = cost_of(hours[0], hours[1], prices)
    assert (cost.money, cost.kwh) == (money, kwh)


def test_prices_come_from_pairs_or_from_a_file(tmp_path):
    text = "gpu_hour=2.1, cpu_hour=4e-2,gpu_watts=700,cpu_watts=8,currency=EUR"
    file = tmp_path / "prices.yaml"
    file.write_text("gpu_hour: 2.1\ncpu_hour: 0.04\ngpu_watts: 700\ncpu_watts: 8\ncurrency: EUR\n")
    assert read_prices(text) == read_prices(str(file)) == PRICES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu_hour=-1", "--prices: gpu_hour: input should be greater than or equal to 0, found -1.0"),
        ("cpu_watts=nan", "--prices: cpu_watts: input should be a finite number, found nan"),
        ("cpu_hour=inf", "--prices: cpu_hour: input should be a finite number, found inf"),
        ("gpu_hour=two", "--prices: gpu_hour: expected a number, found 'two'"),
        ("gpuhour=2", "--prices: gpuhour: no such key; did you mean gpu_hour?"),
        ("gpu_hour=2,1", "--prices: expected key=value between commas"),
        ("gpu_hour=", "--prices: expected key=value between commas"),
        ("gpu_hour=1,gpu_hour=2", "--prices: gpu_hour is given twice"),
        ("gpu_hour", "or a YAML file of such keys, found 'gpu_hour'"),
        ("", "or a YAML file of such keys, found ''"),
        ("currency=a b", "--prices: currency: "),
        ("currency=\x1b[31m", "--prices: currency: "),
        ("currency=E\u202e", "--prices: currency: "),
        ("mfu=45", "--prices: mfu: input should be less than or equal to 1, found 45.0"),
        ("device_tflops=0", "--prices: device_tflops: input should be greater than 0"),
    ],
)
def test_prices_that_make_no_sense_are_one_line(text, message):
    with refused(None) as caught:
        read_prices(text)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_file_of_prices_that_aliases_blow_up_is_refused_unexpanded(tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text(
        "a0: &a0 [x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    )
    with refused("values here, those of aliases counted at each use"):
        read_prices(str(file))


def test_a_file_of_prices_is_as_strict_and_names_the_line(tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text("gpu_hour: 2.1\ngpu_watt: 700\n")
    with refused(r"prices.yaml: gpu_watt \(line 2\): no such key; did you mean gpu_watts\?"):
        read_prices(str(file))


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "not known"), (0, "0"), (0.0004, "< 0.001"), (0.0294, "0.0294"), (15.84, "15.8"), (12345.6, "12,346")],
)
def test_amounts_are_told_without_exponents(value, said):
    assert tell_amount(value) == said


def test_a_stages_cost_is_its_workers_seconds_times_what_they_hold(root):
    config = small_config(root)
    run(config, probe=True)
    put(config, "render", Measured(cpus=4, gpus=0.5, units=1, rows=8, seconds=36.0, loads=1, load_seconds=20.0))
    cost = costs_of(config)["render"]
    # 4.5 s a row; one scene an image; 24 images, of which 8 are done
    assert cost.million is not None
    assert cost.job is not None
    assert cost.left is not None
    assert cost.million.gpu_hours == pytest.approx(1e6 * 4.5 / 3600 * 0.5) == pytest.approx(625)
    assert cost.million.cpu_hours == pytest.approx(5000)
    assert cost.million.money == pytest.approx(625 * 2.1 + 5000 * 0.04)
    assert cost.job.cpu_hours == pytest.approx(24 * 4.5 / 3600 * 4)
    assert cost.left.cpu_hours == pytest.approx(16 * 4.5 / 3600 * 4)
    line = next(line for line in told(config) if line.startswith("render") and "unit" in line)
    assert "8 rows in 1 unit, 36.00 s, 20.0 s of loading, a worker holds 4 CPUs and 0.5 GPUs" in line


def test_each_scene_of_an_image_is_paid_and_the_pool_once(root):
    config = small_config(root, retrieval={"draws": 3})
    run(config, probe=True)
    for key in ("pair", "pool"):
        put(config, key, Measured(cpus=1, gpus=0, units=1, rows=10, seconds=36.0))
    costs = costs_of(config)
    assert costs["pair"].million is not None
    assert costs["pair"].million.cpu_hours == pytest.approx(3e6 * 3.6 / 3600)
    assert costs["pool"].once
    assert costs["pool"].million is None
    assert costs["pool"].job is not None
    assert costs["pool"].job.cpu_hours == pytest.approx(16 * 3.6 / 3600)


def test_before_any_unit_nothing_is_known_and_it_is_said_what_would_help(root):
    config = small_config(root)
    assert {cost.million for cost in costs_of(config).values()} == {None}
    lines = told(config, Prices())
    assert any(line.startswith(f"not known: {', '.join(STAGES)}: no unit was measured; `") for line in lines)
    assert any("--probe` does one of each" in line for line in lines)
    assert "money: not known: say --prices gpu_hour=...,cpu_hour=..." in lines
    assert "kWh: not known: say --prices gpu_watts=...,cpu_watts=..." in lines
    assert not config.run_dir.exists()


def test_only_prices_that_are_used_are_asked_for(root):
    config = small_config(root)
    run(config, probe=True)
    lines = told(config, Prices(cpu_watts=8))
    assert "money: not known: say --prices cpu_hour=..." in lines
    assert not any(line.startswith("kWh") for line in lines)
    assert "kWh" in lines[2]
    assert "GPU h" in lines[2]


@pytest.mark.parametrize("kind", ["local", pytest.param("ray", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("_small_units")
def test_a_probe_does_one_unit_of_each_stage_and_the_run_goes_on_to_the_same_bytes(root, kind):
    engine = Engine(kind=kind, workers=2 if kind == "ray" else None).model_dump()
    config = small_config(root, run="probed", engine=engine)
    run(config, probe=True)
    done = {plan.stage.key: len(plan.done) for plan in plan_run(config)}
    assert done == {"pool": 4, "embeddings": 4, "concepts/captions": 1, "pair": 1, "render": 1}  # the pool whole
    for key, found in measured(config).items():
        assert found is not None
        assert (found.units, found.cpus, found.gpus) == (done[key], 1, 0)
        assert found.rows > 0 < found.seconds
        assert 1 <= found.loads <= 2
        assert found.load_seconds > 0
    assert not any(cost.unknown for cost in costs_of(config).values())

    before = hash_run(config.run_dir)
    run(config, probe=True)  # all is known: nothing is done
    assert hash_run(config.run_dir) == before
    run(config)
    straight = small_config(root, run="straight")
    run(straight)
    assert hash_run(config.run_dir) == hash_run(straight.run_dir)
    assert {found.units for key, found in measured(config).items() if key == "render" and found} == {3}
    left = [cost.left for cost in costs_of(config).values()]
    assert all(cost is not None and cost.cpu_hours == 0 for cost in left)


@pytest.mark.usefixtures("_small_units")
def test_a_probe_of_single_stages_does_one_unit_of_what_no_other_of_them_reads(root):
    config = small_config(root)
    run(config, ("pool", "embeddings"), probe=True)
    run(config, ("concepts",), probe=True)
    run(config, ("pair",), probe=True)  # the pool is not whole: it waits, which is no error
    assert [len(plan.done) for plan in plan_run(config)] == [1, 1, 1, 0, 0]
    assert costs_of(config)["pair"].unknown.startswith("no unit was measured; `")


def test_a_probe_takes_a_unit_that_the_stages_beside_it_have_done(root):
    with serving(answer=say) as server:
        for n in range(24):
            numbered_image(n).save(root / "photos" / f"{n:03d}.jpg", quality=95)
        eye, other = vlm_at(server.url), vlm_at(server.url, name="other")
        run(small_config(root, concepts={"extractors": [eye]}), ("pool", "embeddings", "concepts"))
        commits = sorted((root / "run" / "commits" / "concepts").rglob("*.json"))
        commits[0].unlink()  # as if it had been given up
        config = small_config(root, concepts={"extractors": [eye, other]})
        run(config, probe=True)
    done = {plan.stage.key: list(plan.done) for plan in plan_run(config)}
    assert done["concepts/other"] == done["render"] == [commits[1].stem]
    assert [cost.asks_server for cost in costs_of(config).values()] == [False, False, True, True, False, False]
    assert sum("; the server that it asks is not in it" in line for line in told(config)) == 2


def test_what_is_recalled_from_answers_is_not_measured(root):
    with serving(answer=say) as server:
        for n in range(24):
            numbered_image(n).save(root / "photos" / f"{n:03d}.jpg", quality=95)
        config = small_config(root, concepts={"extractors": [vlm_at(server.url)]})
        run(config, ("pool", "embeddings", "concepts"))
        asked = measured(config)["concepts/eye"]
        assert asked is not None
        assert asked.units == 3
    run(config, redo="concepts")  # nobody is asked, and the server is gone
    assert measured(config)["concepts/eye"] is None
    assert costs_of(config)["concepts/eye"].unknown.startswith("done without being measured")


KILL = """
import sys
from pathlib import Path
from sonify import prepare
from sonify.running import plan_run, run
from tests.builders import hash_run, small_config
from tests.processes import fork
root = Path(sys.argv[1])
prepare.RECORDINGS_IN_UNIT = 4
run(small_config(root, run="straight"))
expected, kills = hash_run(root / "straight"), 0
for step in range(1, 1000, 31):
    config = small_config(root, run=f"killed-{step}")
    if fork(lambda: run(config, probe=True), step) == 0:
        break
    kills += 1
    assert fork(lambda: run(config, probe=True)) == 0, step
    done = [len(plan.done) for plan in plan_run(config)]
    assert done[:2] == [4, 4] and all(1 <= each <= 2 for each in done[2:]), (step, done)
    assert fork(lambda: run(config)) == 0, step
    assert hash_run(config.run_dir) == expected, step
print(kills)
"""


def test_a_probe_that_is_killed_goes_on_and_the_run_ends_in_the_same_bytes(root):
    assert int(run_python(KILL, root).stdout) >= 4


def test_a_run_json_without_measures_is_still_read_and_probed(root):
    config = small_config(root)
    run(config, probe=True)
    path = config.run_dir / "run.json"
    plain = open_record(path.read_bytes())
    for stage in plain["stages"].values():
        del stage["measured"]
    path.write_bytes(seal_record({key: value for key, value in plain.items() if key != "sha256"}))
    assert set(measured(config).values()) == {None}
    assert costs_of(config)["pool"].unknown.startswith("done without being measured, by an earlier version")
    run(config, probe=True)
    found = measured(config)
    assert found["pool"] is None  # there is no unit of it left
    assert found["render"] is not None
    assert found["render"].units == 1
    assert [len(plan.done) for plan in plan_run(config)] == [1, 1, 2, 2, 2]


def test_workers_that_hold_something_else_are_measured_from_the_beginning(root):
    config = small_config(root)
    run(config, ("pool",))
    record, stage = read_record(config.run_dir), stages_of(config)[0]
    assert record is not None
    rows = Count(rows_in=10, rows_out=10, rejected={})
    commit = Commit(stage="pool", unit="u", digest="d", inputs={}, rows=rows, clips=None, files=())
    outcome = Outcome(unit="u", commit=commit, seconds=2.0, load_seconds=5.0)
    for _ in range(2):
        record = with_unit(record, stage, Resources(4, 1), outcome)
    assert record.stages["pool"].measured == Measured(
        cpus=4, gpus=1, units=2, rows=20, seconds=4.0, loads=2, load_seconds=10.0
    )
    again = with_unit(record, stage, Resources(4, 0), replace(outcome, load_seconds=0.0)).stages["pool"].measured
    assert again == Measured(cpus=4, gpus=0, units=1, rows=10, seconds=2.0)


def test_in_this_process_a_stage_holds_a_gpu_only_where_there_is_one(root, monkeypatch):
    import torch  # noqa: PLC0415 - as the stage would have imported it

    stage = replace(stages_of(small_config(root))[1], num_cpus=4, num_gpus=0.5, gpu_optional=True)
    executor = LocalExecutor(root, [stage])
    for there, gpus in ((False, 0), (True, 0.5)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert executor.held_by(stage) == Resources(4, gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert executor.held_by(replace(stage, gpu_optional=False)) == Resources(4, 0.5)


def test_nothing_is_left_to_pay_of_a_run_that_lost_images_on_its_way(root):
    (root / "photos" / "bad.jpg").write_bytes(b"no picture")
    config = small_config(root)
    run(config)
    assert [cost.left.cpu_hours for cost in costs_of(config).values() if cost.left] == [0] * 5


def test_a_unit_without_a_sound_ends_no_probe(root):
    """The units behind it may have some: a run would go on, too."""
    table = root / "photos" / "captions.csv"
    head, *rows = table.read_text().splitlines()
    silent = [row if n >= 8 else f"{row.partition(',')[0]},a plain wall" for n, row in enumerate(rows)]
    table.write_text("\n".join([head, *silent, ""]))
    config = small_config(root)
    run(config, probe=True)
    assert costs_of(config)["pair"].unknown.startswith("what was measured held no row; `")
    run(config)
    assert not any(cost.unknown for cost in costs_of(config).values())
