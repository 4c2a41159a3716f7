"""Words' weights, tokens and conditioning, against the numbers of the published program."""

import numpy as np
import pytest
import torch

from eval.baselines.wild.attention import IS_NOUN, Conditioning, Heard, condition, listed_nouns, tokenize_words
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
    scores = nouns or (0.0,) * len(words)
    return Heard(words=words, probabilities=(1.0,) * len(words), noun_scores=scores, nouns_by="me")


def noun_places() -> list[int]:
    """Where the published program's group of nouns is, by our tokens and scores."""
    scores = golden_heard().noun_scores
    words = tokenize_words(GoldenTokenizer(), golden_heard().words).words
    return [place for place, word in enumerate(words) if word is not None and scores[word] > IS_NOUN]


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


def test_one_tensor_of_weights_holds_the_two_groups_of_the_published_program(conditioning):
    given, nouns = facts("groups"), noun_places()
    weights_PD = conditioning.start()
    others = [place for place in range(len(weights_PD)) if place not in nouns]
    assert [n for n, score in enumerate(golden_heard().noun_scores) if score > IS_NOUN] == given["noun_words"]
    assert nouns == given["noun_token_positions"]
    assert list(weights_PD[nouns][:, None].shape) == given["nouns_shape"]
    assert list(weights_PD[others][:, None].shape) == given["words_shape"]
    for kind, place, at in given["list_first_16"]:
        assert (nouns if kind == "n" else others)[at] == place


def test_two_groups_of_one_rate_learn_as_one_tensor_does(conditioning):
    nouns = noun_places()
    others = [place for place in range(77) if place not in nouns]
    back = torch.tensor(nouns + others).argsort()
    one = conditioning.start().requires_grad_()
    two = [one.detach()[places].clone().requires_grad_() for places in (nouns, others)]
    single = torch.optim.Adam([one], lr=LEARNING_RATE)
    double = torch.optim.Adam([{"params": [two[1]]}, {"params": [two[0]]}], lr=LEARNING_RATE)
    for _ in range(5):
        for optimizer, weights_PD in ((single, one), (double, torch.cat(two)[back])):
            optimizer.zero_grad()
            closeness_loss(conditioning.z_1PD, conditioning.weigh(weights_PD)).backward()
            optimizer.step()
    assert not torch.equal(one, conditioning.start())
    assert torch.equal(one, torch.cat(two)[back])


def test_the_conditioning_is_the_published_programs(conditioning):
    arrays, given = golden("in_the_wild")[0], facts("conditioning")
    y_1PD = conditioning.weigh(conditioning.start())
    assert np.abs(conditioning.z_1PD.numpy() - arrays["conditioning_z"]).max() < 1e-4
    assert np.abs(y_1PD.numpy() - arrays["conditioning_new_z"]).max() < 1e-4
    assert float(conditioning.z_1PD.mean()) == pytest.approx(given["mean_z"], abs=1e-6)
    assert float(y_1PD.mean()) == pytest.approx(given["mean_new_z"], abs=1e-6)
    assert float((conditioning.z_1PD - y_1PD).square().sum()) == pytest.approx(given["z_distance"], rel=1e-4)


def test_a_step_of_adam_is_the_published_programs(conditioning):
    weights = conditioning.start().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=LEARNING_RATE)
    closeness_loss(conditioning.z_1PD, conditioning.weigh(weights)).backward()
    optimizer.step()
    given = facts("adam_step")
    assert weights[noun_places()[0], :4].tolist() == pytest.approx(given["nouns_first"], abs=1e-5)
    assert weights[1, :4].tolist() == pytest.approx(given["words_first"], abs=1e-5)  # of no noun


def test_a_caption_of_a_hundred_words_is_cut_and_says_by_how_much():
    words = tuple("dog" for _ in range(100))
    made = condition(heard(*words), published_tokenizer(), lambda tokens: torch.ones(1, tokens.shape[1], 4), CPU)
    assert (len(made.weights_P), made.cut) == (77, 24)
    assert made.weights_P[-1] == pytest.approx(heard(*words).weights[75])  # no padding is left


@pytest.mark.parametrize("words", [(), ("",)])
def test_a_caption_without_a_token_is_refused(words):
    with refused("its caption is empty"):
        tokenize_words(published_tokenizer(), words)


def test_listed_nouns_know_things_and_not_what_they_do():
    words = ["A", "dog", "barks,", "while", "Birds", "chirp", "in", "rain;", "water", "flows", "and", "people", "talk"]
    nouns = [word for word, score in zip(words, listed_nouns(words), strict=True) if score > 0.7]
    assert nouns == ["dog", "Birds", "rain;", "water", "people"]
    assert set(listed_nouns(["", "...", "7"])) == {0.0}
