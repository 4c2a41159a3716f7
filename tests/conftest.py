import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real photographs and recordings, named by SONIFY_TEST_DATA."""
    folder = os.environ.get("SONIFY_TEST_DATA")
    if not folder:
        pytest.skip("SONIFY_TEST_DATA is not set: no real photographs and recordings to test with")
    return Path(folder)
