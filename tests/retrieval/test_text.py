import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonify.retrieval.text import WordsEncoder


def cosine(one, other):
    a, b = WordsEncoder()([one, other])
    return float(a @ b)


def test_the_querys_sentence_carries_no_weight():
    assert cosine("This is a sound of a dog", "dog") == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("query", "near", "far"),
    [
        ("puppy", "dog", "cat"),
        ("dog barking", "a dog", "a cat"),
        ("dog", "cat", "engine"),
        ("bird chirping", "chirping birds", "rooster"),
        ("hen clucking", "hen", "rooster"),
        ("sea waves", "sea waves", "rain"),
        ("bee buzzing", "insects", "crickets"),
        ("ambulance siren", "siren", "car horn"),
        ("keyboard typing", "keyboard typing", "mouse click"),
        ("xylophone of glass", "xylophone", "glass breaking"),
        ("zorblax device", "a zorblax", "rain"),
    ],
)
def test_meaning_orders_clips(query, near, far):
    assert cosine(query, near) > cosine(query, far) + 0.05


@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_every_text_has_a_unit_row(texts):
    rows = WordsEncoder()(texts)
    assert rows.dtype == np.float32
    assert rows.shape == (len(texts), WordsEncoder.dimension)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_rows_do_not_depend_on_the_batch():
    texts = ["a dog", "rain", "", "wind in the trees"]
    together = WordsEncoder()(texts)
    assert all(np.array_equal(WordsEncoder()([text])[0], row) for text, row in zip(texts, together, strict=True))


def test_the_encoding_is_the_same_on_every_machine():
    (row,) = WordsEncoder()(["a dog barks at the rain"])
    strongest = np.argsort(-np.abs(row))[:3]
    assert strongest.tolist() == [349, 86, 348]
    assert row[strongest] == pytest.approx([0.5182, 0.51027, 0.31092], abs=1e-5)
