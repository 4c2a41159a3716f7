"""What is counted of tables of pairs, row by row and over all, and of tables that were written before."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonify.io.tables import read_columns
from sonify.rows import Pair, Reason, Refused, SourceClip
from sonify.stages.evidence import COLUMNS, LATER, count_evidence, describe_weak, weaknesses
from tests.builders import pair_row, source_row, write_table

PLAIN = source_row("dog", cosine=0.1)
LIMITED = source_row("dog", cosine=0.9, limit=0.6)
NEAR = source_row("dog", cosine=0.62, limit=0.6)
CONFIRMED = source_row("dog", cosine=0.9, limit=0.6, heard_by="yamnet", heard="Dog 0.90", support=0.9)
UNCONFIRMED = source_row("dog", cosine=0.62, limit=0.6, heard_by="yamnet", speech=0.7)


def refused(reason: Reason, clip: str = "", presence: str = "") -> Refused:
    return Refused(concept="goose", description="", presence=presence, reason=reason, clip=clip, cosine=0.0, heard="")


REFUSED = (
    refused(Reason.NO_MATCH, "folder/a#0"),
    refused(Reason.NO_MATCH),
    refused(Reason.NOT_VISIBLE, presence="implied"),
)


@pytest.mark.parametrize(
    ("source", "by_text", "found"),
    [
        (PLAIN, True, ("cosine below 0.2",)),
        (PLAIN, False, ()),
        (LIMITED, True, ()),
        (source_row("dog", cosine=0.1, limit=0.01), True, ()),
        (NEAR, False, ("within 0.05 of its limit",)),
        (CONFIRMED, True, ()),
        (UNCONFIRMED, False, ("within 0.05 of its limit", "not confirmed")),
    ],
)
def test_a_match_is_weak_by_its_own_limit_or_by_who_listened(source: SourceClip, by_text: bool, found: tuple[str, ...]):
    assert weaknesses(source, by_text) == found


def test_tables_are_counted_as_rows_are(tmp_path):
    sources = (PLAIN, LIMITED, NEAR, CONFIRMED, UNCONFIRMED)
    pairs = [pair_row("a_2ejpg", sources=sources, refused=REFUSED), pair_row("b_2ejpg", sources=(CONFIRMED,))]
    write_table(tmp_path / "p.parquet", Pair, pairs)
    found = count_evidence([read_columns(tmp_path / "p.parquet", COLUMNS, LATER)], by_text=True)
    assert (found.sounds, found.limited, found.near_limit, found.low) == (6, 5, 2, 1)
    assert (found.asked, found.confirmed, found.spoken) == (3, 2, 1)
    assert found.weak == sum(bool(weaknesses(source, True)) for pair in pairs for source in pair.sources) == 3
    assert (found.refused, found.near_misses) == ({"no_match": 2, "not_visible": 1}, 1)
    assert found.presence == {"implied": 1}
    assert (
        describe_weak(found) == "2 within 0.05 of their limit, 1 below a cosine of 0.2, 1 not confirmed by who listened"
    )


def test_a_table_of_before_says_that_nobody_asked(tmp_path):
    names = ("concept", "description", "clip", "cosine")
    rows = [{"sources": [{name: getattr(source, name) for name in names} for source in (PLAIN, LIMITED)]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    found = count_evidence([read_columns(tmp_path / "p.parquet", COLUMNS, LATER)], by_text=True)
    assert (found.sounds, found.limited, found.asked, found.weak, found.refused) == (2, 0, 0, 1, {})
