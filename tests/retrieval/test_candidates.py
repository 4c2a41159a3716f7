import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonify.config import Limit, Retrieval, TextEncoder
from sonify.retrieval.candidates import (
    Candidates,
    ClipIndex,
    Missed,
    PoolClips,
    SplitPool,
    choose_candidates,
    draw_position,
    draw_weights,
    list_length,
    score_similarities,
)
from sonify.retrieval.encoders import load_encoder, query_of
from sonify.retrieval.limits import query_limit
from sonify.rows import Concept, Reason

PAPER = Retrieval(margin=0.0)


def choose(similarities, retrieval=PAPER, recordings=None):
    similarities = np.array(similarities, dtype=np.float32)
    clips = np.arange(len(similarities)) + 100
    if recordings is None:
        recordings = np.arange(len(similarities))
    return choose_candidates(clips, similarities, np.array(recordings), retrieval)


@pytest.mark.parametrize(("pool", "length"), [(3, 3), (80, 8), (400, 8), (1000, 20), (500_000, 100)])
def test_the_list_is_short_in_a_small_pool(pool, length):
    assert list_length(Retrieval(), pool) == length


def test_the_share_of_a_pool_is_taken_as_it_is_written():
    """Neither grows faster than the pool, so they agree at every size if they do on both sides of each step."""
    wide = Retrieval(top_k=10**6, top_k_share=0.02)
    sizes = (size for step in range(50, 1_000_001, 50) for size in (step - 1, step))
    assert all(list_length(wide, size) == min(size, max(8, size // 50)) for size in sizes)
    assert list_length(Retrieval(top_k_share=0.29), 100) == 29
    assert [list_length(Retrieval(top_k_share=1), size) for size in (5, 70, 1000)] == [5, 70, 100]


@pytest.mark.parametrize(("pool", "length"), [(3, 3), (80, 80), (99, 99), (100, 100), (500_000, 100)])
def test_without_a_share_all_of_the_top_k_are_looked_at(pool, length):
    assert list_length(Retrieval(top_k_share=None), pool) == length


@pytest.mark.parametrize(("most", "left"), [(None, 54), (3, 3), (20, 20), (100, 54)])
def test_as_many_clips_of_a_recording_are_candidates_as_are_allowed(most, left):
    chosen = choose([0.5] * 54, Retrieval(margin=0, clips_per_recording=most), recordings=[7] * 54)
    assert len(chosen.clips) == left


def test_signed_square_root_keeps_the_sign():
    scores = score_similarities(np.array([0.25, 0.0, -0.09]), signed_sqrt=True)
    assert np.allclose(scores, [0.5, 0.0, -0.3])


def test_threshold_is_the_mean_of_the_top_k_scores():
    chosen = choose([0.81, 0.64, 0.25, 0.16])
    assert chosen.threshold == pytest.approx((0.9 + 0.8 + 0.5 + 0.4) / 4)
    assert chosen.clips.tolist() == [100, 101]


def test_margin_keeps_only_what_is_near_the_best():
    similarities = [0.8, 0.7, 0.63, 0.62, 0.0, 0.0, 0.0, 0.0]
    assert choose(similarities).clips.tolist() == [100, 101, 102, 103]
    assert choose(similarities, Retrieval(margin=0.8)).clips.tolist() == [100, 101]


@pytest.mark.parametrize("similarities", [[0.1] * 7, [-0.5, -0.6, -0.7], [0.0, 0.0], [1e-8, -1e-8]])
def test_the_best_clip_always_stays(similarities):
    for retrieval in (PAPER, Retrieval(margin=0.8), Retrieval(signed_sqrt=False)):
        assert choose(similarities, retrieval).clips[0] == 100


def test_at_most_three_clips_of_one_recording():
    chosen = choose([0.9, 0.9, 0.9, 0.9, 0.9, 0.9], recordings=[7, 7, 8, 7, 7, 8])
    assert chosen.clips.tolist() == [100, 101, 102, 103, 105]


def test_draw_is_proportional_to_the_score():
    scores = np.array([0.6, 0.3, 0.1])
    grid = [draw_position(draw_weights(scores, PAPER), u) for u in (np.arange(1000) + 0.5) / 1000]
    assert np.bincount(grid).tolist() == [600, 300, 100]


def test_draw_can_be_uniform_or_softmax():
    scores = np.array([0.6, 0.3])
    grid = np.linspace(0, 1, 1000, endpoint=False)
    uniform = [draw_position(draw_weights(scores, Retrieval(draw="uniform")), u) for u in grid]
    softmax = [draw_position(draw_weights(scores, Retrieval(draw="softmax", temperature=0.1)), u) for u in grid]
    assert np.bincount(uniform).tolist() == [500, 500]
    assert np.bincount(softmax)[0] / 1000 == pytest.approx(1 / (1 + np.exp(-3)), abs=0.002)


def test_draw_takes_the_best_where_no_score_is_positive():
    assert draw_position(draw_weights(np.array([-0.1, -0.2]), PAPER), 0.99) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1, exclude_max=True))
def test_draw_always_lands_inside(scores, u):
    assert 0 <= draw_position(draw_weights(np.array(scores), PAPER), u) < len(scores)


def unit_rows(n, dimension=16, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_search_is_exact():
    pool, queries = unit_rows(500), unit_rows(20, seed=1)
    index = ClipIndex(pool, threads=1)
    for query, ranking in zip(queries, index.rank(queries, 10), strict=True):
        clips, similarities = index.groups.top_clips(ranking, 10, u=0.0)
        expected = np.argsort(-(pool @ query))[:10]
        assert clips.tolist() == expected.tolist()
        assert np.allclose(similarities, pool[expected] @ query, atol=1e-6)


def test_equal_clips_share_the_last_seats_evenly():
    one, other = unit_rows(2)
    pool = np.stack([one] * 3 + [other] * 40)
    index = ClipIndex(pool, threads=1)
    (ranking,) = index.rank((one * 0.6 + other * 0.4)[None], 8)
    seen = np.zeros(43, dtype=int)
    for u in np.linspace(0, 1, 400, endpoint=False):
        clips, similarities = index.groups.top_clips(ranking, 8, u)
        assert len(set(clips.tolist())) == 8
        assert np.all(np.diff(similarities) <= 0)
        seen[clips] += 1
    assert seen[:3].tolist() == [400, 400, 400]
    assert seen[3:].min() >= 45
    assert seen[3:].max() <= 55


def test_groups_that_are_as_similar_share_the_last_seats():
    """As the clips of several kinds of one thing do, which is all that was asked for: none is left out by its place."""
    kinds = np.eye(4, 16, dtype=np.float32)
    pool = np.repeat(kinds, 5, axis=0)
    index = ClipIndex(pool, threads=1)
    (ranking,) = index.rank(np.array([[1.0, 0.5, 0.5, 0.5, *[0.0] * 12]], np.float32), 8)
    seen = np.zeros(20, dtype=int)
    for u in np.linspace(0, 1, 300, endpoint=False):
        clips, similarities = index.groups.top_clips(ranking, 8, u)
        assert len(set(clips.tolist())) == 8
        assert np.allclose(similarities, [1.0] * 5 + [0.5] * 3)
        seen[clips] += 1
    assert seen[:5].tolist() == [300] * 5
    assert set(seen[5:]) == {60}


@pytest.mark.parametrize(("similarity", "most"), [(0.5, np.inf), (1.25, 1.0), (0.0, np.inf)])
@pytest.mark.parametrize("better", [0, 3])
def test_every_clip_of_one_similarity_gets_a_last_seat_equally_often(similarity, most, better):
    """Though each differs from the others, and far more of them tie than are asked for."""
    tied = similarity * np.eye(1, 64) + np.eye(64)[10:40]
    best = (similarity + 0.25 * np.arange(1, better + 1)[:, None]) * np.eye(1, 64) + np.eye(64)[50 : 50 + better]
    index = ClipIndex(np.concatenate([tied, best]).astype(np.float32), threads=1)
    (ranking,) = index.rank(np.eye(1, 64, dtype=np.float32), 8, most)
    seen = np.zeros(30 + better, dtype=int)
    for u in np.linspace(0, 1, 990, endpoint=False):
        clips, similarities = index.groups.top_clips(ranking, 8, u)
        assert len(set(clips.tolist())) == 8
        assert np.all(np.diff(similarities) <= 0)
        seen[clips] += 1
    if most == 1:  # those that would be better are as good
        assert set(seen.tolist()) == {990 * 8 // (30 + better)}
    else:
        assert set(seen[:30].tolist()) == {990 * (8 - better) // 30}
        assert set(seen[30:].tolist()) <= {990}


def test_ties_of_groups_that_no_seat_reaches_take_none():
    kinds = np.eye(4, 16, dtype=np.float32)
    index = ClipIndex(np.concatenate([np.repeat(kinds[:1], 20, axis=0), kinds[1:]]), threads=1)
    (ranking,) = index.rank(np.eye(1, 16, dtype=np.float32), 2)
    for u in np.linspace(0, 1, 100, endpoint=False):
        clips, similarities = index.groups.top_clips(ranking, 2, u)
        assert (clips < 20).all()
        assert similarities.tolist() == [1, 1]


@pytest.mark.parametrize("length", [1, 5, 9])
def test_a_list_never_exceeds_the_pool(length):
    index = ClipIndex(unit_rows(9), threads=1)
    (ranking,) = index.rank(unit_rows(1, seed=3), length)
    clips, _ = index.groups.top_clips(ranking, length, u=0.999999)
    assert len(set(clips.tolist())) == length


def test_the_same_batch_gives_the_same_scores_twice():
    pool, queries = unit_rows(300), unit_rows(33, seed=4)
    first = ClipIndex(pool, threads=1).rank(queries, 5)
    second = ClipIndex(pool, threads=1).rank(queries, 5)
    assert all(np.array_equal(a.similarities, b.similarities) for a, b in zip(first, second, strict=True))


def pool_of(texts, limit=None, **changes):
    """A split of clips that are called `texts`, each a recording of its own."""
    retrieval = Retrieval(limit=limit, **changes)
    encoder = load_encoder(retrieval.encoder)
    clips = PoolClips(
        clips=texts,
        recordings=np.arange(len(texts)),
        loudness_lufs=np.zeros(len(texts)),
        embeddings=encoder(texts),
    )
    return SplitPool(clips, encoder, retrieval, 1, query_limit(limit, encoder.identity))


def consider(pool, name):
    concept = Concept(concept=name, description="")
    query = query_of(concept, "description")
    return pool.consider(concept, pool.rank([query])[query], ("key", name))


def test_each_query_has_its_limit_and_the_near_miss_is_told():
    pool = pool_of(["dog", "engine", "rain", "wind"], Limit(risk=0.05))
    kept, missed = consider(pool, "puppy"), consider(pool, "shriek of a hawk")
    assert isinstance(kept, Candidates)
    assert [pool.clips[clip] for clip in kept.clips] == ["dog"]
    assert isinstance(missed, Missed)
    assert missed.reason == Reason.NO_MATCH
    near = consider(pool_of(["dog", "engine"], Limit(risk=0.05)), "ship horn")
    assert isinstance(near, Missed)
    assert (near.clip, round(near.cosine, 1)) == (1, 0.4)


def test_a_clip_below_the_limit_is_no_candidate():
    texts = ["engine", "engine, music, wind", "rain", "wind", "dog", "cat", "frog", "owl"]
    free = consider(pool_of(texts, margin=0.0, signed_sqrt=False), "minivan")
    held = consider(pool_of(texts, Limit(risk=0.05), margin=0.0, signed_sqrt=False), "minivan")
    assert isinstance(free, Candidates)
    assert isinstance(held, Candidates)
    assert (free.clips.tolist(), held.clips.tolist()) == ([0, 1], [0])
    concept = Concept(concept="minivan", description="")
    query = query_of(concept, "description")
    pool = pool_of(texts, Limit(risk=0.05))
    limit = pool.rank([query])[query].limit
    assert 0.3 < limit < 0.8
    assert (held.similarities >= limit).all()
    drawn = pool.draw(concept, pool.rank([query])[query], set(), ("key",))
    assert not isinstance(drawn, Missed)
    assert drawn.limit == limit


def test_similarity_is_at_most_one_where_a_clip_fits_in_several_ways():
    found = consider(pool_of(["dog, cat, cow, horse, frog, crow, owl, bee, pig", "rain"]), "animal")
    assert isinstance(found, Candidates)
    assert found.similarities.max() <= 1


def test_an_encoder_without_names_gets_each_text_once():
    pool = pool_of(["dog", "rain"], encoder=TextEncoder(kind="text", matching="words"))
    queries = [query_of(Concept(concept=name, description="a dog barks"), "description") for name in ("dog", "hound")]
    rankings = pool.rank(queries)
    assert rankings[queries[0]] is rankings[queries[1]]
    assert pool.rank([]) == {}
    assert pool.standing([]) == {}


def test_a_pool_of_one_class_answers_that_and_nothing_else():
    pool = pool_of(["dog"] * 9, Limit(risk=0.05))
    assert isinstance(consider(pool, "terrier"), Candidates)
    for name in ("cat", "perro ladrando", "\u72ac", "", "dog house", "word " * 400):
        assert isinstance(consider(pool, name), Missed), name


def test_the_standing_of_a_query_is_its_likeness_to_the_bank():
    pool = pool_of(["dog"])
    broad, narrow = (query_of(Concept(concept=name, description=""), "description") for name in ("animal", "sneezing"))
    found = pool.standing([broad, narrow, broad])
    assert found[broad][0] > found[narrow][0] > 0
    assert found[broad][1] > 0
