import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonify.config import Esc50Sounds
from sonify.dataset.licences import (
    CONDITIONS,
    EXAMPLES,
    HUB_LICENCES,
    SA1B_LICENCE,
    UNKNOWN,
    check_licence,
    conditions_of,
    contradictions,
    describe_unknown,
    disagreements,
    in_order,
    obstacles,
    redistributable,
)
from sonify.errors import InputError
from sonify.sources.sounds import corpora

FREESOUND = "http://creativecommons.org/licenses"
WRITTEN = {
    # deeds, as Freesound, FSD50K and Wikimedia Commons have them
    "http://creativecommons.org/publicdomain/zero/1.0/": (),
    "https://creativecommons.org/publicdomain/mark/1.0/deed.en": (),
    f"{FREESOUND}/by/3.0/": ("BY",),
    f"{FREESOUND}/by/4.0/legalcode": ("BY",),
    f"{FREESOUND}/by-sa/2.5/ca/": ("BY", "SA"),
    f"{FREESOUND}/by-nc/3.0/": ("BY", "NC"),
    f"{FREESOUND}/sampling+/1.0/": ("BY", "NC"),
    "https://www.creativecommons.org/licenses/by-nc-sa/4.0/deed.de": ("BY", "NC", "NC-SA"),
    f"{FREESOUND}/by-nc-nd/4.0": ("BY", "NC", "ND"),
    # names
    "CC0": (),
    "CC0-1.0": (),
    "CC Zero": (),
    "Creative Commons 0": (),
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": (),
    "Public domain": (),
    "CC BY": ("BY",),
    "CC-BY": ("BY",),
    "cc-by-4.0": ("BY",),
    "Attribution": ("BY",),
    "Attribution NonCommercial": ("BY", "NC"),
    "CC-BY-NC-3.0": ("BY", "NC"),
    "Sampling+": ("BY", "NC"),
    "CC BY-SA 4.0": ("BY", "SA"),
    "Creative Commons Attribution-ShareAlike 3.0 Unported License": ("BY", "SA"),
    "Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International": ("BY", "NC", "NC-SA"),
    "CC BY-ND 4.0": ("BY", "ND"),
    "Attribution-NonCommercial-NoDerivatives 4.0 International": ("BY", "NC", "ND"),
    "Apache-2.0": ("BY",),
    "CDLA-Permissive-2.0": ("BY",),
    # those that the corpora of this project come under
    corpora.AUDIOSET_LICENCE: ("research only", "no redistribution"),
    corpora.BBC_LICENCE: ("BY", "NC", "research only", "no redistribution"),
    SA1B_LICENCE: ("research only", "no redistribution"),
    "SA-1B": ("research only", "no redistribution"),
    "All rights reserved": ("no redistribution",),
    # nothing that allows anything
    "": ("unknown",),
    "unknown": ("unknown",),
    "CC": ("unknown",),
    "NC": ("unknown",),
    "free": ("unknown",),
    "CC BY-SA-ND": ("unknown",),
    "CC BY BY": ("unknown",),
    "CC BY 4.0 or GFDL": ("unknown",),
    "not CC0": ("unknown",),
    "GPL-3.0": ("unknown",),
    "http://creativecommons.org.evil.example/licenses/by/3.0/": ("unknown",),
    f"{FREESOUND}/by/3.0/ but ask me first": ("unknown",),
    "CC0" + " " * 500: (),
    "CC-BY" * 100: ("unknown",),
}


@pytest.mark.parametrize(("licence", "expected"), WRITTEN.items())
def test_licences_as_corpora_write_them(licence, expected):
    assert in_order(conditions_of(licence)) == expected


def test_the_licence_that_esc50_is_listed_under_is_known(tmp_path):
    row = {"filename": "1-1-A-0.wav", "src_file": "1", "category": "dog"}
    ref = corpora._esc50_ref(Esc50Sounds(kind="esc50", path=tmp_path), row)
    assert in_order(conditions_of(ref.licence)) == ("BY", "NC")


@given(st.sampled_from(sorted(WRITTEN)), st.from_regex(r"[a-z]{4,12}", fullmatch=True))
def test_a_word_that_nobody_knows_makes_a_licence_unknown(licence, word):
    known = {"zero", "universal", "generic", "international", "unported", "dedication", "license", "licence", "mark"}
    if word not in known | {"attribution", "noncommercial", "sharealike", "noderivs", "noderivatives", "plus"}:
        assert conditions_of(f"{licence} {word}") == {"unknown"}


@given(st.text())
def test_any_text_has_conditions_that_are_declared(text):
    assert conditions_of(text) <= set(CONDITIONS)


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("CC0-1.0", "CC BY 4.0"), ()),
        (("CC BY-SA 4.0", "CC BY 4.0"), ()),
        (("CC BY-NC-SA 4.0", "CC BY-NC 4.0"), ()),
        (("CC BY-SA 4.0", "CC BY-NC-SA 4.0"), ("BY-SA with BY-NC-SA",)),
        (("CC BY-SA 4.0", "CC BY-NC 4.0"), ("BY-SA with NC",)),
        (("CC BY-SA 4.0", "Sampling+"), ("BY-SA with NC",)),
        (("CC BY-ND 4.0", "CC0"), ("ND in a mix",)),
        (("CC BY-ND 4.0", "CC BY-SA 4.0", "CC BY-NC 4.0"), ("BY-SA with NC", "ND in a mix")),
    ],
)
def test_contradictions(licences, expected):
    found = frozenset().union(*map(conditions_of, licences))
    assert contradictions(found) == expected
    assert redistributable(found) == (not expected)


@pytest.mark.parametrize(
    "licence", ["unknown", corpora.BBC_LICENCE, corpora.AUDIOSET_LICENCE, SA1B_LICENCE, "CC BY-ND 4.0"]
)
def test_what_may_not_be_passed_on_stays_so_beside_anything(licence):
    for other in WRITTEN:
        found = conditions_of(licence) | conditions_of(other)
        assert not redistributable(found)
        assert obstacles(found)


@pytest.mark.parametrize("licence", ["CC BY 4.0", "", "x\nconfigs: 1"])
def test_a_licence_that_the_hub_does_not_write_is_refused(licence):
    with pytest.raises(InputError, match="licence: expected the hub's name"):
        check_licence(licence)


def test_every_example_is_recognised_and_what_is_not_names_them():
    assert all(UNKNOWN not in conditions_of(licence) for licence in EXAMPLES)
    assert all(describe_unknown(licence) == "" for licence in (*EXAMPLES, UNKNOWN))
    said = describe_unknown("CC-BYY 4.0")
    assert "'CC-BYY 4.0' is not recognised and counts as unknown, which lets nothing be passed on" in said
    assert "; did you mean CC BY 4.0?; recognised are CC BY 4.0, CC BY-SA 4.0, " in said
    assert "did you mean" not in describe_unknown("my own")


@pytest.mark.parametrize(
    ("chosen", "licence", "found"),
    [
        ("cc-by-4.0", "CC BY-NC 4.0", "are for no commercial use (NC), which cc-by-4.0 does not say"),
        ("openrail", "CC BY-NC 4.0", "are for no commercial use (NC), which openrail is not known to say"),
        ("cc-by-nc-4.0", "CC BY-NC 4.0", None),
        ("cc-by-4.0", "CC BY-SA 4.0", "want the same licence for what is made of them, and cc-by-4.0 is another (SA)"),
        ("cc-by-sa-4.0", "CC BY-SA 4.0", None),
        ("cc-by-nc-4.0", "CC BY-NC-SA 3.0", "and cc-by-nc-4.0 is another (NC-SA)"),
        ("cc-by-nc-sa-4.0", "CC BY-NC-SA 3.0", None),
        ("cc-by-nd-4.0", "CC BY-ND 4.0", "let nothing be made of them (ND)"),
        ("other", SA1B_LICENCE, "are for research only"),
        ("mit", "who knows", "have a licence that is not known here, which allows nothing"),
        ("mit", "CC BY 4.0", None),
        ("mit", "CC0", None),
    ],
)
def test_where_a_licence_says_else_than_what_something_was_made_of(chosen: str, licence: str, found: str | None):
    said = disagreements(chosen, {licence: 3, "CC0-1.0": 1_000}, "recordings")
    if found is None:
        assert said == ()
    else:
        assert said[0].startswith("3 of 1,003 recordings ")
        assert said[0].endswith(found)


def test_works_of_two_licences_are_counted_together():
    assert disagreements("mit", {"CC BY-NC 4.0": 2, "CC BY-NC 3.0": 3}, "images") == (
        "5 of 5 images are for no commercial use (NC), which mit does not say",
    )
    assert disagreements("mit", {}, "images") == ()


def test_the_hubs_names_are_names_of_the_hub():
    for licence in HUB_LICENCES:
        check_licence(licence)
    assert len(set(HUB_LICENCES)) == len(HUB_LICENCES)
