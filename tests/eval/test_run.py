"""The command that writes a report: its files, the same bytes twice, what it refuses."""

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.baseline import main as baseline
from eval.report import ITEMS, LATEX, REPORT, SCORES, left_out, read_report, scores_latex, warn_of_random
from eval.run import main as run
from eval.suites.suite import Suite, read_suite
from tests.builders import picture
from tests.eval.made_built import make_made
from tests.eval.suites_built import make_suite

ROLES = ("inception", "clip_b32", "clip_l14", "clip_l14_336", "dinov2", "wav2clip", "clap", "peav")
TOWERS = {role: {"kind": "random", "width": 16, "seed": 0 if role == "wav2clip" else 1} for role in ROLES}
LABELS = tuple(f"label {n}" for n in range(8))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of 12 items, and the pictures of both controls."""
    folder = tmp_path_factory.mktemp("run")
    make_suite(folder, 12, LABELS, others=4, towers=TOWERS)
    for control in ("references", "shuffled"):
        words = ["--recipe", control, "--suite", str(folder / "suite"), "--out", str(folder / control)]
        assert baseline(words) == 0
    return folder


def score_it(place: Path, out: Path, *more: str, manifest: str = "references") -> int:
    """Run the command."""
    return run(["--suite", str(place / "suite"), "--manifest", str(place / manifest), "--out", str(out), *more])


def files_of(folder: Path) -> Mapping[str, bytes]:
    """Every file, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_has_four_tables_and_a_page(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_it(place, tmp_path / "r") == 0
    printed = capsys.readouterr().out
    report = read_report(tmp_path / "r")
    assert (report.suite, report.model, report.found, report.wanted) == ("small", "references", 12, 12)
    assert {score.metric for score in report.scores} >= {"fid_torch_fidelity", "ais_rank", "iis_cosine", "aic"}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r" / SCORES).read_text())))
    assert [row["metric"] for row in rows] == [score.metric for score in report.scores]
    items = list(csv.DictReader(io.StringIO((tmp_path / "r" / ITEMS).read_text())))
    assert len(items) == 12
    assert float(items[0]["iis_cosine"]) == pytest.approx(1)
    latex = (tmp_path / "r" / LATEX).read_text()
    assert latex.count(r"\\") == len(report.scores) + 1
    assert r"ais\_rank" in latex
    assert "ais_rank" in printed
    assert "not measured: recall_all_at_2, recall_all_at_5: no item of the suite has several labels" in printed


def test_the_page_names_only_files_that_are_there(place: Path, tmp_path: Path) -> None:
    score_it(place, tmp_path / "r")
    page = (tmp_path / "r" / "index.html").read_text()
    named = {part.split('"')[0] for part in page.split('src="')[1:]}
    assert len(named) > 10
    assert all((tmp_path / "r" / name).is_file() for name in named)
    assert {path.name for path in (tmp_path / "r" / "media").iterdir()} == {Path(name).name for name in named}


def test_the_same_report_has_the_same_bytes(place: Path, tmp_path: Path) -> None:
    score_it(place, tmp_path / "r")
    first = files_of(tmp_path / "r")
    score_it(place, tmp_path / "r")
    assert files_of(tmp_path / "r") == first
    shutil.rmtree(tmp_path / "vectors")
    score_it(place, tmp_path / "r")
    assert files_of(tmp_path / "r") == first


def test_random_towers_are_named_wherever_their_numbers_are_read(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_it(place, tmp_path / "r", "--metrics", "iis_cosine")
    warning = "random projections judge nothing: clip_b32"
    page = (tmp_path / "r" / "index.html").read_text()
    assert "the control references, which hears nothing; pictures of 32 x 32" in page
    name = "clip_b32: random projection (no judge), width 16, seed 1"
    assert f'<p class="warn">{warning}</p>' in page
    assert page.count(name) == 1
    assert f"\n{warning}\n" in capsys.readouterr().out
    assert (tmp_path / "r" / LATEX).read_text().startswith(f"% {warning}\n")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "r" / SCORES).read_text()))
    assert row["towers"].startswith(f"{name}: random, sha256 ")


def test_towers_that_are_networks_are_not_warned_of(place: Path, tmp_path: Path) -> None:
    score_it(place, tmp_path / "r", "--metrics", "iis_cosine")
    report = replace(read_report(tmp_path / "r"), towers={"clip_b32": "CLIP: of a caller"})
    assert warn_of_random(report) == ""
    assert scores_latex(report).startswith(b"% needs")


def test_a_report_says_what_was_heard_and_by_what_it_was_measured(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = read_suite(place / "suite")
    make_made(suite, tmp_path / "made", {suite.items[0].id: [picture(0, (32, 32), "PNG")]}, guidance=4.5)
    score_it(place, tmp_path / "r", "--metrics", "iis_cosine", manifest=str(tmp_path / "made"))
    report = read_report(tmp_path / "r")
    assert (report.heard, tuple(report.image_px), report.settings["guidance"]) == ("whole", (32, 32), 4.5)
    assert report.libraries == {name: version(name) for name in ("numpy", "pillow", "scipy", "soxr")}
    how = "heard: whole; pictures of 32 x 32; guidance 4.5"
    printed, page = capsys.readouterr().out, (tmp_path / "r" / "index.html").read_text()
    assert f"\n{how}\n" in printed
    assert f"numpy {version('numpy')}, " in printed
    assert f'<p class="lead">{how}</p>' in page
    assert f"numpy {version('numpy')}, " in page


def test_equal_pictures_are_said(place: Path, tmp_path: Path) -> None:
    suite = read_suite(place / "suite")
    make_made(suite, tmp_path / "made", {item.id: [picture(0, (32, 32), "PNG")] for item in suite.items[:3]})
    score_it(place, tmp_path / "r", "--metrics", "iis_cosine", manifest=str(tmp_path / "made"))
    report = read_report(tmp_path / "r")
    said = "3 pictures are, pixel for pixel, that of another item or seed"
    assert report.identical == 3
    assert said in left_out(report)
    assert said not in left_out(replace(report, settings={"kind": "control", "control": "references"}))


@pytest.mark.parametrize(
    ("names", "domain", "said"),
    [
        ("[folder_train, audioset]", ("folder_train",), ": folder_train is of this suite's corpus (domain)"),
        ("[audioset]", (), "trained on audioset, as its recipe says"),
        ("[]", (), "; --trained-on tells"),
    ],
)
def test_what_a_recipe_says_of_training_is_said_and_tells_no_item(
    place: Path, tmp_path: Path, names: str, domain: tuple[str, ...], said: str
) -> None:
    images = [f"images={place / 'references' / 'images'}", "name=theirs", f"trained_on={names}"]
    words = ["--recipe", "images", "--suite", str(place / "suite"), "--seeds", "1", "--out", str(tmp_path / "made")]
    assert baseline([*words, *images]) == 0
    score_it(place, tmp_path / "r", "--metrics", "iis_cosine", manifest=str(tmp_path / "made"))
    report = read_report(tmp_path / "r")
    lines = left_out(report)
    assert report.domain == domain
    assert lines[-1].endswith(said)
    assert any(line.endswith("12 unknown; --trained-on tells") for line in lines)


def test_the_page_shows_the_pictures_that_a_value_is_the_mean_of(place: Path, tmp_path: Path) -> None:
    suite = read_suite(place / "suite")
    several = {
        item.id: [picture(10 * n + seed, (32, 32), "PNG") for seed in range(4 + n)]
        for n, item in enumerate(suite.items[:2])
    }
    make_made(suite, tmp_path / "made", several)
    score_it(place, tmp_path / "r", "--metrics", "iis_cosine", manifest=str(tmp_path / "made"))
    page = (tmp_path / "r" / "index.html").read_text()
    shown = [path.name for path in (tmp_path / "r" / "media").iterdir() if "reference" not in path.name]
    assert sorted(name for name in shown if name.endswith(".jpg")) == [
        f"s00{n}-{m}.jpg" for n in (0, 1) for m in range(4)
    ]
    assert page.count("the mean of 5 pictures, of which 4 are shown") == 1
    assert page.count("of which") == 1
    assert all(f'src="media/{name}"' in page for name in shown)


def test_a_part_of_the_metrics_is_scored(place: Path, tmp_path: Path) -> None:
    assert score_it(place, tmp_path / "r", "--metrics", "kid", "aic") == 0
    assert [score.metric for score in read_report(tmp_path / "r").scores] == ["kid", "aic"]


def test_a_tower_is_chosen_for_one_report(place: Path, tmp_path: Path) -> None:
    towers = tmp_path / "towers.yaml"
    towers.write_text("towers:\n  clip_b32: {kind: random, width: 8, seed: 5}\n")
    assert score_it(place, tmp_path / "r", "--towers", str(towers)) == 0
    report = read_report(tmp_path / "r")
    assert set(report.towers) == {"clip_b32"}
    assert {score.metric for score in report.scores if score.estimate} >= {"clip_fid", "iis_cosine"}


def test_only_the_weights_that_the_metrics_need_are_asked_for(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    towers = tmp_path / "towers.yaml"
    towers.write_text(
        "towers:\n  inception: {kind: inception, weights: away.safetensors}\n  clip_b32: {kind: random, width: 8}\n"
    )
    assert score_it(place, tmp_path / "r", "--towers", str(towers), "--metrics", "iis_cosine") == 0
    assert read_report(tmp_path / "r").scores[0].estimate is not None
    assert score_it(place, tmp_path / "q", "--towers", str(towers), "--metrics", "fid") == 2
    assert "towers.inception: " in capsys.readouterr().err


def test_what_the_model_was_trained_on_parts_the_scores(place: Path, tmp_path: Path) -> None:
    met = tmp_path / "recordings.csv"
    met.write_text("id,kind,seen\n" + "".join(f"recordin{n:03d},youtube,audio\n" for n in range(4)))
    assert score_it(place, tmp_path / "r", "--trained-on", str(met)) == 0
    report = read_report(tmp_path / "r")
    assert report.met["audio"] == 4
    assert {score.on for score in report.scores} == {"all", "out"}


def test_damaged_pictures_are_counted_and_left_out(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "references", tmp_path / "made")
    images = sorted((tmp_path / "made" / "images").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:200])
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images[1])
    images[2].unlink()
    words = ["--suite", str(place / "suite"), "--manifest", str(tmp_path / "made"), "--out", str(tmp_path / "r")]
    assert run(words) == 0
    report = read_report(tmp_path / "r")
    assert len(report.unusable) == 3
    assert len(report.items_without_picture) == 3
    assert all(score.images == 9 for score in report.scores if score.metric == "iis_cosine")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metrics", "fidd"], "no metric 'fidd'; did you mean fid?"),
        (["--metrics", "fid_torch_fidelity"], "is a score that the metric fid gives; ask for fid"),
        (["--metrics", "precision"], "is a score that the metric prdc gives"),
        (["--metrics", "ais_peav_rank"], "is a score that the metric ais_peav gives"),
        (["--towers", "nowhere.yaml"], "nowhere.yaml"),
        (["--seed", "x"], "--seed"),
        (["--seed", "-1"], "--seed: expected 0 or more, found -1"),
        (["towers.clip_b32.width=32"], "found towers.clip_b32 of 32 and towers.wav2clip of 16: they share no space"),
        (["towers.clip_b33=null"], "clip_b33"),
        (["towers.clip_b32"], "towers.clip_b32"),
        (["--suite", "nowhere"], "not a suite"),
        (["--manifest", "nowhere"], "manifest.jsonl"),
        (["--trained-on", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(
    place: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = score_it(place, tmp_path / "r", *words)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "r").exists()


def test_a_folder_of_something_else_is_left_alone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").write_text("mine")
    assert score_it(place, tmp_path / "r") == 2
    assert "holds something else than a report" in capsys.readouterr().err
    assert (tmp_path / "r" / "thesis.txt").read_text() == "mine"


def test_pictures_of_another_suite_are_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_suite(tmp_path, 4, LABELS, seconds=3.0, towers=TOWERS)
    assert isinstance(other, Suite)
    words = ["--suite", str(other.folder), "--manifest", str(place / "references"), "--out", str(tmp_path / "r")]
    assert run(words) == 2
    assert "suite" in capsys.readouterr().err


def test_a_damaged_report_is_one_line(place: Path, tmp_path: Path) -> None:
    score_it(place, tmp_path / "r")
    record = json.loads((tmp_path / "r" / REPORT).read_text())
    del record["scores"]
    (tmp_path / "r" / REPORT).write_text(json.dumps(record))
    with pytest.raises(Exception, match="scores: Field required"):
        read_report(tmp_path / "r")


def test_a_folder_with_a_report_and_something_else_is_left_alone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score_it(place, tmp_path / "r", "--metrics", "iis_cosine") == 0
    (tmp_path / "r" / "thesis.txt").write_text("mine")
    before = files_of(tmp_path / "r")
    assert score_it(place, tmp_path / "r", "--metrics", "iis_cosine") == 2
    assert "holds something else than a report (such as 'thesis.txt')" in capsys.readouterr().err
    assert files_of(tmp_path / "r") == before


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"version": 1, "scores": [], "model_sha256": ""}'])
def test_a_folder_of_a_foreign_report_is_left_alone(
    place: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / REPORT).write_text(text)
    assert score_it(place, tmp_path / "r", "--metrics", "iis_cosine") == 2
    assert "holds something else than a report (report.json is none)" in capsys.readouterr().err
    assert not (tmp_path / "vectors").exists()
    assert (tmp_path / "r" / REPORT).read_text() == text


def test_a_report_of_another_version_is_replaced(place: Path, tmp_path: Path) -> None:
    score_it(place, tmp_path / "r", "--metrics", "iis_cosine")
    path = tmp_path / "r" / REPORT
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99, "later": True}))
    assert score_it(place, tmp_path / "r", "--metrics", "iis_cosine") == 0
    assert read_report(tmp_path / "r").version == 1


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("suite", "is the suite"),
        ("suite/r", "lies in the suite"),
        ("references", "is the folder of the pictures"),
        ("references/r", "lies in the folder of the pictures"),
        (".", "holds the suite"),
        ("link/r", "lies in the suite"),
    ],
)
def test_a_report_lies_apart_from_what_it_is_of(
    place: Path, tmp_path: Path, out: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place, tmp_path / "p")
    (tmp_path / "p" / "link").symlink_to("suite")
    before = files_of(tmp_path / "p")
    assert score_it(tmp_path / "p", tmp_path / "p" / out, "--vectors", str(tmp_path / "v")) == 2
    assert said in capsys.readouterr().err
    assert files_of(tmp_path / "p") == before
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("folder", ["suite", "suite/v", "r/v"])
def test_vectors_are_kept_neither_in_the_suite_nor_in_the_report(
    place: Path, tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place, tmp_path / "p")
    before = files_of(tmp_path / "p")
    assert score_it(tmp_path / "p", tmp_path / "p" / "r", "--vectors", str(tmp_path / "p" / folder)) == 2
    assert f"--vectors {tmp_path / 'p' / folder}: lies in the" in capsys.readouterr().err
    assert files_of(tmp_path / "p") == before


def test_names_of_others_steer_no_terminal(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = read_suite(place / "suite")
    pictures = {suite.items[0].id: [picture(0, (32, 32), "PNG")]}
    make_made(suite, tmp_path / "made", pictures, model="[/red]x\x1b[2J[bold]")
    assert score_it(place, tmp_path / "r", "--metrics", "iis_cosine", manifest=str(tmp_path / "made")) == 0
    said = capsys.readouterr().out
    assert "[/red]x?[2J[bold] on small" in said
    assert "\x1b" not in said
    score_it(place, tmp_path / "q", "--metrics", "iis_cosine", manifest="shuffled")
    assert "shuffled[references] on small" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["towers.clip_b32.seed=7"], ["--metrics", "iis_cosine", "towers.clip_b32.seed=7"]])
def test_one_tower_is_changed_of_those_of_the_suite(place: Path, tmp_path: Path, words: list[str]) -> None:
    assert score_it(place, tmp_path / "r", *words) == 0
    report = read_report(tmp_path / "r")
    assert report.judged_by is not None
    assert report.judged_by["clip_b32"] == {"kind": "random", "width": 16, "seed": 7}
    assert report.judged_by["inception"] == TOWERS["inception"]
    assert (len(report.metrics) == 1) == ("--metrics" in words)


def test_towers_of_a_suite_that_are_none_are_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place, tmp_path / "p")
    path = tmp_path / "p" / "suite" / "suite.json"
    record = json.loads(path.read_text())
    record["settings"]["towers"] = "x"
    path.write_text(json.dumps(record))
    assert score_it(tmp_path / "p", tmp_path / "r") == 2
    error = capsys.readouterr().err
    assert "the suite's towers: towers" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("metric", ["iis_cosine", "ais_clap"])  # which need pictures alone, or sounds
@pytest.mark.parametrize("which", ["references", "sound"])
@pytest.mark.parametrize("damage", ["cut", "gone", "pipe"])
def test_damaged_files_of_a_suite_are_named_before_the_work(
    place: Path, tmp_path: Path, metric: str, which: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place, tmp_path / "p")
    item = read_suite(tmp_path / "p" / "suite").items[3]
    path = tmp_path / "p" / "suite" / (item.sound.file if which == "sound" else item.references[0].file)
    data = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[:-40])
    elif damage == "pipe":
        os.mkfifo(path)
    assert score_it(tmp_path / "p", tmp_path / "r", "--metrics", metric) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "vectors").exists()
