from pathlib import Path

import numpy as np
import pytest

from sonify import layout
from sonify.config import Search
from sonify.errors import WorkError
from sonify.io.places import files_below
from sonify.io.write import remove
from sonify.retrieval.candidates import read_pool
from sonify.retrieval.encoders import load_encoder
from sonify.retrieval.search import RowSearch
from sonify.retrieval.vectors import Grouped, group_in_memory, share_grouped
from sonify.running import run
from tests.builders import small_config, small_input, sounds_in

DIMENSION = 8


def vectors_with_copies(n, distinct, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((distinct, DIMENSION)).astype(np.float32)
    return rows[rng.integers(0, distinct, n)]


def blocks_of(embeddings, size=17):
    return lambda: (embeddings[start : start + size] for start in range(0, len(embeddings), size))


@pytest.mark.parametrize("part", [np.arange(100), np.arange(3, 97, 2), np.array([0]), np.array([16, 17, 99])])
def test_shared_groups_are_those_in_memory(tmp_path, part):
    embeddings = vectors_with_copies(100, 30)
    shared = share_grouped(tmp_path, "train", "d", part, blocks_of(embeddings))
    alone = group_in_memory(embeddings[part])
    assert (shared.rows.vectors == alone.rows.vectors).all()
    assert shared.group_of_clip.tolist() == alone.group_of_clip.tolist()
    assert shared.rows.longest == pytest.approx(alone.rows.longest)
    assert (shared.rows.vectors[shared.group_of_clip] == embeddings[part]).all()


def test_a_large_pool_shares_its_halves_too(tmp_path, monkeypatch):
    monkeypatch.setattr("sonify.retrieval.vectors.use_halves", lambda _: True)
    monkeypatch.setattr("sonify.retrieval.halves.use_halves", lambda _: True)
    embeddings = vectors_with_copies(100, 30)
    shared = share_grouped(tmp_path, "train", "d", np.arange(100), blocks_of(embeddings)).rows
    alone = group_in_memory(embeddings).rows
    assert isinstance(shared.halves, np.memmap)
    assert alone.halves is not None
    assert (shared.halves == alone.halves).all()
    assert shared.residue == alone.residue


def test_other_clips_or_other_embeddings_are_another_file(tmp_path):
    embeddings, others = vectors_with_copies(100, 30), vectors_with_copies(100, 30, seed=1)
    given = [("d", np.arange(100), embeddings), ("d", np.arange(99), embeddings), ("e", np.arange(100), others)]
    for made_of, part, rows in given:
        found = share_grouped(tmp_path, "train", made_of, part, blocks_of(rows))
        assert (found.rows.vectors[found.group_of_clip] == rows[part]).all()
        entries = {name.split("/")[0] for name in files_below(tmp_path / layout.SEARCHED) if "/" in name}
        assert len(entries) == 1  # the one before is gone


def test_damaged_embeddings_are_not_shared(tmp_path):
    embeddings = vectors_with_copies(50, 30)
    with pytest.raises(WorkError, match="there are fewer than clips"):
        share_grouped(tmp_path, "train", "d", np.arange(100), blocks_of(embeddings))
    assert not [name for name in files_below(tmp_path / layout.SEARCHED) if not name.endswith(".lock")]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_no_numbers_are_not_searched(tmp_path, bad):
    embeddings = vectors_with_copies(100, 30)
    embeddings[40, 3] = bad
    shared = share_grouped(tmp_path, "train", "d", np.arange(100), blocks_of(embeddings))
    for rows in (shared.rows, group_in_memory(embeddings).rows):
        with pytest.raises(WorkError, match="holds NaN or infinity"):
            RowSearch(rows, 1, Search())


def pooled(tmp_path):
    small_input(tmp_path)
    config = small_config(tmp_path, audio=sounds_in(tmp_path / "sounds", validation=0.3))
    run(config, stages=["pool", "embeddings"])
    return config, load_encoder(config.retrieval.encoder)


def unfolded(clips):
    """What each clip's vector is, shared or not."""
    found = clips.embeddings
    return found if isinstance(found, np.ndarray) else found.rows.vectors[found.group_of_clip]


def test_a_pool_that_is_shared_is_the_same_pool(tmp_path):
    config, encoder = pooled(tmp_path)
    alone, shared = (read_pool(config.run_dir, encoder, shared=shared) for shared in (False, True))
    assert alone.keys() == shared.keys() == {"train", "validation"}
    for split, clips in alone.items():
        found = shared[split].embeddings
        assert isinstance(found, Grouped)
        assert isinstance(found.rows.vectors, np.memmap)
        assert (unfolded(clips) == unfolded(shared[split])).all()
        assert clips.clips == shared[split].clips


def test_embeddings_that_changed_are_shared_anew(tmp_path):
    config, encoder = pooled(tmp_path)
    before = read_pool(config.run_dir, encoder, shared=True)["train"]
    place = config.run_dir / layout.embeddings(encoder.parts[0].id, "000000")
    assert isinstance(place, Path)
    np.save(place, -np.load(place))
    after = read_pool(config.run_dir, encoder, shared=True)["train"]
    assert (unfolded(after) == -unfolded(before)).all()


def test_nothing_is_left_of_what_was_shared(tmp_path):
    config, _ = pooled(tmp_path)
    run(config)
    assert not (config.run_dir / layout.TEMPORARY).exists()


def test_what_nobody_committed_is_not_shared(tmp_path):
    config, encoder = pooled(tmp_path)
    remove(config.run_dir / layout.COMMITS / "embeddings")
    assert isinstance(read_pool(config.run_dir, encoder, shared=True)["train"].embeddings, np.ndarray)
