import numpy as np
import pytest

from sonify import layout
from sonify.errors import InputError
from sonify.io.write import sha256_of
from sonify.media.mixing import measure_loudness, pcm_sha256
from sonify.rows import Clip
from sonify.running import run
from tests.builders import small_config, small_input, stored, tone, write_sound


def pool_of(config):
    run(config, stages=["pool"])
    samples = np.load(config.run_dir / layout.audio("000000"), mmap_mode="r")
    return stored(config.run_dir / layout.CLIPS, Clip), samples


@pytest.fixture
def root(tmp_path):
    small_input(tmp_path, photos=1, recordings=2)
    return tmp_path


def test_a_long_recording_gives_clips_and_the_last_is_padded(root):
    write_sound(root / "sounds" / "long.wav", tone(3, seconds=34))
    clips, samples = pool_of(small_config(root))
    long = [(n, clip) for n, clip in enumerate(clips) if clip.file == "long.wav"]
    assert len(long) == 7
    assert [clip.start_sec for _, clip in long] == [0, 5, 10, 15, 20, 25, 30]
    assert long[-1][1].duration_sec == 4.0
    assert {clip.recording for _, clip in long} == {"folder/long.wav"}
    assert not samples[long[-1][0], 4 * 16000 :].any()


def test_stored_numbers_are_of_the_stored_samples(root):
    clips, samples = pool_of(small_config(root))
    assert samples.shape == (len(clips), 80_000)
    assert samples.dtype == np.int16
    for clip, row in zip(clips, samples, strict=True):
        assert clip.sha256 == pcm_sha256(np.asarray(row))
        assert clip.loudness_lufs == measure_loudness(np.asarray(row), 16000)


def test_silence_leaves_and_the_rest_of_its_recording_stays(root):
    half = np.concatenate([tone(1), np.zeros(5 * 16000)])
    write_sound(root / "sounds" / "half.wav", half)
    write_sound(root / "sounds" / "silent.wav", np.zeros(5 * 16000))
    config = small_config(root)
    clips, _ = pool_of(config)
    counts = run(config, stages=["pool"])["pool"]
    assert sum(clip.file == "half.wav" for clip in clips) == 1
    assert counts.rejected == {"silent": 1}


def test_exclusion_by_file_name_clip_hash_and_file_hash(root):
    clips, _ = pool_of(small_config(root))
    of_file = sha256_of(root / "sounds" / "000.flac")
    for line in ("000.flac", "000", clips[0].sha256, "folder/000.flac", of_file):
        (root / "exclude.txt").write_text(f"# evaluation\n{line}\n")
        run_name = f"run-{line[:5]}-{len(line)}".replace("/", "-")
        left, _ = pool_of(small_config(root, run=run_name, audio={"exclude": str(root / "exclude.txt")}))
        assert [clip.file for clip in left] == ["001.flac"], line


def test_an_exclusion_list_that_is_no_text_is_refused(root):
    (root / "exclude.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="exclusion list"):
        pool_of(small_config(root, audio={"exclude": str(root / "exclude.txt")}))


def test_a_recording_lies_in_one_split(root):
    for n in range(60):
        write_sound(root / "sounds" / f"x{n}.wav", tone(n, seconds=11))
    clips, _ = pool_of(small_config(root, audio={"validation": 0.3}))
    splits = {}
    for clip in clips:
        assert splits.setdefault(clip.recording, clip.split) == clip.split
    assert 5 < sum(split == "validation" for split in splits.values()) < 30
