"""GlueGen: its sound2img_gluegen.py reads UrbanSound8K's fold 1 and names a picture by the class of its sound."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from protocol import Batch, Plan, answer_in_batches, read_job, spell

HEAD = "slice_file_name,fold,classID,class,salience"
PROTOCOL = "audioclip/protocols/audioclip-us8k-demo.json"
job, arguments = read_job()
checkout: Path = arguments.checkout / "stable-diffusion"
weights: Path = arguments.checkout / "checkpoints_all"


def prepare(work: Path, names: Sequence[str], seeds: Sequence[int]) -> Batch:
    """Each sound is a class of its own. A second fold, which is loaded and not painted, must not be empty. Its
    `assets` are left out: a picture that its filter does not like would be replaced by one of those."""
    home = work / "stable-diffusion"
    (home / PROTOCOL).parent.mkdir(parents=True)
    protocol = json.loads((checkout / PROTOCOL).read_text())
    protocol["Dataset"]["args"]["root"] = str(work / "us8k")
    (home / PROTOCOL).write_text(json.dumps(protocol))
    (home / "null_cond_tensor.pt").symlink_to(checkout / "null_cond_tensor.pt")
    (work / "checkpoints_all").symlink_to(weights)
    sounds = work / "us8k" / "audio"
    (sounds / "fold2").mkdir()
    shutil.copyfile(sounds / "fold1" / f"{names[0]}.wav", sounds / "fold2" / "unused.wav")
    (work / "us8k" / "metadata").mkdir()
    lines = [HEAD, *(f"{name}.wav,1,0,{name},1" for name in names), "unused.wav,2,0,unused,1"]
    (work / "us8k" / "metadata" / "UrbanSound8K.csv").write_text("\n".join(lines) + "\n")
    settings = spell(
        config=checkout / "configs" / "stable-diffusion" / "v1-inference-trans-audioclip.yaml",
        ckpt=weights / "checkpoint_sd_v1" / "v1-5-pruned-emaonly.ckpt",
        audioclip_ckpt=weights / "audioclip_checkpoint" / "AudioCLIP-Full-Training.pt",
        outdir=work / "made",
        scale=7.5,
        ddim_steps=50,
        n_iter=1,
        skip_grid=True,
        seed=seeds[0],
    )
    command = (sys.executable, str(checkout / "scripts/sound2img_gluegen.py"), *settings)
    samples = work / "made" / "samples"
    return Batch(command=command, find=lambda name: next(samples.glob(f"*-{name}.png"), samples / "none"), cwd=home)


plan = Plan(wavs="us8k/audio/fold1", rate_hz=44_100, prepare=prepare)
answer_in_batches(job, plan, [(seed,) for seed in job.seeds])
