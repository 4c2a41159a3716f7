"""`configs/sonify/sam.yaml` does what the paper says: each rule of ours that has a key is at the value that leaves it out.

What the file says is read from it, and what that does is tried: on pools, recordings and images that are made here.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from sonify import layout
from sonify.config import Config, make_config
from sonify.engine.job import StoredReject
from sonify.engine.record import require_record
from sonify.features.samples import SampleMaker
from sonify.media.clips import cut_recording, rules_of
from sonify.media.mixing import FULL_SCALE, gain_to_target_db, mix_clips
from sonify.report.status import pairs_of_run
from sonify.retrieval.candidates import Drawn, PoolClips, Ranking, SplitPool, choose_candidates, list_length
from sonify.retrieval.encoders import load_encoder
from sonify.rows import Clip, Concept, Reason, Rejected
from sonify.running import run
from sonify.stages.make_pool import PoolStage
from sonify.stages.pair import Heard, ImageScenes, PairStage
from tests.builders import concepts_row, noise, small_config, small_input, sound_row, stored, write_sound

SAM = Path(__file__).parents[1] / "configs" / "sonify" / "sam.yaml"
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def sam() -> Config:
    raw = yaml.safe_load(SAM.read_text())
    raw["features"] |= {"vae": "a/vae", "ast": "an/ast"}
    return make_config(raw, check_paths=False)
