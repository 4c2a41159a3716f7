import numpy as np
import pytest

from sonify import layout
from sonify.captions.ontology import class_ids_by_name, load_ontology
from sonify.config import Purity, Retrieval, Tagger
from sonify.config.models import Listener
from sonify.retrieval.candidates import Missed, PoolClips, SplitPool
from sonify.retrieval.confirm import ClipTags, Ear, is_speech, places, read_tags, relatives
from sonify.retrieval.encoders import JointEncoder, Part, query_of
from sonify.rows import Clip, Concept, HeardClip, Reason, Tag
from tests.builders import clip_row, write_table

TAGGER = Tagger(kind="tagger", floor=0.02, of_best=0.1)
SERVER = Listener(kind="endpoint", model="m", url="http://127.0.0.1:9/v1")


def tags_of(*clips, means=None):
    """What was heard in clips, each given as names and scores; a name that is no class names none."""
    flat = [(name, score) for clip in clips for name, score in clip.items()]
    names = sorted({name for name, _ in flat})
    ids = class_ids_by_name()
    return ClipTags(
        listener="ear",
        present=np.ones(len(clips), bool),
        starts=np.cumsum([0, *(len(clip) for clip in clips)]),
        classes=np.array([places()[ids[name]] if name in ids else -1 for name, _ in flat], np.int16),
        words=np.array([names.index(name) for name, _ in flat], np.int32),
        scores=np.array([score for _, score in flat], np.float32),
        means=np.array(means or [score for _, score in flat], np.float32),
        names=names,
    )


def judge(concept, *clips, confirm: Tagger | Listener = TAGGER, purity=None, description=""):
    ear = Ear(tags_of(*clips), confirm, purity)
    return ear.judge(query_of(Concept(concept=concept, description=description), "description"), np.arange(len(clips)))


def names(class_ids):
    return {load_ontology()[class_id].name for class_id in class_ids}


@pytest.mark.parametrize(
    ("concept", "heard", "confirmed"),
    [
        ("dog", {"Dog": 0.9}, True),
        ("dog", {"Bark": 0.9}, True),  # below it
        ("barking dog", {"Dog": 0.9}, True),  # above it, and not broad
        ("dog", {"Animal": 0.9}, False),  # above it, and broad
        ("dog", {"Cat": 0.9}, False),
        ("dog", {"Cat": 0.9, "Dog": 0.3}, True),
        ("dog", {"Cat": 0.9, "Dog": 0.05}, False),  # far below the best
        ("rain", {"Raindrop": 0.5}, True),
        ("thunder", {"Thunderstorm": 0.5}, True),
        ("helicopter", {"Fixed-wing aircraft, airplane": 0.8}, True),  # a close sibling
        ("car horn", {"Truck": 0.9}, False),  # an ancestor's other child
        ("dog", {"Silence": 1.0, "Dog": 0.06}, True),  # silence between barks is nothing against them
        ("dog", {"Inside, small room": 1.0, "Dog": 0.06}, True),
        ("dog", {"Silence": 1.0}, True),  # nothing was heard: nothing is contradicted
        ("dog", {"Dog": 0.015}, True),
        ("dog", {}, True),
        ("flumping", {"Cat": 1.0}, True),  # names no class: it cannot be contradicted
    ],
)
def test_a_clip_is_confirmed_by_its_class_or_a_near_relative(concept, heard, confirmed):
    assert judge(concept, heard).confirmed.tolist() == [confirmed]


def test_the_description_says_what_a_name_does_not():
    assert judge("rex", {"Cat": 1.0}, description="a dog barking").confirmed.tolist() == [False]
    assert judge("cat", {"Cat": 1.0}, description="a dog barking").confirmed.tolist() == [True]


def test_clips_are_judged_each_by_its_own_tags_in_any_order():
    tags = tags_of({"Cat": 0.9}, {}, {"Dog": 0.8, "Cat": 0.1}, {"Bark": 0.4})
    judged = Ear(tags, TAGGER, None).judge(
        query_of(Concept(concept="dog", description=""), "description"), np.array([3, 0, 2, 1, 2])
    )
    assert judged.confirmed.tolist() == [True, False, True, True, True]
    assert judged.support.round(4).tolist() == [0.4, 0.0, 0.8, 0.0, 0.8]


def test_limits_are_those_of_the_configuration():
    heard = {"Cat": 0.5, "Dog": 0.2}
    assert judge("dog", heard).confirmed[0]
    assert not judge("dog", heard, confirm=Tagger(kind="tagger", of_best=0.5)).confirmed[0]
    assert not judge("dog", heard, confirm=Tagger(kind="tagger", floor=0.3)).confirmed[0]


def test_relatives_of_a_class_are_those_that_say_the_same():
    assert names(relatives(class_ids_by_name()["Helicopter"])) >= {"Aircraft", "Helicopter", "Aircraft engine"}
    assert "Vehicle" not in names(relatives(class_ids_by_name()["Helicopter"]))
    for class_id, sound in load_ontology().items():
        found = relatives(class_id)
        assert class_id in found
        assert not any(load_ontology()[one].abstract for one in found - {class_id} if one in sound.distances)


# --- purity


def test_what_else_is_heard_counts_against_purity():
    judged = judge("dog", {"Dog": 0.9}, {"Dog": 0.9, "Cat": 0.3}, {"Dog": 0.9, "Cat": 0.3, "Music": 0.5}, {"Cat": 0.3})
    assert judged.purity[0] == 1
    assert np.all(np.diff(judged.purity) < 0)
    assert judged.purity[3] < 0.35


def test_relatives_what_is_above_and_silence_are_nothing_else():
    besides = {
        "Dog": 0.9,
        "Bark": 0.8,
        "Animal": 0.9,
        "Domestic animals, pets": 0.9,
        "Silence": 1.0,
        "Inside, small room": 1,
    }
    assert judge("dog", besides).purity.tolist() == [1.0]


def test_purity_weighs_the_draw_and_filters_only_on_request():
    clips = ({"Dog": 0.9}, {"Dog": 0.9, "Cat": 0.9})
    concept = Concept(concept="dog", description="")
    for purity, weights, confirmed in (
        (None, [1.0, 1.0], [True, True]),
        (Purity(), [1.0, 0.52], [True, True]),
        (Purity(weight=2), [1.0, 0.27], [True, True]),
        (Purity(weight=0, at_least=0.6), [1.0, 1.0], [True, False]),
    ):
        ear = Ear(tags_of(*clips), TAGGER, purity)
        judged = ear.judge(query_of(concept, "description"), np.arange(2))
        assert ear.weigh(judged).round(2).tolist() == weights
        assert judged.confirmed.tolist() == confirmed


def test_where_purity_is_not_known_it_weighs_nothing():
    ear = Ear(tags_of({"Cat": 1.0}, {"Dog": 0.5}), TAGGER, Purity())
    judged = ear.judge(query_of(Concept(concept="flumping", description=""), "description"), np.arange(2))
    assert ear.weigh(judged).tolist() == [1.0, 1.0]
    assert judged.support.tolist() == [0.0, 0.0]


# --- words of a model


@pytest.mark.parametrize(
    ("concept", "heard", "confirmed", "support"),
    [
        ("skis on snow", ("skis", "whoosh"), True, 1.0),
        ("flumping", ("Cat",), True, 0.0),
        ("dog", ("flump",), True, 0.0),  # names nothing that is known
        ("dog", ("flump", "Cat"), False, 0.0),
        ("dog sled", ("sled runners",), True, 1.0),
    ],
)
def test_words_without_a_class_confirm_by_themselves_and_contradict_nothing(concept, heard, confirmed, support):
    judged = judge(concept, dict.fromkeys(heard, 1.0), confirm=SERVER)
    assert judged.confirmed.tolist() == [confirmed]
    assert judged.support.tolist() == [support]


# --- speech


def test_speech_is_what_can_be_understood():
    speech = {name for name, class_id in class_ids_by_name().items() if is_speech(class_id)}
    assert speech == {
        "Speech", "Male speech, man speaking", "Female speech, woman speaking", "Child speech, kid speaking",
        "Conversation", "Narration, monologue", "Babbling", "Whispering",
    }  # fmt: skip
    assert not is_speech("")


def test_how_sure_the_listener_is_of_speech_is_its_best_score():
    ear = Ear(tags_of({"Dog": 0.9, "Conversation": 0.4, "Speech": 0.7}, {"Singing": 1.0}, {}), TAGGER, None)
    assert [round(ear.speech(clip), 4) for clip in range(3)] == [0.7, 0, 0]


# --- in a pool


class OneText:
    dimension = 2

    def __call__(self, texts):
        return np.tile(np.array([1, 0], np.float32), (len(texts), 1))


def pool_of(*clips, similarities=None, **retrieval):
    """A pool whose clips come first by their order, all of recordings of their own."""
    cosines = np.array(similarities or np.linspace(1, 0.9, len(clips)), np.float32)
    settings = Retrieval(**{"confirm": TAGGER, "margin": 0.0, "limit": None} | retrieval)
    return SplitPool(
        PoolClips(
            clips=[f"clip {n}" for n in range(len(clips))],
            recordings=np.arange(len(clips)),
            loudness_lufs=np.zeros(len(clips)),
            embeddings=np.stack([cosines, np.sqrt(1 - cosines**2)], 1),
            tags=tags_of(*clips) if settings.confirm else None,
        ),
        JointEncoder([Part(id="one", model="one", share=1.0, encoder=OneText())]),
        settings,
        threads=1,
    )


def draw(pool, concept="dog", key=("a",)):
    named = Concept(concept=concept, description="")
    query = query_of(named, "description")
    return pool.draw(named, pool.rank([query])[query], set(), key)


def test_only_confirmed_clips_are_candidates():
    pool = pool_of({"Cat": 1.0}, {"Dog": 0.9}, {"Cat": 1.0}, {"Bark": 0.9})
    drawn = [draw(pool, key=("n", n)) for n in range(40)]
    assert {one.clip for one in drawn} <= {1, 3}
    assert all(not isinstance(one, Missed) and one.evidence.support > 0.8 for one in drawn)
    assert {one.evidence.heard_by for one in drawn if not isinstance(one, Missed)} == {"ear"}


def test_where_none_is_confirmed_the_best_is_named_with_what_was_heard():
    missed = draw(pool_of({"Cat": 0.75, "Music": 0.25}, {"Cat": 1.0}))
    assert missed == Missed(reason=Reason.NOT_CONFIRMED, clip=0, cosine=1.0, heard="Cat 0.75; Music 0.25")


def test_a_confirmed_clip_below_the_limit_is_no_match_and_the_better_one_was_not_confirmed():
    pool = pool_of({"Cat": 1.0}, {"Dog": 1.0}, similarities=[0.9, 0.1], min_cosine=0.5)
    missed = draw(pool)
    assert isinstance(missed, Missed)
    assert (missed.reason, missed.clip) == (Reason.NOT_CONFIRMED, 0)
    unheard = draw(pool_of({"Cat": 1.0}, {"Dog": 1.0}, similarities=[0.4, 0.1], min_cosine=0.5))
    assert isinstance(unheard, Missed)
    assert unheard.reason == Reason.NO_MATCH  # nothing was good enough to be listened to


def test_a_purer_clip_is_drawn_more_often():
    clips = ({"Dog": 0.9, "Music": 0.9, "Speech": 0.9, "Rain": 0.9}, {"Dog": 0.9})
    pool = pool_of(*clips, similarities=[0.9, 0.9], purity=Purity(), signed_sqrt=False)
    plain = pool_of(*clips, similarities=[0.9, 0.9], signed_sqrt=False)
    share = [np.mean([draw(one, key=("n", n)).clip for n in range(200)]) for one in (pool, plain)]  # pyright: ignore[reportAttributeAccessIssue]
    assert share[0] > 0.7
    assert 0.4 < share[1] < 0.6


def test_nobody_who_listens_leaves_no_evidence():
    drawn = draw(pool_of({"Cat": 1.0}, confirm=None))
    assert not isinstance(drawn, Missed)
    assert drawn.evidence.heard_by == ""


def test_a_pool_of_one_class_confirms_its_own_and_nothing_else():
    pool = pool_of(*[{"Dog": 0.9, "Animal": 0.9}] * 20)
    assert not isinstance(draw(pool, "dog"), Missed)
    for concept in ("cat", "rain", "church bell"):
        missed = draw(pool, concept)
        assert isinstance(missed, Missed)
        assert missed.reason == Reason.NOT_CONFIRMED


def test_tags_are_read_beside_their_clips(tmp_path):
    rows = [clip_row(f"folder/{n}.flac#0") for n in range(4)]
    write_table(tmp_path / layout.clips("000000"), Clip, rows[:3])
    write_table(tmp_path / layout.clips("000001"), Clip, rows[3:])

    def heard(row, *tags):
        return HeardClip(clip=row.clip, sha256=row.sha256, listener="x", tags=tags)

    dog = Tag(name="Dog", class_id=class_ids_by_name()["Dog"], score=0.5, mean=0.25)
    speech = Tag(name="Speech", class_id=class_ids_by_name()["Speech"], score=0.75, mean=0.5)
    strange = Tag(name="flump", class_id="/m/nothing", score=0.125, mean=0.0625)
    # the second clip broke the listener
    write_table(tmp_path / layout.tags("ear", "000000"), HeardClip, [heard(rows[0], dog, strange), heard(rows[2], dog)])
    write_table(tmp_path / layout.tags("ear", "000001"), HeardClip, [heard(rows[3], speech, dog)])
    tags = read_tags(tmp_path, "ear", "an ear", drops_speech=False)
    assert tags.present.tolist() == [True, False, True, True]
    assert tags.starts.tolist() == [0, 2, 2, 3, 5]
    assert [tags.names[word] for word in tags.words] == ["Dog", "flump", "Dog", "Speech", "Dog"]
    assert tags.classes.tolist() == [
        places()[dog.class_id],
        -1,
        places()[dog.class_id],
        places()[speech.class_id],
        places()[dog.class_id],
    ]
    assert tags.scores.tolist() == [0.5, 0.125, 0.5, 0.75, 0.5]
    assert tags.means.tolist() == [0.25, 0.0625, 0.25, 0.5, 0.25]
    assert read_tags(tmp_path, "ear", "an ear", drops_speech=True).present.tolist() == [True, False, True, False]
    part = tags.take(np.array([3, 0]))
    assert part.starts.tolist() == [0, 2, 4]
    assert Ear(part, TAGGER, None).heard(0) == "Speech 0.75; Dog 0.50"


def test_a_pool_without_clips_has_no_tags(tmp_path):
    assert len(read_tags(tmp_path, "ear", "an ear", drops_speech=True).present) == 0
