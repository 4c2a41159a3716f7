import html
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sonify.config import Esc50Sounds
from sonify.dataset.licences import (
    ATTRIBUTION,
    CONDITIONS,
    SA1B_LICENCE,
    conditions_of,
    contradictions,
    in_order,
    obstacles,
    redistributable,
    write_attribution,
)
from sonify.dataset.markdown import plain
from sonify.sources.sounds import corpora
from tests.dataset.folders import HOSTILE

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


CC0, BY = "CC0-1.0", "CC-BY-4.0"


def written(tmp_path, clips) -> str:
    write_attribution(tmp_path, clips)
    return (tmp_path / ATTRIBUTION).read_text(encoding="utf-8")


def test_recordings_stand_by_corpus_and_licence_whatever_their_order(tmp_path):
    clips = [
        ("fsd50k", "freesound/3", "c.wav", "rain", BY, "Cy"),
        ("esc50", "freesound/2", "b.wav", "cat", CC0, "Bo"),
        ("fsd50k", "freesound/1", "a.wav", "dog", CC0, "Al"),
        ("fsd50k", "freesound/4", "d.wav", "", BY, ""),
    ]
    body = written(tmp_path, clips).split("## ", 1)[1]
    assert [line for line in f"## {body}".splitlines() if line] == [
        "## esc50",
        "### CC0-1.0",
        "- freesound/2: cat (Bo)",
        "## fsd50k",
        "### CC-BY-4.0",
        "- freesound/3: rain (Cy)",
        "- freesound/4 (no attribution given)",
        "### CC0-1.0",
        "- freesound/1: dog (Al)",
    ]
    assert written(tmp_path, reversed(clips)).endswith(body)


def test_a_recording_of_many_clips_has_one_line_and_no_credit_is_lost(tmp_path):
    clips = [("a", "r", f"{n}.wav", "dog", BY, "Al") for n in range(5)] + [("a", "r", "9.wav", "dog", BY, "Bo")]
    assert re.findall(r"\((\w+)\)", written(tmp_path, clips)) == ["Al", "Bo"]


def test_text_of_others_does_nothing(tmp_path):
    text = written(tmp_path, [(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)])
    shown = MarkdownIt().render(text)
    assert set(re.findall(r"</?(\w+)", shown)) == {"h1", "p", "h2", "h3", "ul", "li"}
    assert shown.count("<li>") == 1
    name = html.escape(plain(HOSTILE, 500))
    assert f"<li>{name}: {name} ({name})</li>" in shown
    assert "\u202e" not in text


def test_it_says_whether_sounds_are_in_the_folder(tmp_path):
    assert "None of them is in this folder.\n" in written(tmp_path, [])
    (tmp_path / "audio").mkdir()
    assert "None of them" not in (text := written(tmp_path, []))
    assert "are their mixes, in `audio`.\n" in text


def test_an_address_stays_readable(tmp_path):
    assert "(x by y, https://freesound.org/s/1/)" in written(
        tmp_path, [("a", "r", "f", "t", BY, "x by y, https://freesound.org/s/1/")]
    )


SCRIPT = """
import sys
from pathlib import Path
from sonify.dataset.licences import write_attribution
from tests.processes import peak_kib
text = "a text " * 20
clips = (("a", f"recording/{n}", f"{n}.wav", text, "CC-BY-4.0", f"{n} {text}") for n in range(int(sys.argv[2])))
before = peak_kib()
write_attribution(Path(sys.argv[1]), clips)
print(peak_kib() - before)
"""


def test_memory_does_not_follow_the_clips(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path, "40000"], capture_output=True, text=True, check=True)
    size_kib = (tmp_path / ATTRIBUTION).stat().st_size / 1024
    assert size_kib > 10_000
    assert int(done.stdout) < size_kib / 2
