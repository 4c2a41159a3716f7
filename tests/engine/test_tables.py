import io

import pyarrow.parquet as pq

from sonify.io.tables import ROWS_IN_GROUP, count_rows, read_columns, read_rows, schema_of, write_rows
from sonify.rows import Concept, ImageConcepts, ImageRef, Pair


def concepts(n: int) -> ImageConcepts:
    return ImageConcepts(
        image=f"image-{n}",
        image_uri=f"{n}.jpg",
        image_sha256="0" * 64,
        width=3,
        height=4,
        caption="ein Hund bellt — wirklich",
        answer="",
        concepts=(
            Concept(concept="dog", description="sound of a dog"),
            Concept(concept="wind", description=""),
        ),
    )


def test_rows_come_back_as_they_went_in(tmp_path):
    rows = [concepts(n) for n in range(ROWS_IN_GROUP + 3)]
    path = tmp_path / "table.parquet"
    with path.open("wb") as file:
        write_rows(file, ImageConcepts, rows)
    assert list(read_rows(path, ImageConcepts)) == rows
    assert count_rows(path) == len(rows)
    assert read_columns(path, ["image"])["image"][2].as_py() == "image-2"


def test_bytes_that_are_no_text_come_back(tmp_path):
    path = tmp_path / "table.parquet"
    rows = [ImageRef(uri="a.jpg", caption=b"\xff\x00caption", below=(1 << 63) - 1)]
    with path.open("wb") as file:
        write_rows(file, ImageRef, rows)
    assert list(read_rows(path, ImageRef)) == rows


def test_the_same_rows_give_the_same_bytes():
    first, second = io.BytesIO(), io.BytesIO()
    for file in (first, second):
        write_rows(file, ImageConcepts, [concepts(n) for n in range(10)])
    assert first.getvalue() == second.getvalue()


def test_an_empty_table_has_a_schema(tmp_path):
    path = tmp_path / "empty.parquet"
    with path.open("wb") as file:
        write_rows(file, Pair, [])
    assert pq.read_schema(path).names == schema_of(Pair).names
    assert list(read_rows(path, Pair)) == []
