"""What our rules are worth against the paper's: those of sam.yaml beside the defaults, each key alone and all together.

    SONIFY_TEST_DATA=... python -m benchmarks.paper

Half a minute. The text encoder stands for CLAP, whose weights are not at hand: what is compared are the rules. The
first lines judge what would be drawn for a labelled table of concepts; the others cut, pair, mix and count the
photographs under the defaults and under sam.yaml's `audio`, `retrieval`, `mix` and discard rules. One JSON line each.
"""

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eval.pairing import ask, figures_of
from sonify import layout
from sonify.config import Config, Retrieval
from sonify.io.places import stems
from sonify.io.tables import read_rows
from sonify.pool import iter_clips
from sonify.report.status import pairs_of_run
from sonify.rows import Render
from sonify.running import run
from tests.builders import small_config, sounds_in

SAM = Path(__file__).parents[1] / "configs" / "sonify" / "sam.yaml"
# What of each section of sam.yaml is an input or a model, or says nothing without one: all else is a rule.
INPUTS: Mapping[str, Sequence[str]] = {
    "audio": ("sources", "clip_seconds", "sample_rate", "validation"),
    "concepts": ("extractors", "discard_caption"),
    "retrieval": ("encoder", "hears"),
    "mix": (),
}
FULL_SCALE_DBFS = -0.0003  # the largest 16-bit sample


def paper_rules() -> dict[str, dict[str, Any]]:
    """The rules of sam.yaml, section by section."""
    shipped = yaml.safe_load(SAM.read_text())
    return {
        section: {key: value for key, value in shipped[section].items() if key not in inputs}
        for section, inputs in INPUTS.items()
    }


def judged(run_dir: Path, table: Path) -> Iterator[dict[str, Any]]:
    """What would be drawn for a labelled table: under the defaults, with one key of the paper's, with all of them."""
    ours = Retrieval().model_dump(mode="json")
    differing = {key: value for key, value in paper_rules()["retrieval"].items() if value != ours[key]}
    rules = {key: f"retrieval.{key}={json.dumps(value)}" for key, value in differing.items()}
    # without a limit every concept is answered, and what the other keys do shows
    free = [rules["limit"], rules["min_cosine"]]
    settings: dict[str, list[str]] = {"defaults": [], "no limit, no least cosine": free}
    settings |= {f"and {rule.removeprefix('retrieval.')}": [*free, rule] for rule in rules.values() if rule not in free}
    settings |= {"paper": [*rules.values()], "paper, with our limit": [r for r in rules.values() if r not in free]}
    for name, overrides in settings.items():
        asked = ask(run_dir, table, overrides)
        figures = figures_of(asked.judge(asked.config.retrieval), intervals=False)
        yield {"name": "paper_rules", "setting": name, **figures}


def counted(config: Config) -> dict[str, Any]:
    """What came of a whole run."""
    done = run(config)
    pairs = list(pairs_of_run(config.run_dir))
    sources = [source for pair in pairs for source in pair.sources]
    recording_of = {clip.clip: clip.recording for clip in iter_clips(config.run_dir)}
    units = stems(config.run_dir / layout.RENDERS)
    renders = [row for unit in units for row in read_rows(config.run_dir / layout.renders(unit), Render)]
    cap = config.mix.max_gain_db
    return {
        "clips": len(recording_of),
        "images_paired": len({pair.image for pair in pairs}),
        "sources": len(sources),
        "refused": dict(Counter(str(one.reason) for pair in pairs for one in pair.refused)),
        "rejected": dict(done["pair"].rejected),
        "recordings_heard": len({recording_of[source.clip] for source in sources}),
        "scenes_with_a_recording_twice": sum(
            len({recording_of[source.clip] for source in pair.sources}) < len(pair.sources) for pair in pairs
        ),
        "gains_capped": sum(cap is not None and source.gain_db >= cap for source in sources),
        "highest_gain_db": max(source.gain_db for source in sources),
        "mixes_lowered": sum(row.mix_gain_db < 0 for row in renders),
        "mixes_at_full_scale": sum(row.peak_dbfs >= FULL_SCALE_DBFS for row in renders),
    }


def pools_beside(ours: Config, theirs: Config) -> dict[str, Any]:
    """How the clips that both pools have differ."""
    mine, other = ({clip.clip: clip for clip in iter_clips(config.run_dir)} for config in (ours, theirs))
    both = sorted(mine.keys() & other.keys())
    moved = [abs(mine[clip].loudness_lufs - other[clip].loudness_lufs) for clip in both]
    return {
        "only_ours": len(mine.keys() - other.keys()),
        "only_paper": len(other.keys() - mine.keys()),
        "other_samples": sum(mine[clip].sha256 != other[clip].sha256 for clip in both),
        "loudness_moved_lu": [round(float(value), 4) for value in (np.median(moved), np.max(moved))],
    }


def main() -> None:
    folder = os.environ.get("SONIFY_TEST_DATA")
    if not folder:
        sys.exit("SONIFY_TEST_DATA is not set: name the folder of real photographs and recordings")
    data, rules = Path(folder), paper_rules()
    images, sounds = {"path": str(data / "photos"), "shard_size": 64}, sounds_in(data / "sounds")
    with tempfile.TemporaryDirectory() as root:
        ours = small_config(Path(root), "ours", images=images, audio=sounds)
        theirs = small_config(Path(root), "theirs", images=images, **rules | {"audio": sounds | rules["audio"]})
        found = {"defaults": counted(ours), "paper": counted(theirs)}
        pools = pools_beside(ours, theirs)
        for line in judged(Path(root, "ours"), data / "concepts_pool.csv"):
            print(json.dumps(line))
    print(json.dumps({"name": "paper_pool", **pools}))
    for setting, counts in found.items():
        print(json.dumps({"name": "paper_run", "setting": setting, **counts}))


if __name__ == "__main__":
    main()
