"""The page of a training run: its curves where its metrics are, its grids, and nothing from elsewhere."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.metrics import METRICS
from train.page import HEIGHT, PAGE, POINTS, SAMPLES, WIDTH, write_page


def write_metrics(run_dir: Path, steps: int, **others: float) -> None:
    run_dir.mkdir(exist_ok=True)
    same = {"gradient_norm": 2.0, "images_per_sec": 10, "data_wait": 0.1} | others
    lines = [{"step": n, "loss": 1 / n, "loss_q1": 1 / n} | same for n in range(1, steps + 1)]
    (run_dir / METRICS).write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def curves(page: str) -> list[np.ndarray]:
    """The points of each curve."""
    return [np.array([p.split(",") for p in found.split()], float) for found in re.findall(r'points="([^"]*)"', page)]


def test_a_curve_falls_where_the_loss_does_and_reaches_as_far_as_the_run(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run", 1000)
    page = write_page(tmp_path / "run", max_steps=2000).read_text()
    loss = curves(page)[0]
    assert len(loss) == POINTS
    assert (np.diff(loss[:, 1]) >= 0).all()  # down the page
    assert 0.45 * WIDTH < loss[-1, 0] < 0.6 * WIDTH  # half of the steps are done
    assert all(((curve >= 0) & (curve <= (WIDTH, HEIGHT))).all() for curve in curves(page))
    assert "step 1,000 of 2,000" in page


def test_what_is_not_finite_is_left_out_and_other_parts_have_their_own(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run", 3, vb=float("nan"), mse=0.5, gradient_norm=0.0)
    page = write_page(tmp_path / "run", max_steps=3).read_text()
    assert "Part of the loss: mse" in page
    assert "Part of the loss: vb" not in page
    assert "Gradient norm" not in page
    assert "nan" not in page


def test_grids_are_shown_newest_first_and_nothing_is_fetched(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run <b>", 1)
    folder = tmp_path / "run <b>" / SAMPLES
    folder.mkdir()
    for name in ("step-00000005", "step-00000010", "step-best", "step-00000005 (1)"):
        Image.new("RGB", (4, 4)).save(folder / f"{name}.png")
    page = write_page(tmp_path / "run <b>", max_steps=1).read_text()
    assert re.findall(r'<img src="([^"]*)"', page) == ["samples/step-00000010.png", "samples/step-00000005.png"]
    assert "<h1>run &lt;b&gt;</h1>" in page
    assert "http" not in re.sub("http-equiv", "", page)


@pytest.mark.parametrize("lines", ["", "\n", "{}\n"])
def test_a_run_without_a_line_has_a_page(tmp_path: Path, lines: str) -> None:
    (tmp_path / METRICS).write_text(lines)
    write_page(tmp_path, max_steps=7)
    page = (tmp_path / PAGE).read_text()
    assert "step 0 of 7" in page
    assert "None yet" in page


def test_a_page_that_cannot_be_written_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_metrics(tmp_path, 1, huge=10**400)
    (tmp_path / PAGE).mkdir()
    write_page(tmp_path, max_steps=7)
    assert "cannot be written" in caplog.text
