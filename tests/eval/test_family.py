"""The family's one command: its steps in order, which are skipped, and (slow) the whole way to the table."""

import csv
import json
from pathlib import Path

import pytest

from eval import family
from eval.family import NOTE, OURS, TOKEN, WILD, Step, do_steps, steps_of
from sonify.errors import InputError, WorkError
from tests.eval.suites_built import make_suite


def step(out: Path, name: str, did: list[str], words: tuple[str, ...] = ()) -> Step:
    def work() -> None:
        did.append(name)
        (out / name).write_text(name)

    return Step(name=name, says=f"do {name}", words=words, work=work, makes=out / name, output=out / name)


def test_done_steps_are_skipped_and_each_is_said_before_it_is_done(tmp_path, capsys):
    did: list[str] = []
    steps = [step(tmp_path, name, did) for name in ("one", "two")]
    do_steps(tmp_path, steps)
    do_steps(tmp_path, steps)

    assert did == ["one", "two"]
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "do" in line] == [
        "[1/2] do one", "[2/2] do two", "[1/2] do one: done", "[2/2] do two: done",
    ]  # fmt: skip


def test_what_was_removed_is_made_again_alone(tmp_path):
    did: list[str] = []
    steps = [step(tmp_path, name, did) for name in ("one", "two")]
    do_steps(tmp_path, steps)
    (tmp_path / "one").unlink()
    do_steps(tmp_path, steps)
    assert did == ["one", "two", "one"]


def test_what_other_words_made_is_refused_with_all_that_follows(tmp_path):
    did: list[str] = []
    do_steps(tmp_path, [step(tmp_path, name, did) for name in ("one", "two", "three")])
    other = [step(tmp_path, name, did, ("more",) if name == "two" else ()) for name in ("one", "two", "three")]
    with pytest.raises(InputError, match="the step two was done by another command; choose another folder, or remove"):
        do_steps(tmp_path, other)
    (tmp_path / "done" / "two").unlink()
    with pytest.raises(InputError, match="the step three was done by another command"):
        do_steps(tmp_path, other)
    assert did == ["one", "two", "three", "two"]


def test_what_other_words_made_by_half_goes_before_a_step_is_done_anew(tmp_path):
    """A command may refuse a folder that it made by other words itself."""

    def half(words: tuple[str, ...]) -> Step:
        def work() -> None:
            (tmp_path / "one").mkdir(exist_ok=True)
            (tmp_path / "one" / words[0]).write_text("half")
            raise WorkError("no")

        return Step(name="one", says="", words=words, work=work, makes=tmp_path / "one", output=tmp_path / "one")

    for words in (("then",), ("then",), ("now",)):
        with pytest.raises(WorkError):
            do_steps(tmp_path, [half(words)])
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["now"]


def test_what_no_step_began_is_not_touched(tmp_path):
    (tmp_path / "one").write_text("mine")
    with pytest.raises(InputError, match=r"one: no note says that this command made it; remove it, or choose"):
        do_steps(tmp_path, [step(tmp_path, "one", [])])
    assert (tmp_path / "one").read_text() == "mine"


def test_each_step_makes_a_place_of_its_own_of_those_that_the_folder_may_hold(tmp_path):
    outputs = [each.output for each in steps_of(tmp_path, 1)]
    assert len(set(outputs)) == len(outputs)
    assert not [(a, b) for a in outputs for b in outputs if a in b.parents]
    assert {path.relative_to(tmp_path).parts[0] for path in outputs} | {family.DONE} == family.MADE
    assert all(each.makes.is_relative_to(each.output) for each in steps_of(tmp_path, 1))


def test_a_step_that_failed_is_not_done(tmp_path):
    did: list[str] = []

    def fail() -> None:
        did.append("failed")
        (tmp_path / "two").write_text("half")
        raise WorkError("no")

    one, three = (step(tmp_path, name, did) for name in ("one", "three"))
    two = Step(name="two", says="fail", words=(), work=fail, makes=tmp_path / "two", output=tmp_path / "two")
    for _ in range(2):
        with pytest.raises(WorkError):
            do_steps(tmp_path, [one, two, three])
    assert did == ["one", "failed", "failed"]


def test_every_command_of_the_steps_is_there_and_none_reaches_outside(tmp_path):
    steps = list(steps_of(tmp_path, 1))
    assert len({each.name for each in steps}) == len(steps)
    assert {name for each in steps for name in (OURS, TOKEN, WILD, "references", "shuffled") if name in each.name} == {
        OURS, TOKEN, WILD, "references", "shuffled",
    }  # fmt: skip
    assert all(each.makes.is_relative_to(tmp_path) for each in steps)
    assert not [word for each in steps for word in each.words if "huggingface" in word or "://" in word]


def test_captions_are_what_the_suite_says_of_each_sound(tmp_path):
    suite = make_suite(tmp_path, 3)
    family._write_captions(suite.folder, tmp_path / "captions.csv")
    rows = list(csv.DictReader((tmp_path / "captions.csv").open()))
    assert [(row["id"], row["caption"]) for row in rows] == [(item.id, item.captions[0]) for item in suite.items]


@pytest.mark.parametrize("seeds", ["0", "10001", "1000000000"])
def test_a_number_of_seeds_that_cannot_be_is_refused(tmp_path, capsys, seeds):
    assert family.main(["--out", str(tmp_path / "f"), "--seeds", seeds]) == 2
    assert capsys.readouterr().err == f"eval.family: --seeds: expected 1 to 10,000, found {seeds}\n"
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("file", "file: expected a folder, found something else; choose another place"),
        ("file/below", "below: cannot be written (Not a directory); choose another place"),
        ("model", "model: holds something else than what this command makes (such as 'model_index.json')"),
    ],
)
def test_a_folder_that_cannot_be_is_refused_before_any_step(tmp_path, capsys, monkeypatch, out, said):
    monkeypatch.setattr(family, "do_steps", lambda *_: pytest.fail("a step was done"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    assert family.main(["--out", str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_how_long_all_takes_is_said_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(family, "do_steps", lambda *_: None)
    assert family.main(["--out", str(tmp_path / "f")]) == 0
    assert capsys.readouterr().out.startswith("19 steps, offline; together they take some minutes on two cores\n")


@pytest.mark.slow
def test_one_command_makes_the_table_of_the_family(tmp_path, capsys):
    """Networks of random weights: it runs, and what it says means nothing."""
    assert family.main(["--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert NOTE in said
    record = json.loads((tmp_path / "table" / "table.json").read_text())
    assert [line["name"] for line in record["lines"]] == [OURS, TOKEN, WILD, "references", "shuffled"]
    assert (record["against"], record["note"]) == (OURS, NOTE)
    columns = record["suites"][0]["columns"]
    (cosine,) = (column for column in columns if column["metric"] == "ais_cosine")
    assert all(cell["value"] is not None and cell["images"] == 24 for cell in cosine["cells"])
    assert record["suites"][0]["met"][OURS].startswith("audio")
    assert record["suites"][0]["met"][WILD] == "unknown"
    for name in ("table.html", "table.md", "table.tex"):
        assert "random weights" in (tmp_path / "table" / name).read_text()
    assert family.main(["--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(": done\n") == 19
