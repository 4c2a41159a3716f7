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
from sonify.doctor.examine import examine
from sonify.doctor.findings import Outcome, tell
from sonify.models.fetch import CLAP_FILES, HubAway, ask_hub


@pytest.mark.network
def test_published_models_say_what_was_recorded(tmp_path):
    recorded = os.environ.get("SONIFY_DOCTOR_RECORD")
    if not recorded:
        pytest.skip("SONIFY_DOCTOR_RECORD names no recording of `sonify doctor --config laptop --fetch --record FILE`")
    for name in ("photos", "sounds"):
        (tmp_path / name).mkdir()
    inputs = [f"images.path={tmp_path / 'photos'}", f"audio.sources.0.path={tmp_path / 'sounds'}"]
    inputs.append(f"run_dir={tmp_path / 'run'}")
    encoder = load_config("laptop", inputs).retrieval.encoder
    assert isinstance(encoder, ClapEncoder)
    try:
        ask_hub(encoder.model, encoder.revision, CLAP_FILES)
    except HubAway as error:
        pytest.skip(f"the hub is not reached: {error.reason}")

    findings = list(examine("laptop", inputs, fetch=True, compare=Path(recorded)))

    compared = [finding for finding in findings if finding.about == "compared"]
    assert compared
    assert not [one for one in compared if one.outcome is Outcome.FAULT], "\n".join(tell(findings))
