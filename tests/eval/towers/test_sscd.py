from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from eval.towers.config import Sscd
from eval.towers.pixels import shorter_side
from eval.towers.sscd import open_sscd
from eval.towers.tower import Way
from sonify.io.write import sha256_of
from tests.builders import refused
from tests.eval.towers.built import golden_picture

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")


class Descriptor(nn.Module):
    """As SSCD: convolutions, a pool over whatever size comes, vectors of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 5, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.normalize(self.conv(pictures).relu().mean((2, 3)))


class Pixels(nn.Module):
    """Gives no vectors."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures


def saved(path: Path, network: nn.Module) -> Path:
    torch.jit.save(torch.jit.script(network), path)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return saved(tmp_path / "sscd.torchscript.pt", Descriptor())


def looking(path: Path) -> Way:
    images = open_sscd(Sscd(kind="sscd", weights=path, sha256=sha256_of(path))).images
    assert images is not None
    return images


def test_pictures_of_any_size_are_described(program: Path) -> None:
    pictures = [golden_picture("small"), golden_picture("noise"), Image.new("RGB", (288, 288)), golden_picture("noise")]
    way = looking(program)
    network = torch.jit.load(program)
    with torch.inference_mode():
        wanted = np.concatenate([network(shorter_side(288).prepare(one)[None]).numpy() for one in pictures])
    np.testing.assert_allclose(way.embed(pictures), wanted, atol=1e-5)
    assert way.preprocessing == shorter_side(288).id


def test_another_program_than_the_published_one_runs_only_where_its_hash_is_named(program: Path) -> None:
    with refused(f"expected the published .*found {sha256_of(program)}; it is a program, .* if you trust it"):
        open_sscd(Sscd(kind="sscd", weights=program))
    with refused(f"expected weights of sha256 {'0' * 64}"):
        open_sscd(Sscd(kind="sscd", weights=program, sha256="0" * 64))


def test_a_program_that_was_exchanged_after_it_was_hashed_does_not_run(program: Path) -> None:
    way = looking(program)
    saved(program, Pixels())
    with refused("was replaced since it was opened"):
        way.embed([golden_picture("small")])


@pytest.mark.parametrize("data", [b"", b"no program", b"PK\x03\x04 not quite a zip"])
def test_what_is_no_program_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "sscd.pt"
    path.write_bytes(data)
    with refused("not a TorchScript file"):
        looking(path).embed([golden_picture("small")])


def test_a_program_that_describes_nothing_is_refused(tmp_path: Path) -> None:
    with refused("expected a vector for each picture"):
        looking(saved(tmp_path / "pixels.pt", Pixels())).embed([golden_picture("small")])
