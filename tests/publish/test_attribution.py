import html
import re
import subprocess
import sys

from markdown_it import MarkdownIt

from sonify.publish.attribution import ATTRIBUTION, write_attribution
from sonify.publish.markdown import plain
from tests.publish.folders import HOSTILE

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
from sonify.publish.attribution import write_attribution
from tests.memory import peak_kib
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
