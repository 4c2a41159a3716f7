"""Corpora through the pool stage: what becomes a clip, what is excluded, what is missing, and that all is counted."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonify import layout
from sonify.errors import InputError, TransientError
from sonify.io.write import sha256_of
from sonify.rows import NOT_FAULTS, Clip, Reason, Rejected
from sonify.running import run
from sonify.sources.sounds import list_sounds
from sonify.stages.make_pool import PoolStage
from tests.builders import small_config, stored, write_photos, write_tar
from tests.sources.recordings import audio_of, put, real_recording

ABOUT = {"title": "t", "license": "http://creativecommons.org/licenses/by/3.0/", "uploader": "u"}


@pytest.fixture
def corpora(test_data, tmp_path):
    """One corpus of each kind, with one recording missing where a table names them."""
    formats = test_data / "formats"
    head = (formats / "audioset/eval_segments.head.original_form.csv").read_text().splitlines()[:6]
    put(tmp_path / "audioset" / "eval.csv", "\n".join(head).encode())
    put(tmp_path / "audioset/Y--4gqARaEJE_0_10000.wav", real_recording(test_data, 0, "wav"))
    put(tmp_path / "audioset/--BfvyPmVMo.flac", real_recording(test_data, 1))

    fsd50k = tmp_path / "fsd50k"
    rows = (formats / "fsd50k/dev.head.reconstructed.csv").read_text().splitlines()[:4]
    put(fsd50k / "FSD50K.ground_truth/dev.csv", "\n".join(rows).encode())
    about = dict.fromkeys(("64760", "16399", "16401"), ABOUT)
    put(fsd50k / "FSD50K.metadata/dev_clips_info_FSD50K.json", json.dumps(about).encode())
    for number, name in enumerate(("64760", "16399")):
        put(fsd50k / f"FSD50K.dev_audio/{name}.wav", real_recording(test_data, 2 + number, "wav"))

    table = (formats / "bbc/BBCSoundEffects.csv").read_text(encoding="utf-8").splitlines()[:4]
    put(tmp_path / "bbc/BBCSoundEffects.csv", "\n".join(table).encode())
    for number, name in enumerate(("07076051", "07076050")):
        put(tmp_path / f"bbc/{name}.wav", real_recording(test_data, 4 + number, "wav"))

    write_tar(tmp_path / "webdataset/0.tar", {"1.flac": real_recording(test_data, 6), "1.json": b'{"text": "a bell"}'})
    write_tar(tmp_path / "webdataset/1.tar", {"2.flac": b"fLaC", "2.txt": b"broken"})
    (tmp_path / "parquet").mkdir()
    cells = pa.array([{"bytes": real_recording(test_data, 7), "path": None}])
    pq.write_table(pa.table({"audio": cells, "text": ["rain"]}), tmp_path / "parquet/0.parquet")
    return tmp_path


def config_of(root, test_data, **audio):
    labels = str(test_data / "formats/audioset/class_labels_indices.csv")
    more = {"audioset": {"segments": str(root / "audioset/eval.csv"), "labels": labels}}
    for kind in ("webdataset", "parquet"):
        more[kind] = {"licence": "CC0-1.0"}
    kinds = ("audioset", "fsd50k", "bbc", "webdataset", "parquet")
    sources = [{"kind": kind, "path": str(root / kind), **more.get(kind, {})} for kind in kinds]
    write_photos(root / "photos", {"0.jpg": "a dog"})
    return small_config(root, audio={"sources": sources, "validation": 0, **audio})


def pool_of(config):
    counts = run(config, stages=["pool"])["pool"]
    return counts, stored(config.run_dir / layout.CLIPS, Clip)


def test_every_corpus_gives_clips_with_licence_and_attribution_and_every_row_is_counted(corpora, test_data):
    counts, clips = pool_of(config_of(corpora, test_data))

    assert (counts.rows_in, counts.rows_out) == (12, 8)
    assert counts.rejected == {"missing": 3, "unreadable": 1}
    terms = {(clip.corpus, clip.licence) for clip in clips}
    assert terms == {
        ("audioset", "YouTube (research only, no redistribution)"),
        ("fsd50k", "http://creativecommons.org/licenses/by/3.0/"),
        ("bbc", "RemArc"),
        ("webdataset", "CC0-1.0"),
        ("parquet", "CC0-1.0"),
    }
    for clip in clips:
        assert clip.text
        assert clip.attribution or clip.licence == "CC0-1.0"


# each line keeps one recording out, and no other
@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("--4gqARaEJE", "Y--4gqARaEJE_0_10000.wav"),
        ("youtube/--BfvyPmVMo", "--BfvyPmVMo.flac"),
        ("64760", "FSD50K.dev_audio/64760.wav"),
        ("FSD50K.dev_audio/16399.wav", "FSD50K.dev_audio/16399.wav"),
        ("freesound/16399", "FSD50K.dev_audio/16399.wav"),
        ("07076051.wav", "07076051.wav"),
        ("bbc/07076050.wav", "07076050.wav"),
        ("webdataset/0.tar/1.flac", "0.tar/1.flac"),
        ("parquet/0.parquet/row-000000", "0.parquet/row-000000"),
    ],
)
def test_an_evaluation_clip_stays_out_by_any_of_its_names(corpora, test_data, line, file):
    config = config_of(corpora, test_data, exclude=str(put(corpora / "exclude.txt", f"# held out\n{line}\n".encode())))
    refs = [ref for ref in list_sounds(config.audio) if not ref.refused]
    results = dict(zip((ref.file for ref in refs), PoolStage(config.audio, config.seed)(refs), strict=True))
    excluded = [
        file for file, result in results.items() if isinstance(result, Rejected) and result.reason == "excluded"
    ]
    assert excluded == [file]


def test_evaluation_clips_stay_out_by_the_hash_of_their_file_wherever_it_lies(corpora, test_data):
    hashes = [
        sha256_of(corpora / "bbc/07076051.wav"),
        # the bytes of a member and of a cell are those of the recording's own file
        sha256_of(sorted((test_data / "sounds").glob("*.flac"))[6]),
        sha256_of(sorted((test_data / "sounds").glob("*.flac"))[7]).upper(),
    ]
    exclude = put(corpora / "exclude.txt", "\n".join(hashes).encode())

    counts, clips = pool_of(config_of(corpora, test_data, exclude=str(exclude)))

    assert counts.rejected == {"excluded": 3, "missing": 3, "unreadable": 1}
    assert {clip.corpus for clip in clips} == {"audioset", "fsd50k", "bbc"}


def test_missing_recordings_are_no_faults():
    assert Reason.MISSING in NOT_FAULTS


def test_a_recording_that_comes_later_joins_in_a_new_unit(corpora, test_data):
    config = config_of(corpora, test_data)
    before, _ = pool_of(config)
    put(corpora / "fsd50k/FSD50K.dev_audio/16401.wav", real_recording(test_data, 8, "wav"))

    after, clips = pool_of(config)

    assert (after.rows_in, after.rows_out) == (before.rows_in + 1, before.rows_out + 1)
    assert "FSD50K.dev_audio/16401.wav" in {clip.file for clip in clips}


def test_a_corpus_that_is_gone_altogether_leaves_its_rows_undone(corpora, test_data):
    config = config_of(corpora, test_data)
    stage = PoolStage(config.audio, config.seed)
    refs = [ref for ref in list_sounds(config.audio) if not ref.refused]
    for kind in ("audioset", "fsd50k", "bbc", "webdataset", "parquet"):
        shutil.rmtree(corpora / kind)
        with pytest.raises(TransientError, match="is the disk mounted"):
            stage([next(ref for ref in refs if ref.corpus == kind)])


def test_an_empty_pool_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no recording"):
        list(list_sounds(audio_of({"kind": "folder", "path": tmp_path})))


def test_sources_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two sources are named 'folder'"):
        audio_of(*[{"kind": "folder", "path": tmp_path}] * 2)
