"""The published weights, asked again: a later examination beside a recorded one.

    sonify doctor --config laptop --fetch --record laptop.json             once, where the hub is reached
    SONIFY_DOCTOR_RECORD=laptop.json pytest -m network tests/doctor        ever after

The models of `laptop` are 1.8 GB, which are fetched here if they are not in the hub's cache. The drawing that comes
along is shown: of a recording in which a picture of one's own was, answers are not compared.
"""

import os
from pathlib import Path

import pytest

from sonify.config import ClapEncoder, load_config
from sonify.doctor.examine import installed_versions
from sonify.doctor.findings import count_faults, tell
from sonify.doctor.models import examine_models
from sonify.doctor.record import Kind, Recording, compare, read_recording
from sonify.models.fetch import CLAP_FILES, HubAway, ask_hub


@pytest.mark.network
def test_published_models_say_what_was_recorded(tmp_path):
    recorded = os.environ.get("SONIFY_DOCTOR_RECORD")
    if not recorded:
        pytest.skip("SONIFY_DOCTOR_RECORD names no recording of `sonify doctor --config laptop --fetch --record FILE`")
    before = read_recording(Path(recorded))
    for name in ("photos", "sounds"):
        (tmp_path / name).mkdir()
    inputs = [f"images.path={tmp_path / 'photos'}", f"audio.sources.0.path={tmp_path / 'sounds'}"]
    config = load_config("laptop", [*inputs, f"run_dir={tmp_path / 'run'}"])
    encoder = config.retrieval.encoder
    assert isinstance(encoder, ClapEncoder)
    try:
        ask_hub(encoder.model, encoder.revision, CLAP_FILES)
    except HubAway as error:
        pytest.skip(f"the hub is not reached: {error.reason}")

    findings = tuple(examine_models(config, fetch=True))

    assert count_faults(findings) == 0, "\n".join(tell(findings))
    differences = compare(before, Recording(findings=findings, versions=installed_versions()))
    told = [str(difference) for difference in differences if difference.kind not in (Kind.VERSION, Kind.INPUT)]
    assert told == [], [str(difference) for difference in differences]
