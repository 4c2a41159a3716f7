import os
from contextlib import suppress
from pathlib import Path

import pytest

from sonify.config import Config
from sonify.running import run
from tests.builders import small_config, sounds_in

with suppress(ImportError):  # before anything takes the standard library's distutils, which torch's compiler refuses
    import setuptools  # noqa: F401


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real photographs and recordings, named by SONIFY_TEST_DATA."""
    folder = os.environ.get("SONIFY_TEST_DATA")
    if not folder:
        pytest.skip("SONIFY_TEST_DATA is not set: no real photographs and recordings to test with")
    return Path(folder)


@pytest.fixture(scope="session")
def real_run(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run over the real photographs and recordings, to be looked at and left as it is."""
    root = tmp_path_factory.mktemp("real")
    images = {"path": str(test_data / "photos"), "shard_size": 64}
    config = small_config(root, images=images, audio=sounds_in(test_data / "sounds"))
    run(config)
    return config
