"""Other recordings for the concepts that a run has: no model is asked again."""

import pytest

from sonify.errors import InputError, WorkError
from sonify.installed import spell_redo
from sonify.report.verify import verify
from sonify.running import run
from tests.builders import SUBJECTS, hash_run, picture, say, small_config, small_input, sounds_in, vlm_at, write_sounds
from tests.vlm.faulty_server import serving


@pytest.fixture
def root(tmp_path):
    small_input(tmp_path)
    write_sounds(tmp_path / "others", {f"other-{n:03d}.flac": f"a recording of a {SUBJECTS[n % 8]}" for n in range(16)})
    return tmp_path


def others(root):
    return sounds_in(root / "others", name="others")


def test_another_pool_takes_the_concepts_over_and_asks_nobody(root):
    with serving(answer=say) as server:
        concepts = {"extractors": [vlm_at(server.url)], "check": True}
        first = small_config(root, concepts=concepts)
        run(first)
        asked = len(server.seen)
    # the server is gone by now: a question would fail
    second = small_config(root, run="second", audio=others(root), concepts=concepts)
    counts = run(second, concepts_from=first.run_dir)
    assert asked > 0
    assert counts["concepts/eye"].rows_in == 24
    mine, theirs = hash_run(second.run_dir), hash_run(first.run_dir)
    kept = {path: sha for path, sha in theirs.items() if path.startswith(("concepts", "checks", "answers"))}
    assert kept.items() <= mine.items()
    assert mine["pairs/000000.parquet"] != theirs["pairs/000000.parquet"]
    assert verify(second.run_dir).damage == ()
    run(second, concepts_from=first.run_dir)  # the same command resumes
    assert hash_run(second.run_dir) == mine


def test_a_killed_takeover_goes_on(root):
    first = small_config(root)
    run(first)
    second = small_config(root, run="second", audio=others(root))
    run(second, concepts_from=first.run_dir)
    expected = hash_run(second.run_dir)
    third = small_config(root, run="third", audio=others(root))
    (third.run_dir / "concepts" / "captions").mkdir(parents=True)
    name = "concepts/captions/000000.parquet"
    (third.run_dir / name).write_bytes((first.run_dir / name).read_bytes())
    run(third, concepts_from=first.run_dir)
    assert hash_run(third.run_dir) == expected


def test_a_run_with_other_concepts_is_left_alone(root):
    first = small_config(root)
    run(first)
    (root / "photos" / "new.jpg").write_bytes(picture(99))
    (root / "photos" / "new.txt").write_text("a dog")
    second = small_config(root, run="second")
    run(second)
    before = hash_run(second.run_dir)
    with pytest.raises(InputError, match="concepts of its own"):
        run(second, concepts_from=first.run_dir)
    assert hash_run(second.run_dir) == before


def test_damage_is_not_taken_over(root):
    with serving(answer=say) as server:
        concepts = {"extractors": [vlm_at(server.url)]}
        first = small_config(root, concepts=concepts)
        run(first)
    table = first.run_dir / "answers/eye/000001.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    second = small_config(root, run="second", audio=others(root), concepts=concepts)
    with pytest.raises(WorkError, match=r"answers/eye/000001\.parquet: damaged"):
        run(second, concepts_from=first.run_dir)


def test_other_images_are_refused(root):
    first = small_config(root)
    run(first)
    second = small_config(root, run="second", images={"shard_size": 5})
    with pytest.raises(InputError, match="shard_size"):
        run(second, concepts_from=first.run_dir)
    run(second)  # nothing was copied that stands in its way


def test_what_is_no_run_is_refused(root):
    with pytest.raises(InputError, match="not a run"):
        run(small_config(root), concepts_from=root / "photos")


def test_concepts_of_other_extractors_are_refused(root):
    first = small_config(root)
    run(first)
    second = small_config(root, run="second", concepts={"extractors": [{"kind": "captions", "name": "others"}]})
    with pytest.raises(InputError, match=r"it has concepts/captions, and this run asks concepts/others"):
        run(second, concepts_from=first.run_dir)


def edit(table, old, new):
    table.write_text(table.read_text().replace(old, new))


def test_an_edited_captions_table_is_said_and_changes_nothing_until_it_is_taken_over(root, caplog):
    config = small_config(root)
    run(config)
    before = hash_run(config.run_dir)
    edit(root / "photos" / "captions.csv", "a photo of a cat", "a photo of a frog")
    run(config)
    said = [message for message in caplog.messages if "says other things now" in message]
    assert said == [
        f"{root}/photos/captions.csv: it says other things now of 3 images that are listed already (first: '001.jpg');"
        f" what was listed stays, and `{spell_redo('concepts')}` takes the new over"
    ]
    assert hash_run(config.run_dir) == before
    caplog.clear()
    run(config, redo="concepts")
    assert hash_run(config.run_dir) != before
    run(config)
    assert not any("says other things" in message for message in caplog.messages)


def test_edited_metadata_is_said_and_changes_nothing_until_it_is_taken_over(root, caplog):
    config = small_config(root)
    run(config)
    before = hash_run(config.run_dir)
    edit(root / "sounds" / "metadata.csv", "000.flac,dog,CC0-1.0", "000.flac,dog,CC-BY-4.0")
    run(config)
    assert hash_run(config.run_dir) == before
    (said,) = [message for message in caplog.messages if "says other things now" in message]
    assert said.startswith(
        f"{root}/sounds/metadata.csv: it says other things now of 1 recording that is listed already"
    )
    assert "(first: '000.flac')" in said
    assert f"`{spell_redo('pool')}`" in said
    caplog.clear()
    run(config, redo="pool")
    assert hash_run(config.run_dir) != before
    assert not any("says other things" in message for message in caplog.messages)


def test_input_that_grows_is_no_edit(root, caplog):
    config = small_config(root)
    run(config)
    (root / "photos" / "new.jpg").write_bytes(picture(99))
    edit(root / "photos" / "captions.csv", "file,caption", "file,caption\nnew.jpg,a dog")
    assert run(config)["render"].rows_out == 25
    assert not any("says other things" in message for message in caplog.messages)


@pytest.mark.parametrize("table", ["photos/captions.csv", "sounds/metadata.csv"])
def test_rows_under_another_spelling_of_the_same_names_make_the_same_run(root, table):
    run(small_config(root))
    whole = (root / table).read_text()
    (root / table).write_text("".join(f".\\{line}" if n else line for n, line in enumerate(whole.splitlines(True))))
    again = small_config(root, run="again")
    run(again)
    assert hash_run(again.run_dir) == hash_run(root / "run")


def test_tables_that_meet_nothing_any_more_do_not_stop_a_run_that_has_begun(root, caplog):
    config = small_config(root)
    run(config)
    before = hash_run(config.run_dir)
    edit(root / "photos" / "captions.csv", ".jpg", "-x.jpg")
    edit(root / "sounds" / "metadata.csv", ".flac", "-x.flac")
    run(config)
    assert hash_run(config.run_dir) == before
    assert sum("none of its" in message for message in caplog.messages) == 2
    assert sum("says other things now" in message for message in caplog.messages) == 2
    with pytest.raises(InputError, match=r"captions\.csv: none of its 24 rows"):
        run(config, redo="concepts")
