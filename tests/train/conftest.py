"""What trainings are tried under."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """The same number of threads here and in every process that is started: sums depend on it in their last bits."""
    before, environment = torch.get_num_threads(), pytest.MonkeyPatch()
    torch.set_num_threads(1)
    environment.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)
    environment.undo()
