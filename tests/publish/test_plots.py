import matplotlib as mpl
import pytest
from PIL import Image

from sonify.publish.plots import plot, write_plots
from sonify.publish.rows import Statistics
from tests.publish.folders import HOSTILE, statistics

NAMES = ("concepts", "sources", "loudness", "clip_use")


def drawn(tmp_path, of: Statistics) -> dict[str, bytes]:
    tmp_path.mkdir(exist_ok=True)
    write_plots(tmp_path, of)
    return {name: (tmp_path / plot(name)).read_bytes() for name in NAMES}


def test_each_picture_shows_its_own_numbers(tmp_path):
    base = drawn(tmp_path, statistics())
    assert len(set(base.values())) == 4
    others = {
        "concepts": {"concepts": {"dog": 4, "rain": 2}},
        "sources": {"sources_in_scene": {"1": 2, "2": 2, "3": 1}},
        "loudness": {"target_lufs": {"-32.0": 3, "-29.5": 4}},
        "clip_use": {"clip_uses": {"1": 4, "3": 2, "25": 2}},
    }
    for name, fields in others.items():
        changed = drawn(tmp_path, statistics(**fields))
        assert [one for one in NAMES if changed[one] != base[one]] == [name]


def test_the_same_numbers_give_the_same_bytes_whatever_the_users_settings(tmp_path):
    base = drawn(tmp_path, statistics())
    with mpl.rc_context({"axes.facecolor": "black", "savefig.dpi": 30, "font.size": 30}):
        assert drawn(tmp_path / "again", statistics()) == base
    assert all(b"matplotlib" not in data.lower() for data in base.values())


def test_they_are_large_enough_to_read(tmp_path):
    many = {f"concept {n}": 1000 - n for n in range(200)}
    drawn(tmp_path, statistics(concepts=many, distinct_concepts=5000))
    sizes = {name: Image.open(tmp_path / plot(name)).size for name in NAMES}
    assert all(width == 770 for width, _ in sizes.values())
    assert sizes["concepts"][1] > 30 * 20  # a line for each of thirty names


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [HOSTILE, "$\\frac{$", "犬の鳴き声", "", "x" * 5000])
def test_a_concept_of_any_name_is_drawn(tmp_path, name):
    assert drawn(tmp_path, statistics(concepts={name: 2}))["concepts"]


def test_numbers_are_no_strings_in_order(tmp_path):
    """Keys come as text: 10 stands after 9, and not between 1 and 2."""
    uses = {str(n): n for n in range(1, 16)}
    shuffled = dict(sorted(uses.items()))
    assert list(shuffled) != list(uses)
    first, second = (drawn(tmp_path, statistics(clip_uses=of))["clip_use"] for of in (uses, shuffled))
    assert first == second
