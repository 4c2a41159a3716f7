"""MACS: its inference.py reads <data>/<dataset>/<set>/audio, and has a sound for each file of .../image beside it.

As published it names the class of the dataset without importing it, and the package that has the class imports a file
that is not there: it is run here with that class given to it, and with a seed, which it has no option for.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from PIL import Image
from protocol import Batch, Plan, answer_in_batches, read_job, seed_all, spell

DATASET = "Landscape"


def prepare(work: Path, names: Sequence[str], seeds: Sequence[int]) -> Batch:
    """Its pictures are only counted; the order of their names, and so the noise, would be another in each process."""
    (work / "data" / DATASET / "test" / "image").mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(work / "data" / DATASET / "test" / "image" / f"{name}.jpg")
    settings = spell(
        pt_path=checkout / arguments.weights,
        sd_path=arguments.model,
        dataset_name=DATASET,
        data_dir=work / "data",
        data_set="test",
        output_dir=work / "made",
        M=6,
        cfg=True,
        prompt="",
        negative_prompt="",
    )
    command = (sys.executable, __file__, "--run", str(checkout), str(seeds[0]), *settings)
    env = (("PYTHONHASHSEED", "0"),)
    return Batch(command=command, find=lambda name: work / "made" / DATASET / f"{name}.jpg", cwd=work, env=env)


def run(checkout: Path, seed: int, settings: Sequence[str]) -> None:
    sys.path[0] = str(checkout)
    spec = spec_from_file_location(DATASET.lower(), checkout / "dataloader" / f"{DATASET.lower()}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.argv = ["inference.py", *settings]
    seed_all(seed)
    runpy.run_path(str(checkout / "inference.py"), {DATASET: getattr(module, DATASET)}, "__main__")


if sys.argv[1] == "--run":
    run(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
else:
    job, arguments = read_job("model", "weights")
    checkout: Path = arguments.checkout
    plan = Plan(wavs=f"data/{DATASET}/test/audio", rate_hz=16_000, prepare=prepare)
    answer_in_batches(job, plan, [(seed,) for seed in job.seeds])
