import pytest

from tests.dataset.folders import copy_of, published_run


@pytest.fixture(scope="session")
def first(tmp_path_factory):
    """A run and what was published of it; nobody changes it."""
    return published_run(tmp_path_factory.mktemp("first"))


@pytest.fixture
def copy(first, tmp_path):
    """Another copy of the images, the recordings and the published folder."""
    return copy_of(first, tmp_path)
