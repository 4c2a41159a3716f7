import dataclasses
import html
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import matplotlib as mpl
import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from PIL import Image

from sonify.dataset.card import ATTRIBUTION, CARD, plot, write_attribution, write_card, write_plots
from sonify.dataset.format import PublishedRecord, Statistics
from sonify.dataset.format import plain as plain_text
from tests.dataset.folders import HOSTILE, clip, pair, record, small_folder, statistics, write_tables


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def write(out: Path, of: PublishedRecord, licence: str = "cc-by-4.0") -> DatasetCard:
    write_card(out, of, licence)
    return DatasetCard.load(out / CARD)


def load(out: Path, name: str) -> datasets.DatasetDict:
    found = datasets.load_dataset(str(out), name, cache_dir=str(out.parent / "cache"))
    assert isinstance(found, datasets.DatasetDict)
    return found


def test_the_head_says_what_there_is(tmp_path):
    head = write(small_folder(tmp_path), record()).data.to_dict()
    assert (head["license"], head["pretty_name"], head["size_categories"]) == ("cc-by-4.0", "Sonified images", "n<1K")
    assert [one["config_name"] for one in head["configs"] if one.get("default")] == ["pairs"]
    assert {one["config_name"]: one["data_files"] for one in head["configs"]} == {
        "pairs": [
            {"split": "train", "path": "data/train-*.parquet"},
            {"split": "validation", "path": "data/validation-*.parquet"},
        ],
        "clips": [{"split": "train", "path": "clips/*.parquet"}],
        "shards": [{"split": "train", "path": "shards/shards.parquet"}],
    }
    assert "license_name" not in head


def test_another_licence_is_named_without_a_link_that_the_hub_would_refuse(tmp_path):
    head = write(small_folder(tmp_path), record(), "other").data.to_dict()
    assert (head["license"], head["license_name"]) == ("other", "see-the-card")
    assert "license_link" not in head


FILES = {"pairs": "data/*.parquet", "clips": "clips/*.parquet", "shards": "shards/*.parquet"}


@pytest.mark.parametrize("name", FILES)
def test_the_features_and_sizes_of_the_card_are_those_of_the_files(tmp_path, name):
    out = small_folder(tmp_path / "set")
    files = sorted(out.glob(FILES[name]))
    inferred = datasets.load_dataset(
        "parquet", data_files=list(map(str, files)), split="train", cache_dir=str(tmp_path / "bare")
    )
    assert isinstance(inferred, datasets.Dataset)
    head = write(out, record()).data.to_dict()
    declared = datasets.DatasetInfo._from_yaml_dict(
        next(one for one in head["dataset_info"] if one["config_name"] == name)
    )
    assert declared.features == inferred.features
    loaded = load(out, name)
    assert all(split.features == inferred.features for split in loaded.values())
    assert declared.splits is not None
    assert {split: one.num_examples for split, one in declared.splits.items()} == loaded.num_rows
    assert declared.download_size == sum(file.stat().st_size for file in files)
    assert declared.dataset_size == inferred.data.nbytes


def test_rows_come_back_as_they_were_written(tmp_path):
    out = small_folder(tmp_path / "set")
    write(out, record())
    pairs, clips = load(out, "pairs"), load(out, "clips")
    assert pairs["validation"][0] == plain(pair(3, "validation"))
    assert list(clips["train"]) == [plain(clip(1)), plain(clip(2))]


def plain(row: object) -> dict[str, object]:
    """A row as Parquet gives it: lists for tuples."""
    assert dataclasses.is_dataclass(row)
    return listed(dataclasses.asdict(row))  # pyright: ignore[reportArgumentType] - an instance, never a class


def listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: listed(inner) for name, inner in value.items()}
    return [listed(inner) for inner in value] if isinstance(value, tuple) else value


def test_a_split_that_is_not_there_is_not_named(tmp_path):
    out = write_tables(tmp_path / "set", [pair(1)], [clip()])
    write(out, record())
    assert load(out, "pairs").num_rows == {"train": 1}


def test_the_size_is_that_of_the_rows(tmp_path):
    out = write_tables(tmp_path, [pair(n % 3) for n in range(1000)], [clip()])
    assert write(out, record()).data.to_dict()["size_categories"] == "1K<n<10K"


def test_the_text_says_how_it_was_made_and_what_may_be_done(tmp_path):
    of = record(
        models={"llava-hf/llava-1.5-7b-hf": "b234b804"},
        prompts={"llava": "What can be heard?\n```\n# nothing"},
        statistics=statistics(
            conditions={"BY + NC": 3, "BY + SA": 1},
            contradictions={"BY-SA with BY-NC-SA": 2},
            redistributable=1,
            left_out={"excluded": 7, "licence": 0},
        ),
    )
    text = write(small_folder(tmp_path), of).text
    assert "| llava-hf/llava-1.5-7b-hf | b234b804 |" in text
    assert "\n    ```\n    # nothing\n" in text  # inside the block, where it starts nothing
    assert "| BY + NC | 3 |" in text
    assert "| BY-SA with BY-NC-SA | 2 |" in text
    assert "Of 4 scenes, 1 could be passed on" in text
    assert "by reason: excluded: 7." in text
    assert "    - kind: esc50\n      name: esc50\n      path: ...  # The ESC-50 folder" in text
    for word in ("--missing repair", "## Takedowns", "plots/clip_use.png", "Neither images", "`complete` is false"):
        assert word in text


LLAVA = {"kind": "vlm", "name": "llava", "model": "llava-hf/llava-1.5-7b-hf", "revision": "b234b804"}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, {"gets the nearest one"}),
        ({"retrieval": {"min_cosine": -0.5}}, {"gets the nearest one"}),
        ({"retrieval": {"min_cosine": 0.2}}, {"cosine is below 0.2"}),
        ({"images": {"kind": "sa1b"}}, {"faces are blurred", "gets the nearest one"}),
        ({"concepts": {"extractors": [LLAVA]}}, {"seagulls", "gets the nearest one"}),
    ],
)
def test_the_limits_are_those_of_what_was_used(tmp_path, sections, expected):
    of = record()
    text = write(small_folder(tmp_path), dataclasses.replace(of, config={**of.config, **sections})).text
    words = ("gets the nearest one", "cosine is below", "faces are blurred", "seagulls", "cosine is below 0.2")
    assert {word for word in words if word in text} - {"cosine is below"} == expected
    assert "is not measured.\n\n## Render it" in text


@pytest.mark.parametrize(
    ("duplicates", "expected"),
    [
        ({}, ""),
        ({"recordings": 0, "groups": 0, "largest": 0, "left_out": 0}, "No recording of the pool is a copy of another"),
        (
            {"recordings": 1012, "groups": 6, "largest": 3, "left_out": 4},
            "1,012 recordings of the pool are copies of each other, found by how they sound: they are 6, and the most"
            " frequent is there 3 times. In a scene copies count as one; 4 of validation were not drawn",
        ),
    ],
)
def test_copies_in_the_pool_are_told_where_they_were_joined(tmp_path, duplicates, expected):
    of = record(statistics=statistics(duplicates=duplicates))
    text = " ".join(write(small_folder(tmp_path), of).text.split())
    assert ("of the pool" in text) == bool(expected)
    assert expected in text


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (
            {"lowered": 1204},
            "clips of a scene are summed. 1,204 scenes were lowered as a whole so as to keep the ceiling",
        ),
        ({"cut_off": 7}, "clips of a scene are summed. 7 scenes reach full scale, and samples beyond it were cut off."),
        ({}, "clips of a scene are summed. All loudness here"),
    ],
)
def test_mixes_that_are_no_plain_sum_are_told(tmp_path, counts, expected):
    text = " ".join(write(small_folder(tmp_path), record(statistics=statistics(**counts))).text.split())
    assert expected in text


def test_another_rendering_of_a_dataset_says_so_and_which_sounds_are_others(tmp_path):
    text = write(small_folder(tmp_path / "own"), record()).text
    assert "another rendering" not in text
    assert "`repaired`" not in text
    copies = {"equivalent": 20, "exact": 1000, "repaired": 3}
    of = record(rendered_from="c0ffee", statistics=statistics(copies=copies))
    text = " ".join(write(small_folder(tmp_path / "again"), of).text.split())
    assert "It is another rendering of a dataset that was published before" in text
    assert "has the sha256 `c0ffee`." in text
    assert "Of 1,023 sounds, 1,000 are the published clips themselves, 20 are other encodings" in text
    assert "and 3 are other recordings in the place of lost ones (`repaired`)." in text


def test_audio_in_the_folder_is_a_table_of_its_own(tmp_path):
    out = small_folder(tmp_path)
    (out / "audio").mkdir()
    (out / "audio/train-u.parquet").write_bytes((out / "data/train-u.parquet").read_bytes())  # rows are counted only
    card = write(out, record())
    info = next(one for one in card.data.to_dict()["dataset_info"] if one["config_name"] == "audio")
    features = datasets.DatasetInfo._from_yaml_dict(info).features
    assert features is not None
    assert features["audio"] == datasets.Audio(sampling_rate=16000)
    assert "Neither images" not in card.text


def test_words_of_others_do_nothing(tmp_path):
    counted = {HOSTILE: 2}
    of = record(
        statistics=statistics(concepts=counted, licences=counted, clips=counted, recordings=counted),
        models={HOSTILE: HOSTILE},
        prompts={HOSTILE: HOSTILE},
    )
    harmless = record(models={"x": "x"}, prompts={"x": "x"})
    shown = [
        MarkdownIt().enable("table").render(write(small_folder(tmp_path / name), one).text)
        for name, one in {"hostile": of, "harmless": harmless}.items()
    ]
    tags = [Counter(re.findall(r"<(\w+)", one)) for one in shown]
    assert tags[0].pop("tr") == tags[1].pop("tr") - 1  # one concept in the place of two, of two cells
    assert tags[0].pop("td") == tags[1].pop("td") - 2
    assert tags[0] == tags[1]
    assert shown[0].count(f"<td>{html.escape(plain_text(HOSTILE, 200))}</td>") == 5  # two of models, three of counts


def test_the_same_folder_gives_the_same_card(tmp_path):
    cards = []
    for name in ("a", "b"):
        write(small_folder(tmp_path / name), record())
        cards.append((tmp_path / name / CARD).read_bytes())
    assert cards[0] == cards[1]


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


def test_credits_of_others_do_nothing(tmp_path):
    text = written(tmp_path, [(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)])
    shown = MarkdownIt().render(text)
    assert set(re.findall(r"</?(\w+)", shown)) == {"h1", "p", "h2", "h3", "ul", "li"}
    assert shown.count("<li>") == 1
    name = html.escape(plain_text(HOSTILE, 500))
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
from sonify.dataset.card import write_attribution
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


SA1B = {"images": {"kind": "sa1b", "validation": 0.0}}


def test_the_paper_is_linked_and_cited(tmp_path):
    card = write(small_folder(tmp_path), record())
    assert "arxiv:2501.05413" in card.data.to_dict()["tags"]
    assert "[Seeing Sound](https://arxiv.org/abs/2501.05413)" in card.text
    (entry,) = re.findall(r"^```bibtex\n(@misc\{\w+,\n(?:  \w+ += \{.*\},?\n)+\})\n```$", card.text, re.MULTILINE)
    assert "{Petermann, Darius and Kalayeh, Mahdi M.}" in entry
    assert "eprint        = {2501.05413}," in entry


@pytest.mark.parametrize("with_images", [False, True])
def test_images_of_sa1b_are_to_be_got_where_they_are(tmp_path, with_images):
    out = small_folder(tmp_path)
    if with_images:
        (out / "images").mkdir()
    of = record()
    text = " ".join(write(out, dataclasses.replace(of, config={**of.config, **SA1B})).text.split())
    where = (
        "[SA-1B](https://ai.meta.com/datasets/segment-anything/), whose licence is the SA-1B Dataset Research License."
    )
    assert where in text
    assert ("They are not included and must be got there." in text) == (not with_images)
    assert "SA-1B" not in write(small_folder(tmp_path / "own"), of).text


@pytest.mark.parametrize(("rate_hz", "spelt"), [(16000, "16 kHz"), (22050, "22.05 kHz")])
def test_loudness_is_said_to_be_that_of_the_clip_at_its_rate(tmp_path, rate_hz, spelt):
    of = record()
    config = {**of.config, "audio": {**of.config["audio"], "sample_rate": rate_hz}}
    text = " ".join(write(small_folder(tmp_path), dataclasses.replace(of, config=config)).text.split())
    assert f"clips of 5 s, brought to {spelt} and one channel" in text
    assert f"All loudness here (LUFS) is BS.1770 of the {spelt} mono clip." in text
    assert "white noise reads 5.4 LU lower at 16 kHz than at 48 kHz" in text


def test_what_acted_stands_beside_the_settings_where_it_was_recorded(tmp_path):
    assert "the most that may be looked at" not in write(small_folder(tmp_path / "before"), record()).text
    split = {"split": "train", "clips": 54000, "recordings": 18, "top_k": 8, "clips_per_recording": 3}
    acted = {"version": 4, "kinds": 6, "splits": [split, {**split, "split": "validation", "clips_per_recording": 0}]}
    text = write(small_folder(tmp_path / "now"), record(acted=acted)).text
    assert "(version\n4 of the rules of the draw, 6 of the kinds by which names are compared):" in text
    bare = write(small_folder(tmp_path / "bare"), record(acted=acted | {"kinds": 0})).text
    assert "(version\n4 of the rules of the draw):" in bare
    head = "| split | clips | recordings | best clips looked at | of one recording at most |"
    rows = (
        "| --- | --- | --- | --- | --- |",
        "| train | 54,000 | 18 | 8 | 3 |",
        "| validation | 54,000 | 18 | 8 | any number |",
    )
    assert "\n".join((head, *rows)) in text
    assert text.index("All settings") < text.index(head) < text.index("## Figures")


def test_what_was_rendered_is_read_as_the_card_says(tmp_path):
    text = write(small_folder(tmp_path), record()).text
    assert 'sonify.open_shards("runs/mine", "train")' in text
    assert "run_dir: runs/mine\n" in text
