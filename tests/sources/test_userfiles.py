"""Tables as people's programs write them."""

import json
import logging
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonify.errors import InputError
from sonify.sources import userfiles
from sonify.sources.userfiles import file_beside, iter_user_table, read_user_table
from tests.builders import refused
from tests.fuzz.seeds import mutate
from tests.processes import run_python

EXPECTED = {"file": ["ä.jpg", "b.jpg"], "caption": ["a dög, barking", "a cat"]}
TEXT = 'file,caption\nä.jpg,"a dög, barking"\nb.jpg,a cat\n'


def read(path, required=("file", "caption")):
    return {name: [cell.decode() for cell in cells] for name, cells in read_user_table(path, required).items()}


def put(tmp_path, data, name="captions.csv"):
    (tmp_path / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return tmp_path / name


def with_delimiter(delimiter):
    return TEXT.replace('"a dög, barking"', "a dög\0 barking").replace(",", delimiter).replace("\0", ",")


WRITTEN = {
    "plainly": TEXT,
    "semicolons": with_delimiter(";"),
    "tabs": with_delimiter("\t"),
    "bars": with_delimiter("|"),
    "sep": "sep=;\r\n" + with_delimiter(";").replace("\n", "\r\n"),
    "mark": "\ufeff" + TEXT,
    "mark and sep": '\ufeff"sep=;"\n' + with_delimiter(";"),
    "UTF-16": with_delimiter("\t").encode("utf-16"),
    "UTF-16 of the other order": ("\ufeff" + TEXT).encode("utf-16-be"),
    "UTF-16 without a mark": TEXT.encode("utf-16-le"),
    "UTF-16 of the other order without a mark": TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "Windows": TEXT.encode("cp1252"),
    "old line ends": TEXT.replace("\n", "\r"),
    "line ends of Windows": TEXT.replace("\n", "\r\n"),
    "no last line end": TEXT.rstrip("\n"),
    "names in capitals": TEXT.replace("file,caption", " File , CAPTION"),
    "names in quotes": TEXT.replace("file,caption", '"file","caption"'),
    "empty lines above": "\r\n\n" + TEXT,
    "empty lines below": TEXT + "\n\n",
    "blanks below": TEXT + "  \n\t\n \n",
    "commas below": TEXT + ",\r\n,\r\n\r\n",
    "semicolons below, of another width": with_delimiter(";") + ";;;\n;;;\n",
    "blanks below in UTF-16": (TEXT + " \n,\n").encode("utf-16"),
}


@pytest.mark.parametrize("data", WRITTEN.values(), ids=WRITTEN.keys())
def test_a_table_is_read_however_it_is_written(tmp_path, data):
    assert read(put(tmp_path, data)) == EXPECTED


def test_names_of_columns_may_hold_commas_and_line_ends_and_come_twice(tmp_path):
    table = put(tmp_path, '"a, b","c\nd",caption,file,file,,\nx,y,a dog,1.jpg,2.jpg,,\n')
    assert read(table) == {"file": ["1.jpg"], "caption": ["a dog"]}


def test_the_very_name_of_a_column_counts_before_one_in_other_letters(tmp_path):
    assert read(put(tmp_path, "File,file,caption\nA,a,x\n")) == {"file": ["a"], "caption": ["x"]}


def test_windows_text_is_said_once_and_damage_in_utf8_stays_damage(tmp_path, caplog):
    for _ in range(2):
        read(put(tmp_path, TEXT.encode("cp1252")))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/captions.csv: it is no UTF-8, and is read as Windows-1252; better save it as UTF-8"
    ]
    damaged = TEXT.encode().replace(b"cat", b"c\xe4t")
    assert read_user_table(put(tmp_path, damaged, "b.csv"), ("file", "caption"))["caption"][1] == b"a c\xe4t"


@pytest.mark.parametrize("data", ["file,caption", "file,caption\n", "file,caption\n\n", "file,caption\n ,\n"])
def test_a_table_without_rows_is_empty(tmp_path, data):
    assert read(put(tmp_path, data)) == {"file": [], "caption": []}


WRONG = {
    "nothing": ("", r"expected the columns file, caption in its first line, found \[''\]"),
    "no names": ("a.jpg,a dog\nb.jpg,a cat\n", "that is a row, it seems: put a line file,caption above it"),
    "other names": ("image,title\nx,y\n", r"expected the columns file, caption .* found \['image', 'title'\]"),
    "a comma": (
        TEXT + "c.jpg,a dog, a cat\n",
        r"line 4: expected 2 columns, found 3: 'c\.jpg,a dog, a cat'; .* in quotes",
    ),
    "a comma after lines": ('file,caption\na,"x\ny"\nb,c,d\n', r"line 4: expected 2 columns, found 3"),
    "a comma after old lines": ("file,caption\ra,b\rb,c,d\r", r"line 3: expected 2 columns, found 3"),
    "a lacking cell": (TEXT + "c.jpg\nd.jpg,x\n", r"line 4: expected 2 columns, found 1: 'c\.jpg'"),
    "a blank line": (TEXT + "  \nd.jpg,x\n", r"line 4: expected 2 columns, found 1"),
    "an open quote": ('file,caption\na.jpg,x\nb.jpg,"y\nc.jpg,z\n', "line 3: a quote that opens there is never closed"),
    "an open quote without an end": ('file,caption\na,"x\nb,y', "line 2: a quote that opens there is never closed"),
    "an open quote in front": ('file,caption\n"a.jpg,x\nb.jpg,y\n', "line 2: a quote that opens there is never closed"),
    "an open quote that another closes": (
        'file,caption\n"a.jpg,x\nb.jpg,y"\nc.jpg,z\n',
        "lines 2 to 3: expected 2 columns, found 1: a quote that opens in line 2 is not closed there",
    ),
    "an open quote in a large table": (
        'file,caption\na.jpg,"x\n' + "b.jpg,a cat\n" * 20_000,
        "line 2: a quote that opens there is never closed; a quote in a text is written twice",
    ),
    "two open quotes": (
        'file,caption\na.jpg,"a dog\nb.jpg,a cat\nc.jpg,"a car\nd.jpg,a train\n',
        "line 2: a quote that opens there is closed in line 4 only, where 'a car' follows",
    ),
    "two open quotes in front": (
        'file,caption\nx,y\n"a.jpg,a dog\n"b.jpg,a cat\n',
        "line 3: a quote that opens there is closed in line 4 only, where 'b.jpg,a cat' follows",
    ),
    "two open quotes, semicolons, Windows and UTF-16": (
        'file;caption\r\na;"x\r\nb;"y\r\nc;z\r\n'.encode("utf-16"),
        "line 2: a quote that opens there is closed in line 3 only, where 'y' follows",
    ),
}


@pytest.mark.parametrize(("data", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_a_table_is_said_with_its_line(tmp_path, data, said):
    with refused(said):
        read(put(tmp_path, data))


def test_a_text_of_several_lines_at_the_end_is_no_open_quote(tmp_path):
    assert read(put(tmp_path, 'file,caption\na,"x\ny"\n')) == {"file": ["a"], "caption": ["x\ny"]}


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"x\ny"', "x\ny"),
        ('"x ""y""\n""z"""', 'x "y"\n"z"'),
        ('"x, y\n\n,""\n"', 'x, y\n\n,"\n'),
        ('"x\n' + "y" * 200_000 + '"', "x\n" + "y" * 200_000),
    ],
)
def test_texts_of_several_lines_are_read_wherever_they_stand(tmp_path, cell, text):
    for row in (f"{cell},a\nb,c\n", f"a,{cell}\nb,c\n", f"b,c\na,{cell}"):
        columns = read(put(tmp_path, f"file,caption\n{row}"))
        assert text in columns["file"] + columns["caption"]
        assert "c" in columns["caption"]


def test_quotes_within_a_line_are_taken_as_they_stand(tmp_path):
    table = put(tmp_path, 'file,caption\na,"a dog" barks\nb,a 5" pipe\nc,"x\ny"\nd,6"\n')
    assert read(table)["caption"] == ["a dog barks", 'a 5" pipe', "x\ny", '6"']


def test_a_table_of_many_blocks_is_read_whole_in_any_encoding(tmp_path, monkeypatch):
    monkeypatch.setattr(userfiles, "HEAD_BYTES", 1 << 10)
    rows = [f"ä{n}.jpg,a dög {n}" for n in range(20_000)]
    for encoding in ("utf-8", "utf-16", "cp1252"):
        for end in ("", "\n" * 2000, " \n,\n" * 500):
            table = put(tmp_path, ("file,caption\n" + "\n".join(rows) + "\n" + end).encode(encoding))
            assert read(table)["file"] == [row.partition(",")[0] for row in rows]


def test_a_table_that_ends_within_a_letter_says_so(tmp_path):
    assert read(put(tmp_path, "file,caption\na,x\nb,yz".encode("utf-16")[:-1]))["caption"] == ["x", "y\ufffd"]


STOP = """
import sys
from pathlib import Path
from sonify.sources import userfiles
userfiles.MAX_TABLE_BYTES = 100
userfiles.read_user_table(Path(sys.argv[1]), ("file", "caption"))
"""


def test_a_reader_that_stops_early_ends(tmp_path):
    table = put(tmp_path, "file,caption\n" + "a.jpg,a dog that barks and barks\n" * 2_000_000 + " \n")
    with pytest.raises(AssertionError, match="GiB of text"):
        run_python(STOP, table)


def test_json_lines_are_a_table_whose_lists_are_texts(tmp_path):
    rows = [{"file_name": "a.jpg", "objects": {}}, {"file_name": "b.jpg", "Text": ["a dog", "a cat!", 3, " "]}]
    table = put(tmp_path, "\n\n".join(map(json.dumps, rows)), "metadata.jsonl")
    assert read(table, ("file_name", ("caption", "text"))) == {
        "file_name": ["a.jpg", "b.jpg"],
        "caption": ["", "a dog.\na cat!"],
    }


@pytest.mark.parametrize("first", [{"file_name": "b", "text": "x"}, {"file_name": "b"}, {"other": 1}])
def test_each_object_of_json_lines_has_its_own_fields(tmp_path, first):
    rows = [*[first] * 100, {"FILE": "a", "Caption": "late"}, {"file": "c", "caption": "", "text": "d"}, {"file": "e"}]
    table = put(tmp_path, "\n".join(map(json.dumps, rows)), "metadata.jsonl")
    columns = read(table, (("file_name", "file"), ("caption", "text")))
    assert columns == {
        "file_name": [first.get("file_name", "")] * 100 + ["a", "c", "e"],
        "caption": [first.get("text", "")] * 100 + ["late", "d", ""],
    }


def test_json_lines_without_a_field_say_which(tmp_path):
    table = put(tmp_path, '{"file": "a", "label": 3}\n' * 100, "metadata.jsonl")
    with refused(r"expected the columns file, caption or text in its objects, found \['file', 'label'\]"):
        read(table, ("file", ("caption", "text")))


@pytest.mark.parametrize("line", ["{", "[1]", "x", "[" * 100_000, b"\xff"])
def test_a_line_that_is_no_json_object_is_named(tmp_path, line):
    data = b'{"file": "a", "caption": "b"}\n' + (line if isinstance(line, bytes) else line.encode())
    with pytest.raises(InputError, match=r"metadata\.jsonl: line 2: expected a JSON object"):
        read(put(tmp_path, data, "metadata.jsonl"))


def test_a_column_of_lists_is_texts(tmp_path):
    pq.write_table(pa.table({"file": ["a"], "caption": [["a dog.", "a cat"]]}), tmp_path / "c.parquet")
    assert read(tmp_path / "c.parquet") == {"file": ["a"], "caption": ["a dog.\na cat."]}


def test_a_file_beside_a_table_is_found_in_any_spelling_and_none_elsewhere(tmp_path):
    (tmp_path / "in" / "d").mkdir(parents=True)
    for name in ("in/d/a.JPG", "in/cafe\u0301.jpg", "out.jpg"):
        (tmp_path / name).write_bytes(b"x")
    table = tmp_path / "in" / "t.parquet"
    found = {name: file_beside(table, name) for name in ("./d/a.JPG", "d\\a.jpg", " d/a.jpg", "caf\u00e9.jpg")}
    assert [file and file.relative_to(tmp_path).as_posix() for file in found.values()] == [
        *["in/d/a.JPG"] * 3,
        "in/cafe\u0301.jpg",
    ]
    assert [file_beside(table, name) for name in ("../out.jpg", "./../out.jpg", "/out.jpg", "http://x/a.jpg")] == [
        None
    ] * 4
    assert file_beside(table, "..\\out.jpg") == table.parent / "..\\out.jpg"  # a name, and no file has it


def test_damaged_tables_are_read_or_refused(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    rng = random.Random(0)
    tables = [*WRITTEN.values(), *(data for data, _ in WRONG.values() if len(data) < 1000)]
    seeds = [data.encode() if isinstance(data, str) else data for data in tables]
    for number in range(1500):
        table = put(tmp_path, mutate(rng.choice(seeds), rng))
        try:
            columns = read_user_table(table, ("file", "caption"))
        except InputError:
            continue
        assert len(columns["file"]) == len(columns["caption"]), number


def test_large_tables_come_in_parts(tmp_path):
    table = put(tmp_path, "file,caption\n" + f"a.jpg,{'x' * 1000}\n" * 50_000)
    assert len(list(iter_user_table(table, ("file", "caption")))) > 2
