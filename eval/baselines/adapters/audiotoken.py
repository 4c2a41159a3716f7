"""AudioToken: its inference.py reads VGGSound's layout: a WAV and a film of each name, and a table of video ids."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from protocol import Batch, Plan, answer_in_batches, read_job, spell

RUN = "sonify"
job, arguments = read_job("model", "embedder")
checkout: Path = arguments.checkout


def prepare(work: Path, names: Sequence[str], seeds: Sequence[int]) -> Batch:
    """What it reads from its working folder: the table, an empty list of best frames, its models; films are not looked
    at, and have two frames, as it may ask for one behind the end of a film of ten and more."""
    write_film(work / "film.mp4")
    (work / "sounds" / "video").mkdir()
    for name in names:
        (work / "sounds" / "video" / f"{name}.mp4").symlink_to(work / "film.mp4")
    (work / "data" / "VGGSound").mkdir(parents=True)
    lines = ["ytid,class,set", *(f"{name},sound,test" for name in names)]
    (work / "data" / "VGGSound" / "vggsound.csv").write_text("\n".join(lines) + "\n")
    (work / "constants").mkdir()
    (work / "constants" / "best_frames.json").write_text("{}")
    (work / "models").symlink_to(checkout / "models")
    settings = spell(
        pretrained_model_name_or_path=arguments.model,
        learned_embeds=checkout / arguments.embedder,
        data_dir=f"{work / 'sounds'}/",
        data_set="test",
        generation_steps=len(names),
        run_name=RUN,
        seed=seeds[0],
    )
    command = (sys.executable, str(checkout / "inference.py"), *settings)
    return Batch(command=command, find=lambda name: work / "output" / "imgs" / RUN / f"{name}.png", cwd=work)


def write_film(path: Path) -> None:
    cv2: Any = import_module("cv2")  # which it reads films with
    numpy: Any = import_module("numpy")
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 1, (64, 64))
    for _ in range(2):
        film.write(numpy.zeros((64, 64, 3), "uint8"))
    film.release()


plan = Plan(wavs="sounds/audio", rate_hz=16_000, prepare=prepare)
answer_in_batches(job, plan, [(seed,) for seed in job.seeds])
