"""The selection is a function of the published list and the suite's name."""

import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest

from eval.suites.entries import Entry, number_in, read_table, select
from sonify.errors import InputError


def entry(id: str, recording: str = "", label: str = "") -> Entry:
    return Entry(id=id, recording=recording or id, audio=Path(f"{id}.wav"), labels=(label, "more") if label else ())


def rank(name: str, id: str) -> str:
    return hashlib.sha256(f"{name}:{id}".encode()).hexdigest()


MANY = [entry(f"c{n}", recording=f"r{n % 70}", label=f"l{n % 7}") for n in range(100)]


def test_the_order_is_that_of_the_hashes_of_suite_and_id():
    wanted = select(MANY, "suite").wanted
    assert [each.id for each in wanted] == sorted((each.id for each in MANY), key=lambda id: rank("suite", id))
    assert [each.id for each in select(MANY, "other").wanted] != [each.id for each in wanted]


def test_the_order_of_the_list_does_not_matter():
    shuffled = random.Random(0).sample(MANY, len(MANY))
    assert select(shuffled, "s", per_class=4, one_per_recording=True) == select(
        MANY, "s", per_class=4, one_per_recording=True
    )


def test_classes_are_balanced_and_the_rest_stands_behind():
    selection = select(MANY, "s", per_class=5)
    assert Counter(each.labels[0] for each in selection.wanted) == {f"l{n}": 5 for n in range(7)}
    assert {each.id for each in selection.wanted + selection.rest} == {each.id for each in MANY}
    for label in ("l0", "l6"):
        last = max(rank("s", each.id) for each in selection.wanted if each.labels[0] == label)
        first = min(rank("s", each.id) for each in selection.rest if each.labels[0] == label)
        assert last < first
    assert [each.id for each in selection.rest] == sorted((e.id for e in selection.rest), key=lambda id: rank("s", id))


def test_a_recording_is_taken_once_and_is_in_no_rest_then():
    selection = select(MANY, "s", per_class=5, one_per_recording=True)
    recordings = [each.recording for each in selection.wanted + selection.rest]
    assert len(recordings) == len(set(recordings)) == 70
    first = min((each for each in MANY if each.recording == "r3"), key=lambda each: rank("s", each.id))
    assert first in selection.wanted + selection.rest


def test_without_labels_all_are_one_class():
    entries = [entry(f"c{n}") for n in range(6)]
    assert len(select(entries, "s", per_class=4).wanted) == 4


def test_an_id_that_a_list_names_twice_is_refused():
    with pytest.raises(InputError, match=r"^s: its list names the id 'c3' 2 times \(c3\.wav, c3\.wav\)"):
        select([*MANY, MANY[3]], "s")


def test_columns_are_found_by_their_names(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xef\xbb\xbfmore, b ,a\r\n1,2,3\r\n\r\n4,5,6")
    rows = read_table(path, "a table", columns=("a", "b"))
    assert [(row.line, row.cells) for row in rows] == [(2, ("3", "2")), (4, ("6", "5"))]
    with pytest.raises(InputError, match=r"line 1: expected the columns a,c, found 'no c in more,b,a'"):
        read_table(path, "a table", columns=("a", "c"))


@pytest.mark.parametrize("cell", ["x" * 201, "a\x1bb", '"a\nb"'])
def test_what_no_message_could_show_is_no_cell(tmp_path, cell):
    path = tmp_path / "table.csv"
    path.write_text(f"a,b\n1,{cell}\n")
    with pytest.raises(InputError, match=r"line \d: expected at most 200 characters of text in a cell") as error:
        read_table(path, "a table", columns=("a", "b"))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(path)) + 200


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e999", "", "1_0", "x", "١", "1e", "--1"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(InputError, match=r"^t, line 7: expected a time, found"):
        number_in(Path("t"), 7, text, "a time")


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("12.50", 12.5), ("1e1", 10.0)])
def test_times_are_read(text, value):
    assert number_in(Path("t"), 7, text, "a time") == value
