import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sonify import layout
from sonify.config.loader import make_settings
from sonify.engine.record import require_record, write_record
from sonify.errors import InputError, WorkError
from sonify.io.commits import commit_files, read_commit
from sonify.keys import escape_key, split_of
from sonify.media.audio import UnreadableSound
from sonify.report.result import iter_rejects
from sonify.report.verify import verify
from tests.builders import hash_run, noise, picture, refused, tone, write_csv, write_sound
from tests.feature_runs import make_feature_run
from train.config import Data
from train.pair_list import PairSettings, list_pairs
from train.pairs import cut_windows, main, make_pairs
from train.shards import FeatureData, open_feature_data
from train.tiny import write_tiny_ast, write_tiny_vae

SECONDS = {"a": 7.5, "b": 5.0, "c": 0.5, "d": 11.0, "e": 3.0}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return {"vae": str(write_tiny_vae(folder / "vae")), "ast": str(write_tiny_ast(folder / "ast"))}


@pytest.fixture
def settings(networks):
    def make(**keys) -> PairSettings:
        return make_settings({**networks, "size": 64, "validation": 0.0, **keys}, PairSettings)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pairs of sounds of several lengths."""
    root = tmp_path / "mine"
    for n, (name, seconds) in enumerate(SECONDS.items()):
        (root / "deep").mkdir(parents=True, exist_ok=True)
        (root / f"{name}.jpg").write_bytes(picture(n))
        write_sound(root / f"{name}.wav", noise(n, round(seconds * 16_000)))
    return root


def opened(*runs: Path, split: str = "train") -> FeatureData:
    return open_feature_data(make_settings({"runs": [str(run) for run in runs], "split": split}, Data))


def records(run: Path, split: str = "train") -> dict[str, dict]:
    return {sample.key: sample.record() for sample in opened(run, split=split).samples()}


def rejects(run: Path) -> dict[str, str]:
    return {found.row.key: found.row.reason for found in iter_rejects(run)}


def test_a_folder_becomes_a_run_that_trainers_read(folder, settings, tmp_path):
    run = tmp_path / "run"
    made = make_pairs(folder, run, settings())

    data = opened(run)
    assert (made.rows.rows_in, made.rows.rows_out, made.rows.rejected) == (5, 5, {})
    assert dict(made.samples) == {"train": 5, "validation": 0}
    assert sorted(sample.key for sample in data.samples()) == [f"{name}_2ejpg" for name in SECONDS]
    assert data.latent_shape == (4, 8, 8)
    assert data.audio_shape[1] == 32
    assert (data.clip_seconds, data.lufs) == (5.0, (-32.0, -28.0))
    assert data.runs[run].own_pairs
    assert not any(run.own_pairs for run in opened(make_feature_run(tmp_path / "sonify")).runs.values())
    assert all(sample.scenes == ("pairs-0", "pairs-1") for sample in data.samples())
    assert verify(run).damage == ()


def test_windows_follow_one_another_and_a_short_sound_is_heard_again(folder, settings, tmp_path):
    run = tmp_path / "run"
    make_pairs(folder, run, settings())

    heard = {key: [scene["sources"][0]["clip"] for scene in record["scenes"]] for key, record in records(run).items()}
    assert heard == {
        "a_2ejpg": ["a.wav#0", "a.wav#5"],
        "b_2ejpg": ["b.wav#0", "b.wav#0"],
        "c_2ejpg": ["c.wav#0", "c.wav#0"],
        "d_2ejpg": ["d.wav#0", "d.wav#5"],
        "e_2ejpg": ["e.wav#0", "e.wav#0"],
    }
    arrays = {s.key: [s.members[f"pairs-{n}.audio.npy"] for n in range(2)] for s in opened(run).samples()}
    assert arrays["a_2ejpg"][0] != arrays["a_2ejpg"][1]
    assert arrays["b_2ejpg"][0] != arrays["b_2ejpg"][1]  # at another level


def test_with_one_window_the_scene_has_no_number(folder, settings, tmp_path):
    make_pairs(folder, tmp_path / "run", settings(windows=1))
    assert {sample.scenes for sample in opened(tmp_path / "run").samples()} == {("pairs",)}


def test_layers_of_the_ear_are_joined(folder, settings, tmp_path):
    make_pairs(folder, tmp_path / "run", settings(layers=[1, 2]))
    data = opened(tmp_path / "run")
    assert data.audio_shape[1] == 2 * 32
    assert data.features.layers == (1, 2)


@pytest.mark.parametrize("lufs", [-25.0, -4.0])  # below the ceiling of the mix, and beyond it
def test_what_is_made_is_what_sonify_makes_of_the_same_sound(folder, settings, networks, tmp_path, lufs):
    """The loudness of a scene is drawn from `lufs`, and the same networks see and hear it."""
    from sonify.config import make_config  # noqa: PLC0415 - of this test alone
    from sonify.features.batches import FeatureNetworks  # noqa: PLC0415 - as above
    from sonify.media.mixing import gain_to_target_db, measure_loudness, mix_clips  # noqa: PLC0415 - as above
    from sonify.media.pixels import decode_square  # noqa: PLC0415 - as above

    run = tmp_path / "run"
    make_pairs(folder, run, settings(lufs=[lufs, lufs], windows=1))
    config = make_config(
        {
            "run_dir": "r",
            "images": {"kind": "folder", "path": "p"},
            "audio": {"sources": [{"kind": "folder", "path": "s"}]},
            "features": {**networks, "size": 64},
        },
        check_paths=False,
    )
    assert config.features is not None
    made = FeatureNetworks(config.features)
    samples = cut_windows(folder / "b.wav", 0.0, 1, 5.0)[0][1]
    mix = mix_clips([samples], [gain_to_target_db(measure_loudness(samples, 16_000), lufs, 30.0)], -1.0)
    (sample,) = [sample for sample in opened(run).samples() if sample.key == "b_2ejpg"]
    audio = sample.decode("pairs.audio.npy", sample.shape_of("pairs.audio.npy"))
    assert np.array_equal(audio, made.listen(mix.samples[None])[0].astype(np.float32))
    latent = made.look(decode_square((folder / "b.jpg").read_bytes(), 64)[None])["latent"][0]
    assert np.array_equal(sample.decode("latent.npy", (4, 8, 8)), latent.astype(np.float32))


def test_nothing_is_lost_without_a_word(folder, settings, tmp_path):
    (folder / "lonely.png").write_bytes(picture(9, image_format="PNG"))
    write_sound(folder / "deep/alone.flac", tone(9))
    (folder / "endless.png").write_bytes(picture(9, image_format="PNG")[:-12])  # all its pixels are there
    write_sound(folder / "endless.wav", tone(9))
    (folder / "cut.jpg").write_bytes(picture(9)[:-200])
    write_sound(folder / "cut.wav", tone(9))
    (folder / "mute.jpg").write_bytes(picture(9))
    write_sound(folder / "mute.wav", np.zeros(90_000))
    (folder / "broken.jpg").write_bytes(picture(9))
    (folder / "broken.mp3").write_bytes(b"no sound at all" * 100)
    (folder / "half.jpg").write_bytes(picture(9))
    write_sound(folder / "half.wav", np.concatenate([tone(9, 5.0), np.zeros(80_000)]))
    run = tmp_path / "run"

    made = make_pairs(folder, run, settings(shard_size=4))

    assert made.rows.rows_in == made.rows.rows_out + sum(made.rows.rejected.values())
    assert made.rows.rejected == {"missing": 2, "silent": 1, "unreadable": 3}
    assert rejects(run) == {
        "lonely_2epng": "missing",
        "deep_2falone_2eflac": "missing",
        "cut_2ejpg": "unreadable",
        "endless_2epng": "unreadable",
        "mute_2ejpg": "silent",
        "broken_2ejpg": "unreadable",
        "half.wav#5": "silent",  # a window; the pair stays, and hears the other one
    }
    assert [scene["sources"][0]["clip"] for scene in records(run)["half_2ejpg"]["scenes"]] == ["half.wav#0"] * 2
    clips = [read_commit(path).commit.clips for path in sorted((run / "commits/features").glob("*/*.json"))]
    assert sum(count.rows_in for count in clips if count) == 2 + 1 + 1 + 2 + 1 + 2  # a to e, and half
    assert sum(count.rows_out for count in clips if count) == 2 + 1 + 1 + 2 + 1 + 1
    assert verify(run).damage == ()


def test_a_table_names_pairs_and_what_is_known_of_them(folder, settings, tmp_path):
    rows = [
        ("a.jpg", "d.wav", "dog", "a dog barks", "upload/1", "validation", ""),
        ("b.jpg", "d.wav", "cat", "", "upload/1", "", "4.5"),
        ("b.jpg", "a.wav", "", "", "", "train", "0"),
        ("b.jpg", "a.wav", "", "", "", "train", "0"),
        ("", "", "", "", "", "", ""),
        ("gone.jpg", "a.wav", "", "", "", "", ""),
        ("c.jpg", "../mine/a.wav", "", "", "", "", ""),
        ("c.jpg", "", "", "", "", "", ""),
        ("e.jpg", "e.wav", "", "", "", "", "3"),
    ]
    table = write_csv(folder / "t.csv", ("image", "sound", "label", "caption", "recording", "split", "start_sec"), rows)
    (folder / "b.txt").write_text("what stands beside it")
    run = tmp_path / "run"

    made = make_pairs(table, run, settings(shard_size=3))

    assert dict(made.samples) == {"train": 2, "validation": 1}
    train = records(run)
    assert sorted(train) == sorted([escape_key("b.jpg"), escape_key("b.jpg#1")])
    (held_out,) = records(run, "validation").values()
    (source,) = held_out["scenes"][0]["sources"]
    assert source == {
        "clip": "d.wav#0", "concept": "dog", "description": "dog", "label": "dog", "recording": "upload/1",
    }  # fmt: skip
    assert held_out["scenes"][0]["caption"] == "a dog barks"
    scenes = train["b_2ejpg"]["scenes"]
    assert [scene["sources"][0]["clip"] for scene in scenes] == ["d.wav#4.5", "d.wav#9.5"]
    assert scenes[0]["caption"] == "what stands beside it"
    assert opened(run, split="validation").recordings() == ["upload/1"]
    assert made.rows.rejected == {"duplicate_key": 1, "missing": 3, "too_short": 1}
    assert rejects(run)["e_2ejpg"] == "too_short"


def test_each_pair_of_an_image_that_cannot_be_read_is_named(folder, settings, tmp_path):
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(64))
    rows = [("a.jpg", "a.wav"), ("phone.heic", "b.wav"), ("phone.heic", "c.wav")]
    make_pairs(write_csv(folder / "t.csv", ("image", "sound"), rows), tmp_path / "run", settings())
    assert rejects(tmp_path / "run") == {"phone_2eheic": "unsupported", "phone_2eheic_231": "unsupported"}


def test_the_split_follows_the_recording(folder, settings):
    table = write_csv(
        folder / "t.csv", ("image", "sound", "recording"), [(f"{n}.jpg", f"{n}.wav", f"r{n // 2}") for n in range(40)]
    )
    for n in range(40):
        (folder / f"{n}.jpg").touch()
        (folder / f"{n}.wav").touch()
    refs = list_pairs(table, settings(validation=0.4, seed=3))
    assert {ref.recording: ref.split for ref in refs} == {
        f"r{n}": split_of(3, "recording", f"r{n}", 0.4) for n in range(20)
    }
    assert len({(ref.recording, ref.split) for ref in refs}) == 20
    assert {ref.split for ref in refs} == {"train", "validation"}


def test_an_image_in_both_splits_is_said(folder, settings, caplog):
    rows = [("a.jpg", "a.wav", "train"), ("a.jpg", "b.wav", "validation")]
    list_pairs(write_csv(folder / "t.csv", ("image", "sound", "split"), rows), settings())
    assert "1 images are in both splits" in caplog.text


def test_the_same_command_resumes_and_gives_the_same_bytes(folder, settings, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    make_pairs(folder, whole, settings(shard_size=2))
    make_pairs(folder, torn, settings(shard_size=2))
    (first, second, third) = commit_files(torn, "features", next((torn / "commits/features").iterdir()).name)
    standing = Path(str(first)).stat().st_mtime_ns
    Path(str(second)).unlink()  # as where it was killed between a unit's files and its commit
    (torn / read_commit(third).commit.files[0].path).write_bytes(b"cut")

    made = make_pairs(folder, torn, settings(shard_size=2))

    assert made.rows.rows_out == 5
    assert Path(str(first)).stat().st_mtime_ns == standing
    assert hash_run(torn) == hash_run(whole)


def test_new_pairs_become_new_units(folder, settings, tmp_path):
    run = tmp_path / "run"
    make_pairs(folder, run, settings())
    before = hash_run(run)
    (folder / "0new.jpg").write_bytes(picture(7))
    write_sound(folder / "0new.ogg", tone(7))

    assert make_pairs(folder, run, settings()).rows.rows_out == 6
    assert before.items() <= hash_run(run).items()
    assert (run / layout.features("train", "000001")).is_file()


def test_pairs_train_beside_a_run_of_sonify(folder, settings, networks, tmp_path):
    run = tmp_path / "run"
    make_pairs(folder, run, settings(windows=1))
    data = opened(run)
    models = {name: json.loads((run / "run.json").read_text())["models"][name] for name in networks.values()}
    other = make_feature_run(
        tmp_path / "other",
        latent_shape=(4, 8, 8),
        audio_shape=(data.audio_shape[0], 32),
        features=networks,
        models=models,
    )
    assert opened(run, other).num_images == 5 + 8


BAD = {
    "empty": (lambda root: [path.unlink() for path in root.glob("*.*")], "holds no pair of an image and a sound; name"),
    "no partner": (lambda root: [path.unlink() for path in root.glob("*.wav")], "a.jpg: no sound has its name"),
    "two sounds": (lambda root: write_sound(root / "a.flac", tone(1)), "a.flac and a.wav are two sounds of one name"),
    "two images": (lambda root: (root / "a.png").write_bytes(b""), "a.jpg and a.png are two images of one name"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_is_none_of_pairs_is_one_line(folder, settings, tmp_path, case):
    change, message = BAD[case]
    change(folder)
    with refused(message):
        make_pairs(folder, tmp_path / "run", settings())
    assert not (tmp_path / "run").exists()


TABLES = {
    "column": ("picture,sound\na.jpg,a.wav\n", r"expected the columns image, sound in its first line, found"),
    "split": ("image,sound,split\na.jpg,a.wav,test\n", "row 2: split is 'test', expected train, validation or nothing"),
    "start": ("image,sound,start_sec\na.jpg,a.wav,soon\n", "row 2: start_sec is 'soon', expected seconds from 0"),
    "nan": ("image,sound,start_sec\na.jpg,a.wav,nan\n", "start_sec is 'nan'"),
    "none": ("image,sound\n", "holds no pair of an image and a sound"),
    "names": ("image,sound\nx.jpg,y.wav\n", "x.jpg: no such image below the table's folder"),
    "long": (f"image,sound\n{'x' * 300}.jpg,a.wav\n", "no such image below the table's folder: 'xxx"),
    "outside": ("image,sound\na.jpg,/etc/passwd\n", "no such sound below the table's folder: '/etc/passwd'"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_is_none_of_pairs_is_one_line(folder, settings, tmp_path, case):
    text, message = TABLES[case]
    (folder / "t.csv").write_text(text)
    with refused(message):
        make_pairs(folder / "t.csv", tmp_path / "run", settings())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"windows": 1}, "windows was 2 then, is 1 now"),
        ({"validation": 0.5}, "validation was 0.0 then, is 0.5 now"),
        ({"clip_seconds": 2.0}, "clip_seconds was 5.0 then, is 2.0 now"),
        ({"lufs": [-20, -20]}, "lufs was "),
        ({"seed": 1}, "seed was 0 then, is 1 now"),
        ({"size": 96}, "size was 64 then, is 96 now"),
        ({"flip": True}, "flip was False then, is True now"),
    ],
)
def test_another_configuration_in_the_same_run_is_one_line(folder, settings, tmp_path, keys, message):
    make_pairs(folder, tmp_path / "run", settings())
    before = hash_run(tmp_path / "run")
    with refused(message):
        make_pairs(folder, tmp_path / "run", settings(**keys))
    assert hash_run(tmp_path / "run") == before


def test_another_sound_of_the_same_image_is_another_pair(folder, settings, tmp_path):
    make_pairs(folder, tmp_path / "run", settings())
    shutil.move(folder / "a.wav", folder / "a.WAV")
    with refused("a.jpg is another pair now than when it was listed"):
        make_pairs(folder, tmp_path / "run", settings())


def test_a_run_of_sonify_takes_no_pairs(folder, settings, tmp_path):
    make_feature_run(tmp_path / "run")
    with refused("is a run of `sonify`, and not of pairs"):
        make_pairs(folder, tmp_path / "run", settings())


def test_a_run_with_other_stages_takes_no_pairs(folder, settings, tmp_path):
    run = tmp_path / "run"
    make_pairs(folder, run, settings())
    record = require_record(run)
    write_record(run, replace(record, stages={**record.stages, "pair": record.stages["features"]}))
    with refused("is a run of `sonify`, and not of pairs"):
        make_pairs(folder, run, settings())


def test_a_folder_that_holds_something_else_takes_no_pairs(folder, settings, tmp_path):
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "suite.json").write_text("{}")
    with refused("suite: holds something else than a run of pairs .such as 'suite.json'.; choose another place"):
        make_pairs(folder, tmp_path / "suite", settings())
    assert [path.name for path in (tmp_path / "suite").iterdir()] == ["suite.json"]


def test_a_run_that_was_killed_before_its_record_goes_on(folder, settings, tmp_path):
    make_pairs(folder, tmp_path / "run", settings())
    for path in (tmp_path / "run").iterdir():
        if path.name not in ("lock", "units"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert make_pairs(folder, tmp_path / "run", settings()).rows.rows_out


def test_no_pair_that_can_be_used_is_an_error(folder, settings, tmp_path):
    for path in folder.glob("*.jpg"):
        path.write_bytes(b"none")
    with refused("no pair could be used", WorkError):
        make_pairs(folder, tmp_path / "run", settings())


def test_a_run_inside_its_folder_is_refused(folder, settings):
    with refused("the run would read its own output"):
        make_pairs(folder, folder / "run", settings())


@pytest.mark.parametrize("start_sec", [0.0, 2.0, 5.0, 7.25])
def test_windows_hold_the_recording_from_where_they_start(tmp_path, start_sec):
    sound = write_sound(tmp_path / "s.wav", noise(1, 12 * 16_000))
    whole = np.concatenate([samples for _, samples in cut_windows(sound, 0.0, 3, 5.0)])[: 12 * 16_000]
    windows = cut_windows(sound, start_sec, 2, 5.0)
    assert [start for start, _ in windows] == [start_sec, start_sec + 5][: len(windows)]
    for start, samples in windows:
        at = round(start * 16_000)
        rest = whole[at : at + 80_000]
        assert np.array_equal(samples[: rest.size], rest)
        assert not samples[rest.size :].any()
    assert len(windows) == (1 if start_sec > 6 else 2)


def test_a_tail_under_a_second_is_no_window_and_a_whole_recording_that_short_is_one(tmp_path):
    for seconds, expected in ((5.9, [0.0]), (6.0, [0.0, 5.0]), (0.3, [0.0])):
        sound = write_sound(tmp_path / "s.wav", noise(1, round(seconds * 16_000)))
        assert [start for start, _ in cut_windows(sound, 0.0, 2, 5.0)] == expected


def test_a_pair_that_begins_after_its_sound_is_too_short(tmp_path):
    sound = write_sound(tmp_path / "s.wav", noise(1, 3 * 16_000))
    with pytest.raises(UnreadableSound) as caught:
        cut_windows(sound, 3.0, 2, 5.0)
    assert caught.value.reason == "too_short"


def test_the_command_says_what_it_made_and_what_left(folder, networks, tmp_path, capsys):
    (folder / "lonely.jpg").write_bytes(picture(9))
    keys = [f"{name}={value}" for name, value in networks.items()]
    assert main([str(folder), "--out", str(tmp_path / "run"), "size=64", "validation=0", *keys]) == 0
    out = capsys.readouterr().out
    assert "5 of 6 pairs (5 train, 0 validation); left: 1 missing" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sizes=64"], "sizes"),
        (["size=soon"], "size"),
        (["size"], "size"),
        (["clip_seconds=30"], "at most 10.24 seconds"),
    ],
)
def test_a_wrong_word_is_one_line(folder, tmp_path, capsys, words, message):
    assert main([str(folder), "--out", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_archives_hold_what_the_loader_allows(folder, settings, tmp_path):
    make_pairs(folder, tmp_path / "run", settings(flip=True, std=True))
    archive = (tmp_path / "run" / layout.features("train", "000000")).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = {name.partition(".")[2] for name in tar.getnames()}
    assert names == {
        *("json", "latent.npy", "latent_std.npy", "latent_flip.npy", "latent_flip_std.npy"),
        *("pairs-0.audio.npy", "pairs-1.audio.npy"),
    }
    assert opened(tmp_path / "run").num_images == 5


def test_nothing_is_there(settings, tmp_path):
    with pytest.raises(InputError, match="nothing is there"):
        make_pairs(tmp_path / "none", tmp_path / "run", settings())
