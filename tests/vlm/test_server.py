import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from sonify.config.models import ServerVlm
from sonify.errors import InputError, TransientError, WorkError
from sonify.vlm import server as server_module
from sonify.vlm.questions import Answer, Question
from sonify.vlm.retrying import RetryPolicy
from sonify.vlm.server import Server, engine_environment, free_port, plan_launch, start_server
from tests.tiny_networks import tiny_llava, tiny_qwen_vl
from tests.vlm.faulty_server import answer_for, numbered_image

ENGINE = (sys.executable, str(Path(__file__).parent / "faulty_server.py"), "--port", "{port}")
QUICK = RetryPolicy(timeout_sec=0.5, max_wait_sec=15, first_delay_sec=0.05, longest_delay_sec=0.2, failures_to_open=3)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(server_module, "GRACE_SEC", 1.0)


def config_for(*arguments: str, command: object = None, **fields) -> ServerVlm:
    base = {"kind": "vlm", "name": "stub", "backend": "server", "model": "stub", "concurrency": 4}
    return ServerVlm.model_validate(
        base | {"command": command or (*ENGINE, *arguments), "start_timeout_sec": 30} | fields
    )


def plan(*faults: dict) -> tuple[str, str]:
    return "--plan", json.dumps(faults)


def questions(*numbers: int) -> list[Question]:
    return [Question(image=numbered_image(number), prompt="What can be heard?") for number in numbers]


def texts(*numbers: int) -> list[str]:
    return [answer_for(numbered_image(number), "") for number in numbers]


def said(server: Server, *numbers: int) -> list[str]:
    return [getattr(answer, "text", str(answer)) for answer in server(questions(*numbers))]


def pids(log_folder: Path) -> list[int]:
    """Every process that engines have told of in their log."""
    (log,) = log_folder.glob("*.log")
    return [int(line.split()[-1]) for line in log.read_text().splitlines() if " pid " in line]


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def all_gone(processes: list[int], within_sec: float) -> bool:
    deadline = time.monotonic() + within_sec
    while any(map(lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(lives, processes))


def test_an_engine_is_started_asked_and_ended_with_its_children(tmp_path):
    server = start_server(config_for("--child"), tmp_path, QUICK)
    try:
        assert said(server, *range(20)) == texts(*range(20))
        engine, child = pids(tmp_path)
        assert lives(engine)
        assert lives(child)
    finally:
        server.close()
    assert not any(map(lives, [engine, child]))
    server.close()


@pytest.mark.parametrize("stubborn", [(), ("--stubborn",)], ids=["plain", "stubborn"])
def test_an_engine_dies_with_a_killed_worker(tmp_path, stubborn):
    script = (
        "import sys, time; from pathlib import Path\n"
        "from sonify.config.models import ServerVlm; from sonify.vlm import server\n"
        "server.GRACE_SEC = 1.0\n"  # as `short_grace`
        "kept = server.start_server(ServerVlm.model_validate_json(sys.argv[1]), Path(sys.argv[2]))\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    config = config_for("--child", *stubborn).model_dump_json()
    worker = subprocess.Popen([sys.executable, "-c", script, config, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        started = pids(tmp_path)
        assert len(started) == 2
        assert all(map(lives, started))
    finally:
        worker.kill()
        worker.communicate()
    assert all_gone(started, within_sec=60)


class Holder:
    """What a Ray actor does: it holds an engine."""

    def hold(self, config: ServerVlm, log_folder: Path) -> None:
        server_module.GRACE_SEC = 1.0
        self._server = start_server(config, log_folder, QUICK)


def test_an_engine_dies_with_a_killed_ray_actor(tmp_path):
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        actor: Any = ray.remote(num_cpus=1)(Holder).remote()
        ray.get(actor.hold.remote(config_for("--child"), tmp_path))
        started = pids(tmp_path)
        assert len(started) == 2
        assert all(map(lives, started))
        ray.kill(actor)
        assert all_gone(started, within_sec=60)
    finally:
        ray.shutdown()


def test_an_engine_dies_with_its_guard(tmp_path):
    server = start_server(config_for(), tmp_path, QUICK)
    try:
        (engine,) = pids(tmp_path)
        guard = int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(guard, signal.SIGKILL)
        assert all_gone([engine], within_sec=60)
        assert said(server, 1) == texts(1)  # by another engine
        assert len(pids(tmp_path)) == 2
    finally:
        server.close()


def test_an_engine_that_dies_is_replaced_and_nothing_is_lost(tmp_path):
    server = start_server(config_for(), tmp_path, QUICK)
    try:
        assert said(server, *range(5)) == texts(*range(5))
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        with ThreadPoolExecutor(2) as callers:
            calls = [callers.submit(said, server, *range(start, start + 8)) for start in (0, 100)]
            assert [call.result() for call in calls] == [texts(*range(8)), texts(*range(100, 108))]
        assert len(pids(tmp_path)) == 2
    finally:
        server.close()
    assert not any(map(lives, pids(tmp_path)))


def test_an_engine_that_dies_of_every_question_leaves_the_unit_undone(tmp_path):
    server = start_server(config_for(*plan({"kind": "die", "number": 3})), tmp_path, QUICK)
    try:
        with pytest.raises(TransientError, match=r"2 restarts did not help.*exit status 1.*out of memory, as told"):
            server(questions(1, 2, 3))
        assert len(pids(tmp_path)) == 3
        assert said(server, 5) == texts(5)  # the next unit gets a fresh one
    finally:
        server.close()


def test_an_engine_that_hangs_is_seen_before_its_questions_give_up_and_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "HEALTH_TIMEOUT_SEC", 0.3)
    monkeypatch.setattr(server_module, "MOST_RESTARTS", 0)  # so that a call says why it would have replaced it
    hang = plan({"kind": "hang", "after": 6})
    server = start_server(config_for(*hang), tmp_path, replace(QUICK, max_wait_sec=90))
    try:
        assert said(server, *range(6)) == texts(*range(6))
        with pytest.raises(TransientError, match="the engine hangs"):
            server(questions(*range(6)))
        assert said(server, *range(6)) == texts(*range(6))
        assert len(pids(tmp_path)) == 2
    finally:
        server.close()


def test_an_engine_that_ends_early_is_an_input_error_with_the_end_of_its_log(tmp_path):
    command = (sys.executable, "-c", "import sys; sys.exit('no GPU with enough memory, port {port}')")
    with pytest.raises(InputError, match=r"ended before it was ready \(exit status 1\).*no GPU with enough") as caught:
        start_server(config_for(command=command), tmp_path)
    assert "\n" not in str(caught.value)


def test_an_engine_that_is_never_ready_is_ended(tmp_path):
    with pytest.raises(WorkError, match=r"not ready after 4 s \(start_timeout_sec\).*loading stub"):
        start_server(config_for("--start-sec", "60", start_timeout_sec=4), tmp_path)
    assert not any(map(lives, pids(tmp_path)))


def test_an_engine_that_serves_another_name_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="does not serve the model 'stub'; set model to one of: other"):
        start_server(config_for("--model", "other"), tmp_path)
    assert not any(map(lives, pids(tmp_path)))


def test_closing_ends_a_start_that_is_under_way(tmp_path):
    server = Server(config_for("--start-sec", "60"), tmp_path / "engine.log", QUICK)
    with ThreadPoolExecutor(1) as caller:
        start = caller.submit(server.start)
        while not (tmp_path / "engine.log").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        server.close()
        with pytest.raises(TransientError, match="closed"):
            start.result()
    assert not any(map(lives, pids(tmp_path)))


def test_a_command_that_is_not_there_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="'vllm' is not on this machine's PATH"):
        start_server(config_for(command="vllm", environment={"PATH": str(tmp_path)}), tmp_path)


def fake_program(folder: Path, name: str) -> dict[str, str]:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


@pytest.mark.parametrize(
    ("engine", "arguments", "name"),
    [
        ("vllm", "serve org/vlm --host 127.0.0.1 --port 8123 --revision abc", "org/vlm"),
        ("sglang", "serve --model-path org/vlm --host 127.0.0.1 --port 8123 --revision abc", "org/vlm"),
        (
            "lmdeploy",
            "serve api_server org/vlm --server-name 127.0.0.1 --server-port 8123 --revision abc",
            "org/vlm",
        ),
        ("transformers", "serve org/vlm@abc --host 127.0.0.1 --port 8123", "org/vlm@abc"),
    ],
)
def test_commands_of_known_engines(tmp_path, engine, arguments, name):
    environment = fake_program(tmp_path, engine)
    launch = plan_launch(config_for(command=engine, model="org/vlm", revision="abc", environment=environment))
    assert launch.on_port(8123) == [str(tmp_path / engine), *arguments.split()]
    assert launch.served_name == name


def test_a_folder_is_filled_in_whole_and_has_no_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my model").mkdir()
    command = (sys.executable, "--path={model}", '{"port": {port}}')
    launch = plan_launch(config_for(command=command, model="my model"))
    assert launch.on_port(1)[1:] == [f"--path={tmp_path}/my model", '{"port": 1}']
    assert launch.served_name == str(tmp_path / "my model")
    with pytest.raises(InputError, match="revision abc is set, but the model is a folder"):
        plan_launch(config_for(command=command, model="my model", revision="abc"))


@pytest.mark.parametrize(
    ("command", "says"),
    [((sys.executable, "{port}", "{revision}"), "revision must be set"), ((sys.executable,), "where {port} goes")],
)
def test_a_list_that_cannot_be_filled_in_is_an_input_error(command, says):
    with pytest.raises(InputError, match=says):
        plan_launch(config_for(command=command))


def test_an_engine_sees_the_gpus_and_no_keys():
    own = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "3", "HF_HOME": "/hf", "STUB_KEY": "sk", "RAY_JOB_ID": "1"}
    kept = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "3", "HF_HOME": "/hf"}
    assert engine_environment(own, {"A": "1", "HF_HOME": "/other"}) == kept | {"A": "1", "HF_HOME": "/other"}


def test_an_engine_makes_its_sockets_elsewhere_where_the_folder_has_a_long_name():
    for folder, passed in (("/scratch", True), ("/scratch/" + "x" * 90, False)):
        assert ("TMPDIR" in engine_environment({"TMPDIR": folder}, {})) == passed
        assert engine_environment({"TMPDIR": folder}, {"TMPDIR": folder}) == {"TMPDIR": folder}


@pytest.mark.parametrize("make_model", [tiny_llava, pytest.param(tiny_qwen_vl, marks=pytest.mark.slow)])
def test_transformers_serve_answers_about_images(tmp_path, make_model):
    folder = make_model(tmp_path / "model")
    config = config_for(command="transformers", model=str(folder), max_new_tokens=6, start_timeout_sec=120)
    server = start_server(config, tmp_path / "logs", RetryPolicy(timeout_sec=60, max_wait_sec=60))
    try:
        answers = server(questions(1, 2, 3))
        assert answers == server(questions(1, 2, 3))  # greedy
    finally:
        server.close()
    # noise does not come to an end
    assert [isinstance(answer, Answer) and answer.finished for answer in answers] == [False] * 3
    assert all(isinstance(answer, Answer) for answer in answers), answers


def test_free_ports_are_free():
    assert len({free_port() for _ in range(20)}) > 1
