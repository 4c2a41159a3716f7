"""Words' weights, tokens and conditioning, against the numbers of the published program."""

import numpy as np
import pytest
import torch

from eval.baselines.wild.attention import Conditioning, Heard, condition, listed_nouns, tokenize_words
from eval.baselines.wild.optimise import LEARNING_RATE, closeness_loss
from tests.builders import refused
from tests.eval.baselines.wild.built import (
    END,
    START,
    GoldenTokenizer,
    facts,
    golden_heard,
    golden_text_tower,
    published_tokenizer,
)
from tests.eval.towers.built import golden

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def conditioning() -> Conditioning:
    network = golden_text_tower()
    return condition(golden_heard(), GoldenTokenizer(), lambda tokens: network(input_ids=tokens).last_hidden_state, CPU)


def heard(*words: str, nouns: tuple[float, ...] | None = None) -> Heard:
    return Heard(words=words, probabilities=(1.0,) * len(words), noun_scores=nouns or (0.0,) * len(words))


@pytest.mark.parametrize("n", [0, 1])
def test_words_weigh_what_the_published_program_says(n):
    assert golden_heard(n).weights == pytest.approx(facts("word_weights")["weights"][n], abs=1e-12)


def test_tokens_have_their_words_weight_and_the_rest_has_one():
    tokens = tokenize_words(GoldenTokenizer(), golden_heard().words)
    given = facts("token_weights")
    assert tokens.ids == (START, *(t for word in given["tokens_of_word"] for t in word), *[END] * 64)
    assert [word for word in tokens.words if word is not None] == given["word_of_token"]
    assert tokens.weights(golden_heard().weights) == given["weights_77"]


def test_clips_own_vocabulary_gives_the_golden_tokens_of_whole_words():
    """For the other three words the golden file has tokens that the vocabulary has not for them."""
    tokens, words = tokenize_words(published_tokenizer(), golden_heard().words), golden_heard().words
    assert (tokens.ids[0], tokens.ids[-1], len(tokens.ids)) == (START, END, 77)
    named = dict(zip(words, facts("token_weights")["tokens_of_word"], strict=True))
    for word in ("a", "dog", "while", "in", "the", "background"):
        place = tokens.words.index(words.index(word))
        assert [tokens.ids[place]] == named[word]
        assert tokens.words[place + 1] != words.index(word)


def test_nouns_tokens_are_a_group_of_their_own(conditioning):
    given = facts("groups")
    assert golden_heard().nouns == tuple(given["noun_words"])
    assert conditioning.noun_places == tuple(given["noun_token_positions"])
    nouns, others = conditioning.parameters()
    assert (list(nouns.shape), list(others.shape)) == (given["nouns_shape"], given["words_shape"])


def test_every_weight_returns_to_its_own_token(conditioning):
    """The two groups, put together again, are the order of the published program's list."""
    nouns, others = (
        torch.arange(len(part)).float()[:, None, None].expand_as(part) for part in conditioning.parameters()
    )
    plain = Conditioning(
        z_1PD=torch.ones_like(conditioning.z_1PD), weights_P=conditioning.weights_P,
        noun_places=conditioning.noun_places, cut=0,
    )  # fmt: skip
    y_1PD = plain.weigh(nouns, others + 100)
    raw_P = (y_1PD[0, :, 0] / y_1PD.max() * (100 + len(others) - 1)).round()
    expected = [at + (100 if kind == "w" else 0) for kind, _, at in facts("groups")["list_first_16"]]
    assert raw_P[:16].tolist() == expected


def test_the_conditioning_is_the_published_programs(conditioning):
    arrays, given = golden("in_the_wild")[0], facts("conditioning")
    y_1PD = conditioning.weigh(*conditioning.parameters())
    assert np.abs(conditioning.z_1PD.numpy() - arrays["conditioning_z"]).max() < 1e-4
    assert np.abs(y_1PD.numpy() - arrays["conditioning_new_z"]).max() < 1e-4
    assert float(conditioning.z_1PD.mean()) == pytest.approx(given["mean_z"], abs=1e-6)
    assert float(y_1PD.mean()) == pytest.approx(given["mean_new_z"], abs=1e-6)
    assert float((conditioning.z_1PD - y_1PD).square().sum()) == pytest.approx(given["z_distance"], rel=1e-4)


def test_a_step_of_adam_is_the_published_programs(conditioning):
    nouns, others = (part.requires_grad_() for part in conditioning.parameters())
    optimizer = torch.optim.Adam([{"params": [others]}, {"params": [nouns]}], lr=LEARNING_RATE)
    closeness_loss(conditioning.z_1PD, conditioning.weigh(nouns, others)).backward()
    optimizer.step()
    given = facts("adam_step")
    assert nouns[0, 0, :4].tolist() == pytest.approx(given["nouns_first"], abs=1e-5)
    assert others[1, 0, :4].tolist() == pytest.approx(given["words_first"], abs=1e-5)  # the first is the start's


@pytest.mark.parametrize(("words", "noun"), [(("it", "rustles"), 1), (("rustling",), 0), (("a", "b", "c"), 1)])
def test_of_a_caption_without_a_noun_the_second_word_is_taken_or_its_only_one(words, noun):
    assert heard(*words).nouns == (noun,)
    made = condition(heard(*words), published_tokenizer(), lambda tokens: torch.ones(1, tokens.shape[1], 4), CPU)
    assert made.noun_places[0] == tokenize_words(published_tokenizer(), words).words.index(noun)


def test_a_caption_of_a_hundred_words_is_cut_and_says_by_how_much():
    words = tuple("dog" for _ in range(100))
    made = condition(heard(*words), published_tokenizer(), lambda tokens: torch.ones(1, tokens.shape[1], 4), CPU)
    assert (len(made.weights_P), made.cut) == (77, 24)
    assert made.weights_P[-1] == pytest.approx(heard(*words).weights[75])  # no padding is left


def test_where_all_nouns_are_cut_the_second_word_is_taken():
    words = (*["the"] * 80, "dog")
    made = condition(
        heard(*words, nouns=(*[0.0] * 80, 1.0)), published_tokenizer(), lambda tokens: torch.ones(*tokens.shape, 4), CPU
    )
    assert made.noun_places == (2,)


@pytest.mark.parametrize("words", [(), ("",)])
def test_a_caption_without_a_token_is_refused(words):
    with refused("its caption is empty"):
        tokenize_words(published_tokenizer(), words)


def test_listed_nouns_know_things_and_not_what_they_do():
    words = ["A", "dog", "barks,", "while", "Birds", "chirp", "in", "rain;", "water", "flows", "and", "people", "talk"]
    nouns = [word for word, score in zip(words, listed_nouns(words), strict=True) if score > 0.7]
    assert nouns == ["dog", "Birds", "rain;", "water", "people"]
    assert set(listed_nouns(["", "...", "7"])) == {0.0}
