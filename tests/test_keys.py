import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonify.keys import (
    KEY_PATTERN,
    MAX_PART_CHARS,
    escape_key,
    key_order,
    keys_of,
    member_name,
    plain_key,
    split_member,
    split_of,
    unescape_key,
    uniform,
)

MAX_NAME_BYTES = 255  # of ext4, NTFS, APFS
LONGEST_ENDING = f"{'s' * 60}-99.audio.npy"
# Characters that look like what keys are made of, of two, three and four bytes, and bytes that are no UTF-8.
PIECES = ["a", "B", "_", "_u", "_uA", "-", "/", ".", "2f", "é", "犬", "画像", "Ж", "🐕", "\udce4", "\udc80\udcff"]


def names(min_size=1):
    """Names as file systems have them, short and long."""
    of_bytes = st.binary(min_size=min_size, max_size=300).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
    of_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=min_size, max_size=300)
    mixed = st.lists(st.sampled_from(PIECES), min_size=min_size, max_size=300).map("".join)
    repeated = st.tuples(mixed, st.integers(1, 60)).map(lambda found: (found[0] * found[1])[:2000])
    return of_bytes | of_text | mixed.map(_as_named) | repeated.map(_as_named)


def _as_named(text):
    """Bytes of a name that happen to be UTF-8 are read as that."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


@given(names())
def test_any_name_becomes_a_safe_key_and_comes_back(name):
    key = escape_key(name)
    assert KEY_PATTERN.fullmatch(key)
    assert unescape_key(key) == unescape_key(plain_key(name)) == name
    assert len(key) <= len(plain_key(name))
    assert keys_of(name) == {key, plain_key(name)}


@given(st.text(min_size=1))
def test_a_name_with_half_characters_becomes_a_key_where_its_bytes_are_a_name(name):
    raw = name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    assert unescape_key(escape_key(raw)) == raw


@given(st.lists(names() | st.text(alphabet="ab_-./2fu", min_size=1), unique=True, min_size=2))
def test_different_names_get_different_keys(names):
    keys = [keys_of(name) for name in names]
    assert len(frozenset().union(*keys)) == sum(map(len, keys))


@given(names())
def test_a_name_whose_plain_key_is_short_keeps_it(name):
    plain = plain_key(name)
    if len(plain) <= MAX_PART_CHARS:
        assert escape_key(name) == plain
    assert key_order(escape_key(name)) == key_order(plain) == plain


@pytest.mark.parametrize(("letters", "key"), [(6, "plain"), (7, "closer")])
def test_the_longest_plain_key_is_as_long_as_a_part(letters, key):
    name = "犬" * 19 + "a_" + "b" * letters
    assert len(plain_key(name)) == MAX_PART_CHARS + (letters - 6)
    assert (escape_key(name) == plain_key(name)) == (key == "plain")


@given(names(), st.sampled_from(["jpg", "json", "eye.flac", "latent.npy", LONGEST_ENDING]))
def test_every_part_of_a_members_name_can_be_unpacked_and_its_key_comes_back(name, ending):
    for key in keys_of(name):
        member = member_name(key, ending)
        assert max(len(part) for part in member.split("/")) <= MAX_NAME_BYTES
        assert split_member(member) == (key, ending)
        if len(key) <= MAX_PART_CHARS:
            assert member == f"{key}.{ending}"


@given(st.text(alphabet="_uAz09af-é", max_size=400) | st.text(max_size=400))
def test_what_is_no_key_of_ours_harms_nobody(text):
    key = "".join(KEY_PATTERN.findall(text))
    assert isinstance(unescape_key(key), str)
    assert isinstance(key_order(key), str)


def test_half_a_character_has_an_order_of_its_own():
    """No name of ours is written so, but a key that somebody else wrote may be."""
    assert unescape_key("_uA2D0") == "\ud83d"
    assert key_order("_uA2D0") == "_uA2D0"


def test_no_part_of_a_key_looks_hidden():
    """`datasets` skips a file whose name begins with two underscores; only more of them than a part holds do that."""
    for name in ("_" * 80 + "犬" * 90, "a_" * 200, "_a" * 200):
        first, *others = member_name(plain_key(name), "jpg").split("/")
        assert others
        assert len(first) <= MAX_PART_CHARS
        assert not any(part.startswith("_") for part in others)
    assert split_member(member_name("_" * 1000, "jpg")) == ("_" * 1000, "jpg")


def test_an_archive_of_before_has_a_long_key_in_one_part():
    key = plain_key("犬" * 60)
    assert split_member(f"{key}.eye.flac") == (key, "eye.flac")


def test_a_long_name_stays_readable_where_it_is_ascii_and_gets_short_where_it_is_not():
    name = f"holiday 2019/{'写真' * 20}/dog.jpg"
    assert len(plain_key(name)) > 380
    key = escape_key(name)
    assert len(key) < 150
    assert key.startswith("holiday_202019_2f_u")
    assert key.endswith("_2fdog_2ejpg")


@pytest.mark.parametrize(("name", "key"), [("cats/tom_1.jpg", "cats_2ftom__1_2ejpg"), ("é.png", "_c3_a9_2epng")])
def test_keys_are_what_other_peoples_scripts_expect(name, key):
    assert escape_key(name) == key


def test_randomness_depends_on_every_part_and_on_nothing_else():
    # the golden number pins the function: a change of it would change every dataset
    assert uniform(0, "draw", "image") == 0.8024147331960131
    assert uniform(0, "draw", "image") != uniform(1, "draw", "image")
    assert uniform("a", "bc") != uniform("ab", "c")


def test_uniform_is_uniform():
    values = [uniform("test", n) for n in range(20_000)]
    assert 0 <= min(values) < 0.001
    assert 0.999 < max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.01


def test_split_has_the_share_that_was_asked_for():
    keys = [f"image-{n}" for n in range(20_000)]
    share = sum(split_of(0, "image", key, 0.1) == "validation" for key in keys) / len(keys)
    assert abs(share - 0.1) < 0.01
    assert all(split_of(0, "image", key, 0.0) == "train" for key in keys[:100])
    assert all(split_of(0, "image", key, 1.0) == "validation" for key in keys[:100])
