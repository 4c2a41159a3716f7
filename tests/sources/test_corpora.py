import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from sonify.errors import InputError
from sonify.media.audio import read_header
from sonify.sources.sounds import list_sounds, open_sound
from tests.builders import write_tar
from tests.sources.recordings import audio_of, listed, put, real_recording

SEGMENTS = "eval_segments.head.original_form.csv"
# of the published list: each id with one of the ways in which its file is named
NAMED = {
    "--4gqARaEJE": "--4gqARaEJE.wav",
    "--BfvyPmVMo": "Y--BfvyPmVMo.wav",
    "-0BIyqJj9ZU": "-0BIyqJj9ZU_30.flac",
    "-0Gj8-vB1q4": "-0Gj8-vB1q4_30000_40000.flac",
    "-0RWZT-miFs": "eval/Y-0RWZT-miFs_420.000_430.000.flac",
    "-0CamVQdP_Y": "eval/-0CamVQdP_Y_000000.flac",
}


@pytest.fixture
def audioset(test_data, tmp_path):
    for name in ("class_labels_indices.csv", SEGMENTS):
        shutil.copy(test_data / "formats/audioset" / name, tmp_path / name)
    for number, file in enumerate(NAMED.values()):
        put(tmp_path / "audio" / file, real_recording(test_data, number, file.rpartition(".")[2]))
    return tmp_path


def audioset_source(audioset, segments=SEGMENTS, **settings):
    labels = audioset / "class_labels_indices.csv"
    return {
        "kind": "audioset",
        "path": audioset / "audio",
        "segments": audioset / segments,
        "labels": labels,
        **settings,
    }


def segment_rows(test_data):
    with (test_data / "formats/audioset" / SEGMENTS).open() as file:
        return [line for line in file if not line.startswith("#")]


def test_every_segment_is_listed_and_found_by_every_name_that_files_have(audioset, test_data):
    refs = listed(audioset_source(audioset))

    assert len(refs) == len(segment_rows(test_data)) == 57
    assert {ref.recording: ref.file for ref in refs.values() if not ref.refused} == {
        f"youtube/{youtube_id}": file for youtube_id, file in NAMED.items()
    }
    assert {ref.refused for ref in refs.values()} == {"", "missing"}


def test_labels_become_their_names_and_licence_and_attribution_reach_every_row(audioset):
    refs = listed(audioset_source(audioset))

    # "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk": one name has commas itself
    assert refs["--4gqARaEJE.wav"].text == "Domestic animals, pets, Squeak, Dog, Animal"
    assert refs["Y--BfvyPmVMo.wav"].text == "Hammer"
    for ref in refs.values():
        youtube_id = ref.recording.removeprefix("youtube/")
        assert ref.attribution == f"https://youtu.be/{youtube_id}"
        assert ref.licence == "YouTube (research only, no redistribution)"
        assert ref.text


def test_a_missing_segment_keeps_a_name_of_its_own_until_its_file_comes(audioset, test_data):
    before = listed(audioset_source(audioset))
    missing = next(ref for ref in before.values() if ref.refused)
    youtube_id = missing.recording.removeprefix("youtube/")

    put(audioset / "audio" / f"{youtube_id}.wav", real_recording(test_data, 9, "wav"))
    after = listed(audioset_source(audioset))

    assert missing.file.startswith(f"{youtube_id}_")
    assert set(after) - set(before) == {f"{youtube_id}.wav"}
    assert after[f"{youtube_id}.wav"].refused == ""


@pytest.mark.parametrize("head", ["", "YTID,start_seconds,end_seconds,positive_labels\n"])
def test_copies_without_the_comment_lines_say_the_same(audioset, test_data, head):
    (audioset / "copy.csv").write_text(head + "".join(segment_rows(test_data)))
    assert listed(audioset_source(audioset, "copy.csv")) == listed(audioset_source(audioset))


def test_copies_without_the_space_and_without_quotes_say_the_same(audioset, test_data):
    rows = list(csv.reader(segment_rows(test_data), skipinitialspace=True))
    (audioset / "tight.csv").write_text("".join(f'{",".join(row[:3])},"{row[3]}"\r\n' for row in rows))
    (audioset / "bare.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    assert (
        listed(audioset_source(audioset, "tight.csv"))
        == listed(audioset_source(audioset, "bare.csv"))
        == listed(audioset_source(audioset))
    )


def test_two_segments_of_one_video_find_their_own_files(audioset, test_data):
    lines = [f'abc-_123456, {start}.000, {start + 10}.000, "/m/0jbk"\n' for start in (0, 30, 120)]
    (audioset / "two.csv").write_text("".join(lines))
    for start in (0, 30):
        put(audioset / "audio" / f"abc-_123456_{start}.flac", real_recording(test_data, start))

    refs = listed(audioset_source(audioset, "two.csv"))

    assert {file: ref.refused for file, ref in refs.items()} == {
        "abc-_123456_0.flac": "",
        "abc-_123456_30.flac": "",
        "abc-_123456_120000_130000": "missing",
    }


def test_sounds_in_archives_are_found_by_id_and_opened(audioset, test_data):
    shutil.rmtree(audioset / "audio")
    data = {n: real_recording(test_data, n) for n in range(2)}
    members = {"audio/eval/--4gqARaEJE.flac": data[0], "audio/eval/--BfvyPmVMo.flac": data[1]}
    write_tar(audioset / "audio" / "eval00.tar", members)

    refs = listed(audioset_source(audioset))

    sources = audio_of(audioset_source(audioset)).sources
    found = [ref for ref in refs.values() if not ref.refused]
    assert [ref.file for ref in found] == [f"eval00.tar/{name}" for name in members]
    assert [open_sound(sources, "audioset", ref.file) for ref in found] == list(data.values())
    assert read_header(open_sound(sources, "audioset", found[0].file)).container == "FLAC"


def test_a_line_that_is_no_segment_is_counted_and_the_others_stay(audioset):
    with (audioset / SEGMENTS).open("a") as file:
        file.write("short, 1, 2, /m/0jbk\n\n../../../etc, 0.000, 1.000, /m/0jbk\n-6JnAxTXAp_, soon, later, /m/0jbk\n")
    refs = listed(audioset_source(audioset))
    assert sorted(file for file, ref in refs.items() if ref.refused == "unreadable") == [
        f"{SEGMENTS}:{line}" for line in (61, 63, 64)
    ]
    assert len(refs) == 60


def test_no_segment_at_all_with_a_file_is_an_error_that_names_one(audioset):
    shutil.rmtree(audioset / "audio")
    (audioset / "audio").mkdir()
    with pytest.raises(InputError, match=r"none of the 57 .* expected files such as --4gqARaEJE\.wav"):
        listed(audioset_source(audioset))


def test_tables_that_are_something_else_are_named(audioset, test_data):
    wrong = audioset_source(audioset) | {"labels": test_data / "formats/esc50/esc50.csv"}
    with pytest.raises(InputError, match="expected AudioSet's class_labels_indices"):
        listed(wrong)
    (audioset / "other.csv").write_text("index,mid,display_name\n0,/m/xyz,Thing\n")
    with pytest.raises(InputError, match="has no name for any label"):
        listed(audioset_source(audioset) | {"labels": audioset / "other.csv"})


# as in the published clips info; the licence is a URL, and names hold what people type
FSD50K_ABOUT = {
    "title": 'Guitar "E"\n chord.wav',
    "description": "one chord",
    "tags": ["guitar"],
    "license": "http://creativecommons.org/licenses/by/3.0/",
    "uploader": "ueffects",
}


def fsd50k_rows(part, test_data):
    with (test_data / "formats/fsd50k" / f"{part}.head.reconstructed.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def fsd50k(test_data, tmp_path):
    (tmp_path / "FSD50K.ground_truth").mkdir()
    for part in ("dev", "eval"):
        published = test_data / "formats/fsd50k" / f"{part}.head.reconstructed.csv"
        shutil.copy(published, tmp_path / "FSD50K.ground_truth" / f"{part}.csv")
        names = [row["fname"] for row in fsd50k_rows(part, test_data)]
        about = dict.fromkeys(names[:-1], FSD50K_ABOUT)
        put(tmp_path / f"FSD50K.metadata/{part}_clips_info_FSD50K.json", json.dumps(about).encode())
        for number, name in enumerate(names[:-1]):
            put(tmp_path / f"FSD50K.{part}_audio/{name}.wav", real_recording(test_data, number, "wav"))
    return tmp_path


def fsd50k_source(fsd50k, **settings):
    return {"kind": "fsd50k", "path": fsd50k, **settings}


def test_the_development_part_is_listed_with_labels_from_leaf_to_root(fsd50k, test_data):
    refs = listed(fsd50k_source(fsd50k))

    assert len(refs) == len(fsd50k_rows("dev", test_data)) == 10
    ref = refs["FSD50K.dev_audio/64760.wav"]
    assert ref.text == "Electric guitar, Guitar, Plucked string instrument, Musical instrument, Music"
    assert ref.recording == "freesound/64760"
    assert all("dev_audio" in file for file in refs)


def test_licence_and_uploader_of_each_clip_come_from_the_clips_info(fsd50k):
    ref = listed(fsd50k_source(fsd50k))["FSD50K.dev_audio/64760.wav"]
    assert ref.licence == "http://creativecommons.org/licenses/by/3.0/"
    assert ref.attribution == 'Guitar "E" chord.wav by ueffects, https://freesound.org/s/64760/'


def test_a_clip_without_a_file_is_missing_and_one_without_info_says_so(fsd50k, test_data):
    last = fsd50k_rows("dev", test_data)[-1]["fname"]
    ref = listed(fsd50k_source(fsd50k))[f"FSD50K.dev_audio/{last}"]
    assert (ref.refused, ref.licence) == ("missing", "unknown")
    assert ref.attribution == f"unknown by unknown, https://freesound.org/s/{last}/"


@pytest.mark.parametrize(("part", "count"), [("eval", 2), ("both", 12)])
def test_the_evaluation_part_comes_only_where_it_is_asked_for(fsd50k, part, count):
    refs = listed(fsd50k_source(fsd50k, part=part))
    assert len(refs) == count
    assert "FSD50K.eval_audio/37199.wav" in refs


def test_a_clip_is_opened_by_its_path(fsd50k):
    sources = audio_of(fsd50k_source(fsd50k)).sources
    assert open_sound(sources, "fsd50k", "FSD50K.dev_audio/64760.wav") == fsd50k / "FSD50K.dev_audio/64760.wav"


def test_the_whole_published_collection_is_read(fsd50k, test_data):
    shutil.copy(test_data / "formats/fsd50k/collection_dev.csv", fsd50k / "FSD50K.ground_truth/dev.csv")
    refs = listed(fsd50k_source(fsd50k))
    assert len(refs) == 40_966
    assert sum(not ref.refused for ref in refs.values()) == 9
    assert all("_" not in ref.text for ref in refs.values())


@pytest.mark.parametrize(
    "lost", ["FSD50K.ground_truth/dev.csv", "FSD50K.metadata/dev_clips_info_FSD50K.json"], ids=["labels", "licences"]
)
def test_a_lost_table_is_an_error(fsd50k, lost):
    (fsd50k / lost).unlink()
    with pytest.raises(InputError, match=r"expected FSD50K's .*dev\.csv .*dev_clips_info_FSD50K\.json"):
        listed(fsd50k_source(fsd50k))


@pytest.mark.parametrize("data", [b"[1, 2]", b"{", b'{"64760": 7}'])
def test_clips_info_of_another_shape_is_an_error(fsd50k, data):
    (fsd50k / "FSD50K.metadata/dev_clips_info_FSD50K.json").write_bytes(data)
    with pytest.raises(InputError, match="expected FSD50K's"):
        listed(fsd50k_source(fsd50k))


def test_no_sound_at_all_is_an_error(fsd50k):
    shutil.rmtree(fsd50k / "FSD50K.dev_audio")
    with pytest.raises(InputError, match=r"none of the 10 .* such as FSD50K\.dev_audio/64760\.wav"):
        listed(fsd50k_source(fsd50k))


BBC_TABLE = "BBCSoundEffects.csv"


@pytest.fixture
def bbc(test_data, tmp_path):
    shutil.copy(test_data / "formats/bbc" / BBC_TABLE, tmp_path / BBC_TABLE)
    put(tmp_path / "07076051.wav", real_recording(test_data, 0, "wav"))
    put(tmp_path / "more" / "07076050.WAV", real_recording(test_data, 1, "wav"))
    return tmp_path


def bbc_source(bbc, **settings):
    return {"kind": "bbc", "path": bbc, **settings}


def test_the_published_table_is_read_whole(bbc):
    refs = listed(bbc_source(bbc))

    assert len(refs) == 16_011
    assert sorted(file for file, ref in refs.items() if not ref.refused) == ["07076051.wav", "more/07076050.WAV"]
    ref = refs["07076051.wav"]
    assert ref.text == "Two-stroke petrol engine driving small elevator, start, run, stop."
    assert ref.recording == "bbc/07076051"


def test_every_row_has_text_without_edge_spaces_and_the_remarc_terms(bbc):
    for ref in listed(bbc_source(bbc)).values():
        assert ref.text
        assert ref.text == ref.text.strip()
        assert ref.licence == "RemArc"
        name = ref.recording.removeprefix("bbc/")
        assert ref.attribution == f"BBC Sound Effects, {name}.wav, bbc.co.uk – © BBC"


def test_text_encoded_twice_is_mended_and_other_text_stays(bbc):
    texts = {ref.text for ref in listed(bbc_source(bbc)).values()}
    assert 'Police whistle: single¨, double¨, treble¨ 1", 2", 4" - 1968 (169A, reprocessed)' in texts
    assert "French Café, atmosphere in a busy popular cafe." in texts


def test_a_copy_without_the_head_says_the_same(bbc, tmp_path):
    head, _, rows = (bbc / BBC_TABLE).read_bytes().partition(b"\n")
    assert head.startswith(b'"location"')
    copy = put(tmp_path / "lists" / "copy.csv", rows)
    assert listed(bbc_source(bbc, table=copy)) == listed(bbc_source(bbc))


def test_a_row_cannot_name_a_file_elsewhere(bbc, test_data):
    outside = put(bbc.parent / "outside.wav", real_recording(test_data, 2, "wav"))
    buffer = io.StringIO()
    csv.writer(buffer).writerow([f"../{outside.name}", "secret", "1", "", "", "", ""])
    with (bbc / BBC_TABLE).open("a") as file:
        file.write(buffer.getvalue())
    assert listed(bbc_source(bbc))["outside"].refused == "missing"


def test_another_table_is_an_error_that_names_the_columns(bbc, test_data):
    with pytest.raises(InputError, match=r"expected the columns location,description,.* found filename,fold"):
        listed(bbc_source(bbc, table=test_data / "formats/esc50/esc50.csv"))
    (bbc / "empty.csv").write_text("")
    with pytest.raises(InputError, match="expected the columns"):
        listed(bbc_source(bbc, table=bbc / "empty.csv"))


def test_a_folder_without_the_table_or_without_sounds_is_an_error(bbc):
    (bbc / "07076051.wav").unlink()
    shutil.rmtree(bbc / "more")
    with pytest.raises(InputError, match=r"none of the 16,011 .* such as 07076051\.wav"):
        listed(bbc_source(bbc))
    (bbc / BBC_TABLE).unlink()
    with pytest.raises(InputError, match=r"expected the BBC's BBCSoundEffects\.csv"):
        listed(bbc_source(bbc))


def test_esc50_is_read_from_its_own_table(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100210-B-36.wav,1,36,vacuum_cleaner,False,100210,B\n"
        "1-100210-A-36.wav,1,36,vacuum_cleaner,False,100210,A\n"
    )
    source = audio_of({"kind": "esc50", "path": tmp_path})
    put(tmp_path / "audio" / "1-100210-A-36.wav", b"")
    first, second = list_sounds(source)
    assert first.text == "vacuum cleaner"
    assert first.recording == second.recording == "freesound/100210"
    assert "100210" in first.attribution
    assert open_sound(source.sources, first.corpus, first.file) == tmp_path / "audio" / "1-100210-A-36.wav"


def test_the_published_esc50_table_is_read(test_data, tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_bytes((test_data / "formats/esc50/esc50.csv").read_bytes())
    refs = list(list_sounds(audio_of({"kind": "esc50", "path": tmp_path}), must_meet=False))
    assert len(refs) == 2000
    assert len({ref.text for ref in refs}) == 50


def test_an_esc50_folder_without_its_table_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"expected ESC-50's meta/esc50\.csv"):
        list(listed({"kind": "esc50", "path": tmp_path}).values())


def test_a_file_of_a_new_kind_or_behind_a_link_replaces_none_that_a_run_has(
    audioset, fsd50k, bbc, test_data, tmp_path_factory
):
    """Runs know a recording by its file: another one of it would be heard twice."""
    for source in (audioset_source(audioset), fsd50k_source(fsd50k), bbc_source(bbc)):
        folder = Path(str(source["path"]))
        before = listed(source)
        for file in [file for file, ref in before.items() if not ref.refused and ".tar/" not in file]:
            put((folder / file).with_suffix(".3gp"), real_recording(test_data, 0))
        linked = tmp_path_factory.mktemp("linked") / "copy"
        shutil.copytree(folder, linked)
        (folder / f"0-{source['kind']}").symlink_to(linked)
        assert listed(source) == before


@pytest.mark.parametrize(
    "name",
    [
        "{id}_420-430.flac", "{id}_420.000-430.000.flac", "Man speaking/{id}_420.0-430.0.flac", "{id}-420-430.flac",
        "Y{id}_420000_430000.flac", "{id}_000420.flac", "{id}_420.flac", "{id}_420_430.FLAC", "{id}_420s_430s.flac",
        "A title, with {other} in it [{id}].flac", "Title [{id}]_420-430.flac", "A title-{id}.flac", "{id}.flac",
        "{id} 420 to 430.flac", "Y{id}.flac",
    ],
)  # fmt: skip
def test_a_file_is_found_by_whoever_fetched_it(audioset, test_data, name):
    shutil.rmtree(audioset / "audio")
    youtube_id = "-0RWZT-miFs"
    file = name.format(id=youtube_id, other="--BfvyPmVMo")
    put(audioset / "audio" / file, real_recording(test_data, 0))
    refs = listed(audioset_source(audioset))
    assert {ref.recording: ref.file for ref in refs.values() if not ref.refused} == {f"youtube/{youtube_id}": file}


@pytest.mark.parametrize(
    "name", ["{id}x.flac", "x{id}.flac", "{id}_430.flac", "{id}_420_430_1.flac", "[{id}] more.flac"]
)
def test_a_file_of_another_name_is_no_segment_and_is_counted(audioset, test_data, caplog, name):
    file = name.format(id="-0RWZT-miFs")
    shutil.rmtree(audioset / "audio")
    put(audioset / "audio" / "--4gqARaEJE.wav", real_recording(test_data, 0, "wav"))
    put(audioset / "audio" / file, real_recording(test_data, 0))
    refs = listed(audioset_source(audioset))
    assert [ref.file for ref in refs.values() if not ref.refused] == ["--4gqARaEJE.wav"]
    assert any(f"1 recording has no row (first: '{file}')" in message for message in caplog.messages)


def test_ids_that_hold_dashes_and_begin_with_a_y_are_told_by_the_list(audioset, test_data):
    ids = ["Yab_-cd_30-", "ab_-cd_30-x", "Y_30_40_50_"]
    lines = [f'{name}, 30.000, 40.000, "/m/0jbk"\n' for name in ids]
    (audioset / "odd.csv").write_text("".join(lines))
    shutil.rmtree(audioset / "audio")
    files = ["Yab_-cd_30-.flac", "Yab_-cd_30-x_30-40.flac", "Y_30_40_50__30.flac"]
    for number, file in enumerate(files):
        put(audioset / "audio" / file, real_recording(test_data, number))
    refs = listed(audioset_source(audioset, "odd.csv"))
    assert {ref.recording.removeprefix("youtube/"): ref.file for ref in refs.values()} == dict(
        zip(ids, files, strict=True)
    )


def test_two_segments_of_one_video_are_told_apart_by_their_start_in_any_form(audioset, test_data):
    lines = [f'abc-_123456, {start}.000, {start + 10}.000, "/m/0jbk"\n' for start in (0, 30)]
    (audioset / "two.csv").write_text("".join(lines))
    for file in ("abc-_123456_30-40.flac", "abc-_123456_0-10.flac"):
        put(audioset / "audio" / file, real_recording(test_data, 0))
    refs = listed(audioset_source(audioset, "two.csv"))
    assert [file for file, ref in refs.items() if not ref.refused] == [
        "abc-_123456_0-10.flac",
        "abc-_123456_30-40.flac",
    ]


def test_fsd50k_counts_clips_that_no_row_names(fsd50k, test_data, caplog):
    put(fsd50k / "FSD50K.dev_audio/1.wav", real_recording(test_data, 0, "wav"))
    assert listed(fsd50k_source(fsd50k))
    assert "1 recording has no row (first: 'FSD50K.dev_audio/1.wav')" in caplog.text


def test_the_id_may_follow_a_title_that_looks_like_another(audioset, test_data):
    (audioset / "odd.csv").write_text('12345678901, 30.000, 40.000, "/m/0jbk"\n')
    shutil.rmtree(audioset / "audio")
    put(audioset / "audio" / "holiday2020-30-12345678901.flac", real_recording(test_data, 0))
    (ref,) = listed(audioset_source(audioset, "odd.csv")).values()
    assert (ref.file, ref.refused) == ("holiday2020-30-12345678901.flac", "")


def test_rows_that_name_a_file_again_are_counted(audioset, tmp_path, caplog):
    with (audioset / SEGMENTS).open("a") as file:
        file.write('--4gqARaEJE, 0.000, 10.000, "/m/0jbk"\n')
    assert len(listed(audioset_source(audioset))) == 57
    assert "1 row names a file again (first: '--4gqARaEJE_0_10000')" in caplog.text
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text("filename,category,src_file\n" + "1-1-A-0.wav,dog,1\n" * 2)
    put(tmp_path / "audio" / "1-1-A-0.wav", b"")
    assert len(listed({"kind": "esc50", "path": tmp_path})) == 1
    assert "esc50.csv: 1 row names a file again (first: '1-1-A-0.wav')" in caplog.text


@pytest.mark.parametrize("written", ["./{}", "{}.WAV", "audio/{}"])
def test_esc50_meets_its_files_in_any_spelling(tmp_path, written):
    (tmp_path / "meta").mkdir()
    name = "1-100032-A-0.wav"
    row = written.format(name.removesuffix(".wav") if "WAV" in written else name)
    text = f"filename,category,src_file\n{row},dog,100032\n"
    (tmp_path / "meta" / "esc50.csv").write_text(text)
    put(tmp_path / "audio" / name, b"")
    (ref,) = listed({"kind": "esc50", "path": tmp_path}).values()
    assert (ref.file, ref.text) == (f"audio/{name}", "dog")


def test_esc50_of_which_no_row_meets_a_file_is_an_error(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text("filename,category,src_file\n1-1-A-0.wav,dog,1\n")
    put(tmp_path / "audio" / "another.wav", b"")
    with pytest.raises(InputError, match=r"none of the 1 recordings .* files such as 1-1-A-0\.wav"):
        listed({"kind": "esc50", "path": tmp_path})
