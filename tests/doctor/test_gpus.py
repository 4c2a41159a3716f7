"""What GPUs come to. There is none here: what the driver says is text as real ones print it, read by what reads it."""

import re
import time

import pytest

from sonify.doctor.findings import Outcome
from sonify.doctor.gpus import (
    Ask,
    Gpu,
    Gpus,
    asks_of,
    examine_gpus,
    judge_gpu_memory,
    judge_gpus,
    look_for_gpus,
    parse_cuda,
    parse_gpus,
)
from tests.builders import small_config, small_input
from tests.processes import is_gone

# As `nvidia-smi` of these drivers prints them.
H200 = "0, NVIDIA H200, 580.82.07, 143771, 143155\n1, NVIDIA H200, 580.82.07, 143771, 9011\n"
A100_SLICE = "0, NVIDIA A100-SXM4-80GB MIG 3g.40gb, 535.129.03, [N/A], [N/A]\n"
LOST = "No devices were found\n"
HEAD_580 = (
    "Sun Sep 21 21:56:02 2025       \n"
    "+-----------------------------------------------------------------------------------------+\n"
    "| NVIDIA-SMI 580.82.09              Driver Version: 580.82.09      CUDA Version: 13.0     |\n"
)
HEAD_470 = "| NVIDIA-SMI 470.63.01    Driver Version: 470.63.01    CUDA Version: 11.4     |\n"

VLM = Ask(key="concepts.extractors.0", name="eye", cpus=1, gpus=1)
ENGINE = Ask(key="concepts.extractors.1", name="llava", cpus=1, gpus=2, needs_gpu=True, in_torch=False)
ONE = Gpu(name="NVIDIA A10G", memory_bytes=24 * 10**9, free_bytes=23 * 10**9)
HERE = {"found": (ONE,), "driver": "580.82.07", "driver_cuda": "13.0", "torch": "2.14.1", "torch_cuda": "13.0"}


def test_gpus_are_read_as_the_driver_lists_them():
    found, driver = parse_gpus(H200)
    assert driver == "580.82.07"
    assert [(gpu.name, gpu.memory_bytes, gpu.free_bytes) for gpu in found] == [
        ("NVIDIA H200", 143771 << 20, 143155 << 20),
        ("NVIDIA H200", 143771 << 20, 9011 << 20),
    ]
    assert parse_gpus(A100_SLICE)[0][0].memory_bytes == 0
    assert parse_gpus(LOST) == ((), "")
    assert parse_gpus("") == ((), "")


@pytest.mark.parametrize(
    ("head", "cuda"),
    [
        (HEAD_580, "13.0"),
        (HEAD_470, "11.4"),
        ("CUDA Version        : 12.8\n", "12.8"),
        ("CUDA Version: N/A", ""),
        ("", ""),
    ],
)
def test_the_newest_cuda_of_a_driver_stands_in_the_head_of_its_table(head, cuda):
    assert parse_cuda(head) == cuda


@pytest.mark.parametrize(
    ("seen", "asks", "outcome", "words"),
    [
        pytest.param(Gpus(), [], Outcome.OK, "nothing in the configuration asks", id="a run without models"),
        pytest.param(Gpus(torch="2.14.1"), [VLM], Outcome.NOTE, "none on this machine: eye will run on", id="no GPU"),
        pytest.param(Gpus(), [ENGINE], Outcome.FAULT, "llava cannot do without", id="an engine without a GPU"),
        pytest.param(Gpus(**HERE, torch_gpus=1), [VLM], Outcome.OK, "1 x NVIDIA A10G; driver 580", id="all is well"),
        pytest.param(Gpus(**HERE, torch_gpus=1), [ENGINE], Outcome.FAULT, "asks for 2, and there are 1", id="too few"),
        pytest.param(
            Gpus(**{**HERE, "driver": "550.54.15", "driver_cuda": "12.4"}),
            [VLM],
            Outcome.FAULT,
            "torch 2.14.1 finds none: this torch is built for CUDA 13.0, which takes driver 580 or newer, and the"
            " driver here is 550.54.15",
            id="a driver too old",
        ),
        pytest.param(Gpus(**{**HERE, "torch_cuda": ""}), [VLM], Outcome.FAULT, "built for CPUs", id="a torch for CPUs"),
        pytest.param(Gpus(**HERE), [VLM], Outcome.FAULT, "580.82.07 is new enough", id="nothing in the container"),
        pytest.param(
            Gpus(reserved_by="SLURM_JOB_GPUS=0", torch="2.14.1", torch_cuda="13.0"),
            [VLM],
            Outcome.FAULT,
            "reserved by SLURM_JOB_GPUS=0, and torch 2.14.1 finds none: .*there is no NVIDIA driver here",
            id="reserved and not there",
        ),
        pytest.param(
            Gpus(device_files=2, torch="2.14.1", torch_cuda="13.0"),
            [VLM],
            Outcome.FAULT,
            "2 device files /dev/nvidia",
            id="device files alone",
        ),
        pytest.param(Gpus(**{**HERE, "torch": ""}), [VLM], Outcome.FAULT, "torch is not installed", id="no torch"),
    ],
)
def test_what_was_seen_is_set_against_what_is_asked_for(seen, asks, outcome, words):
    finding = judge_gpus(seen, asks)
    assert finding.outcome is outcome
    assert re.search(words, finding.found), finding.found


def test_a_gpu_that_cannot_be_used_is_mended_by_a_driver_or_another_torch():
    old = Gpus(**{**HERE, "driver": "550.54.15", "driver_cuda": "12.4"})
    assert judge_gpus(old, [VLM]).todo == (
        "have driver 580 or newer on the machine and in the container, or install a torch that is built for CUDA 12.4"
        " at most; `device: cpu` of a run does without"
    )


def test_this_machine_may_have_none_where_the_work_is_done_elsewhere():
    assert judge_gpus(Gpus(), [ENGINE], elsewhere=True).outcome is Outcome.NOTE


def test_gpus_that_were_given_are_counted_and_not_the_machines():
    seen = Gpus(found=(ONE,) * 8, driver="580.82.07", given=1, reserved_by="CUDA_VISIBLE_DEVICES=3")
    assert judge_gpus(seen, [ENGINE]).found == "llava asks for 2, and there are 1"


@pytest.mark.parametrize(
    ("needed", "outcomes"),
    [
        ({}, []),
        ({VLM.key: 10**9}, [Outcome.OK]),
        ({VLM.key: 20 * 10**9}, [Outcome.NOTE]),
        ({VLM.key: 10**11}, [Outcome.FAULT]),
    ],
)
def test_memory_is_compared_with_what_is_known_of_a_worker(needed, outcomes):
    half = Ask(key=VLM.key, name="eye", cpus=1, gpus=0.5)
    findings = list(judge_gpu_memory([ONE], [half], needed))
    assert [finding.outcome for finding in findings] == outcomes
    assert all(bool(finding.todo) is (finding.outcome is not Outcome.OK) for finding in findings)
    assert not list(judge_gpu_memory([], [half], needed))


@pytest.fixture
def config(tmp_path):
    small_input(tmp_path, photos=2)
    vlm = {"kind": "vlm", "name": "eye", "backend": "transformers", "model": "a/b", "revision": "c0", "gpus": 0.5}
    engine = {"kind": "vlm", "name": "llava", "backend": "server", "model": "d/e", "command": "vllm", "gpus": 2}
    endpoint = {"kind": "vlm", "name": "far", "backend": "endpoint", "model": "f", "url": "http://127.0.0.1:1/v1"}
    return small_config(
        tmp_path,
        concepts={"extractors": [vlm, engine, endpoint]},
        retrieval={
            "encoder": {"kind": "hybrid", "audio": {"kind": "clap", "device": "cpu"}},
            "search": {"device": "cuda"},
        },
        features={"device": "cuda", "cpus": 4},
    )


def test_a_configuration_asks_by_its_parts(config):
    asks = {ask.key: ask for ask in asks_of(config)}
    assert list(asks) == [
        "concepts.extractors.0", "concepts.extractors.1", "retrieval.encoder", "features", "retrieval.search"
    ]  # fmt: skip
    eye, llava, clap, features, search = asks.values()
    assert (eye.name, eye.model, eye.gpus, eye.needs_gpu, eye.in_torch) == ("eye", "a/b@c0", 0.5, False, True)
    assert (llava.gpus, llava.needs_gpu, llava.in_torch) == (2, True, False)
    assert clap.gpus == 0
    assert (features.gpus, features.cpus, features.needs_gpu) == (1, 4, True)
    assert (search.needs_gpu, search.in_torch) == (True, False)


def test_a_tagger_of_tflite_takes_cpus_alone_and_no_torch(tmp_path):
    small_input(tmp_path)
    model, labels = tmp_path / "yamnet.tflite", tmp_path / "labels.csv"
    for path in (model, labels):
        path.touch()
    confirm = {"kind": "tagger", "model": str(model), "labels": str(labels), "cpus": 3}
    (ask,) = asks_of(small_config(tmp_path, retrieval={"confirm": confirm}))
    assert (ask.key, ask.cpus, ask.gpus, ask.needs_gpu, ask.in_torch) == ("retrieval.confirm", 3, 0, False, False)
    assert ask.name == str(model)


def test_a_search_on_gpus_that_faiss_does_not_find_is_a_fault(config):
    faiss = list(examine_gpus(config))[-1]
    assert (faiss.about, faiss.outcome) == ("faiss", Outcome.FAULT)
    assert "retrieval.search.device" in faiss.found
    assert list(examine_gpus(config, elsewhere=True))[-1].outcome is Outcome.OK  # FAISS itself is here


def test_what_nvidias_program_says_is_asked_for_and_found(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\ncase "$1" in --query*) printf "{H200}";; *) printf "{HEAD_580}";; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    seen = look_for_gpus(with_torch=False)
    assert (len(seen.found), seen.driver, seen.driver_cuda, seen.torch) == (2, "580.82.07", "13.0", "")
    program.write_text(f'#!/bin/sh\nprintf "{H200}"; echo NVIDIA-SMI has failed; exit 9\n')
    assert look_for_gpus(with_torch=False).found == ()


def test_a_program_of_nvidia_that_hangs_is_ended_whole_and_not_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr("sonify.doctor.gpus.SMI_SECONDS", 1.0)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nsleep 777 &\necho $$ $! >> {tmp_path}/asked\nsleep 777\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    started = time.monotonic()
    assert look_for_gpus(with_torch=False).found == ()
    assert look_for_gpus(with_torch=False).found == ()
    assert time.monotonic() - started < 5
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert all(is_gone(int(number)) for number in asked.split())


def test_where_nothing_asks_for_a_gpu_nobody_is_asked(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    small_input(tmp_path, photos=1)
    gpu = next(examine_gpus(small_config(tmp_path)))
    assert (gpu.outcome, gpu.found) == (Outcome.OK, "nothing in the configuration asks for one")
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    ("name", "value", "reserved"),
    [
        ("CUDA_VISIBLE_DEVICES", "0,1", "CUDA_VISIBLE_DEVICES=0,1"),
        ("CUDA_VISIBLE_DEVICES", "", ""),
        ("CUDA_VISIBLE_DEVICES", "-1", ""),
        ("SLURM_JOB_GPUS", "3", "SLURM_JOB_GPUS=3"),
        ("NVIDIA_VISIBLE_DEVICES", "GPU-8f1b", "NVIDIA_VISIBLE_DEVICES=GPU-8f1b"),
        ("NVIDIA_VISIBLE_DEVICES", "all", ""),  # of every CUDA image, on machines without a GPU as well
        ("NVIDIA_VISIBLE_DEVICES", "void", ""),
    ],
)
def test_who_reserved_a_gpu_is_named(monkeypatch, name, value, reserved):
    for each in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    assert look_for_gpus(with_torch=False).reserved_by == reserved
