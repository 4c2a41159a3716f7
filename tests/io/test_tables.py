import io

import pyarrow.parquet as pq

from sonify.io.tables import ROWS_IN_GROUP, count_rows, read_columns, read_rows, schema_of, write_rows
from sonify.rows import ImageConcepts, ImageRef, Pair
from tests.builders import concepts_row, write_table


def some_concepts(n: int) -> ImageConcepts:
    return concepts_row(f"image-{n}", "dog", "wind", caption="ein Hund bellt — wirklich")


def test_rows_come_back_as_they_went_in(tmp_path):
    rows = [some_concepts(n) for n in range(ROWS_IN_GROUP + 3)]
    path = write_table(tmp_path / "table.parquet", ImageConcepts, rows)
    assert list(read_rows(path, ImageConcepts)) == rows
    assert count_rows(path) == len(rows)
    assert read_columns(path, ["image"])["image"][2].as_py() == "image-2"


def test_bytes_that_are_no_text_come_back(tmp_path):
    rows = [ImageRef(uri="a.jpg", caption=b"\xff\x00caption", below=(1 << 63) - 1)]
    path = write_table(tmp_path / "table.parquet", ImageRef, rows)
    assert list(read_rows(path, ImageRef)) == rows


def test_the_same_rows_give_the_same_bytes():
    first, second = io.BytesIO(), io.BytesIO()
    for file in (first, second):
        write_rows(file, ImageConcepts, [some_concepts(n) for n in range(10)])
    assert first.getvalue() == second.getvalue()


def test_an_empty_table_has_a_schema(tmp_path):
    path = write_table(tmp_path / "empty.parquet", Pair, [])
    assert pq.read_schema(path).names == schema_of(Pair).names
    assert list(read_rows(path, Pair)) == []
