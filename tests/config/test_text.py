import os
import random
import time

import pytest
import yaml

from sonify.config import load_config
from sonify.config.text import MAX_BYTES, read_text
from sonify.errors import InputError

GOOD = """\
run_dir: runs/mine
seed: 0
images:
  kind: folder
  path: photos
  validation: 0
audio:
  sources:
    - {kind: folder, path: sounds}
  validation: 0
"""


# A few hundred bytes that come to millions of values: lists of lists, keys that are merged, and one long text.
LAUGHS = b"a0: &a0 [x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 5)) for n in range(1, 30)
)
MERGED = b"a0: &a0 {k: 1, l: 2, m: 3, n: 4}\n" + b"".join(
    b"a%d: &a%d {<<: [%s]}\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 5)) for n in range(1, 30)
)
LONG = b"a: &a " + b"x" * 20_000 + b"\nb: [" + b"*a, " * 1000 + b"]\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "sounds").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  path: photos", "\tpath: photos", "line 5: a tab: YAML is indented with blanks only: path: photos"),
        ("seed: 0", "seed:0", "line 2: a blank belongs behind the colon: seed: 0"),
        ("path: photos", "path:photos", "line 5: a blank belongs behind the colon: path: photos"),
        (GOOD, "seed:0\n", "line 1: a blank belongs behind the colon: seed: ..."),
        ("path: photos", "path: photos: mine", "line 5: a value with a colon belongs in quotes: 'photos: mine'"),
        ("path: photos", "path: it's: mine", "line 5: a value with a colon belongs in quotes: 'it''s: mine'"),
        ("path: photos", '"C:\\Users\\me"', "line 5: inside double quotes a backslash changes what follows"),
        ("path: photos", 'path: "C:\\photos"', "line 5: inside double quotes a backslash changes what follows"),
        ("path: photos", 'path: "C:\\new"', r"images.path \(line 5\): no such file .*double quotes a backslash"),
        ("path: photos", 'path: "photos', "line 5: a quotation mark opens here and is not closed"),
        ("path: photos", "path: [photos", "line 5: a bracket opens here and is not closed"),
        ("path: photos", "path: @photos", "line 5: a value that begins with a special character belongs in quotes"),
        ("path: photos", "path: *.jpg", "line 5: a value that begins with a special character belongs in quotes"),
        ("path: photos", "path: !photos", "line 5: a value that begins with a special character belongs in quotes"),
        ("  path: photos", "   path: photos", "line 5: keys of one section must begin in the same column"),
        ("seed: 0", "seed: 0\nseed: 1", "line 3: seed stands in line 2 already"),
        ("  path: photos", "  path: a\n  path: photos", "line 6: images.path stands in line 5 already"),
        (GOOD, f"{GOOD}---\n{GOOD}", "line 11: a second document begins"),
        (GOOD, "", "is empty"),
        (GOOD, "# only a comment\n", "is empty"),
        (GOOD, "- a\n- b\n", "expected sections .*, found a list"),
        (GOOD, "photos", "expected sections .*, found one word"),
        ("kind: folder\n", "kind: foldr\n", r"images.kind \(line 4\): expected one of .*; did you mean folder\?"),
        ("seed: 0", "seed: 1e3", r"seed \(line 2\): expected a whole number, found '1e3'; write 1000"),
        ("seed: 0", "mix: {max_gain_db: 1e-4}", r"\(line 2\): expected a number, .* it for text: write 1.0e-4"),
        (
            "seed: 0",
            "render: {image: no}",
            r"\(line 2\): expected 'original' or a whole number, found false; YAML reads",
        ),
        ("seed: 0", "mix:\n  lufs:[-34,-30]", r"mix \(line 2\): .*a blank belongs behind the colon: lufs: \[-34,-30\]"),
    ],
)
def test_a_mistake_in_yaml_is_one_line_that_says_where_and_what_to_do(folder, old, new, message):
    assert old in GOOD
    (folder / "mine.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(InputError, match=message) as raised:
        load_config("mine.yaml")
    assert str(raised.value).startswith("config mine.yaml")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: \xff\xfe\xfd", "line 1: not text in UTF-8"),
        (b"ok: 1\nbad: \xe4", "line 2: not text in UTF-8"),
        (b"mine.yaml\0\0\0\0", "not text; --config takes a YAML file"),
        (b"#" * (MAX_BYTES + 1), "larger than 4 MiB"),
        (b"a: &x [*x]\n", "line 1: a value that holds itself"),
        (LAUGHS, "line 7: 97,656 values here, those of aliases counted at each use; expected at most 50,000"),
        (MERGED, "line 7: .* values here, those of aliases counted at each use"),
        (LONG, "line 2: .* values here, those of aliases counted at each use"),
        (b"when: 2024-99-99\n", "not YAML: month must be in 1..12"),
        (b"[" * 5000, "line 1|not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, data, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as raised:
        load_config(path)
    assert len(str(raised.value).splitlines()) == 1


def test_what_is_counted_is_not_expanded(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(LAUGHS.replace(b"30", b"300"))
    started = time.monotonic()
    with pytest.raises(InputError, match="those of aliases"):
        read_text(tmp_path / "mine.yaml")
    assert time.monotonic() - started < 5


def test_an_override_is_counted_as_well(folder):
    bomb = "&a [x, x, x, x, x, x, x, x, x, x]"
    for name in "bcdef":
        bomb = f"&{name} [{bomb}, {', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]"
    with pytest.raises(InputError, match=r"override 'seed=.* line 1: 111,111 values here"):
        load_config(write(folder, GOOD), [f"seed={bomb}"])


def test_a_large_list_without_aliases_is_read(folder):
    text = "a: [" + "x, " * 40_000 + "]\n"
    assert len(read_text(write(folder, text)).values["a"]) == 40_000


def test_a_pipe_that_nobody_writes_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "mine.yaml")
    for place in (tmp_path / "mine.yaml", "/dev/null"):
        with pytest.raises(InputError, match="a device, a pipe or a socket; --config takes a YAML file"):
            load_config(place)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_editors_encodings_and_line_ends_are_read(folder, encoding, newline):
    text = ("\ufeff" if encoding == "utf-16-le" else "") + GOOD
    (folder / "mine.yml").write_bytes(text.replace("\n", newline).encode(encoding))
    assert load_config("mine.yml").images.path == folder / "photos"


def test_lines_are_those_of_the_keys_and_an_override_has_none(folder):
    lines = read_text_of(folder, GOOD)
    assert lines["images.path"] == 5
    assert lines["audio.sources.0.path"] == 9
    with pytest.raises(InputError, match=r"mine\.yaml: seed: expected"):
        load_config("mine.yaml", ["seed=x"])
    with pytest.raises(InputError, match=r"images\.path \(line 5\): no such file"):
        load_config(write(folder, GOOD.replace("photos", "nowhere")))
    with pytest.raises(InputError, match=r"images\.path: no such file"):
        load_config("mine.yaml", ["images={kind: folder, path: elsewhere, validation: 0}"])


def write(folder, text):
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


def read_text_of(folder, text):
    return read_text(write(folder, text)).lines


def test_merged_and_repeated_parts_are_read_as_yaml_has_them(folder):
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n"
    (folder / "mine.yaml").write_text(text)
    read = read_text(folder / "mine.yaml")
    assert read.values == yaml.safe_load(text)
    assert read.lines["b.y"] == 2


def test_damaged_text_is_read_or_refused_in_one_line(folder):
    rng, said = random.Random(0), []
    for _ in range(400):
        characters = list(GOOD)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(characters))
            characters[place : place + rng.randint(0, 3)] = rng.choice(list("\t :-[]{}\"'\\#&*!|>%@`,\n\0é"))
        path = write(folder, "".join(characters))
        try:
            load_config(path)
        except InputError as error:
            said.append(str(error))
    assert len(said) > 200
    assert all("\n" not in line and len(line) < 1000 for line in said)
