import pytest

from sonify.captions.words import expand, find_discard_words, plural, tokenize, verb_forms

DISCARD = ("logo", "icon", "emblem", "symbol", "trademark", "sign")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog's bark!", ["a", "dog", "bark"]),
        ("Café, naïve—über", ["cafe", "naive", "uber"]),
        ("ice-cream_van", ["ice", "cream", "van"]),
        ("犬が吠える", []),
        ("", []),
    ],
)
def test_tokens(text, tokens):
    assert tokenize(text) == tokens


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("dog", "dogs"), ("bus", "buses"), ("church", "churches"), ("puppy", "puppies"), ("monkey", "monkeys"),
     ("woman", "women"), ("wolf", "wolves"), ("box", "boxes")],
)  # fmt: skip
def test_plurals(noun, expected):
    assert plural(noun) == expected


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("bark", ("bark", "barks", "barking", "barked")),
        ("clap", ("clap", "claps", "clapping", "clapped")),
        ("wave", ("wave", "waves", "waving", "waved")),
        ("cry", ("cry", "cries", "crying", "cried")),
        ("sing", ("sing", "sings", "singing", "sang")),
    ],
)
def test_verb_forms(verb, forms):
    assert verb_forms(verb) == forms


def test_a_pattern_stands_for_its_forms():
    assert {("dog", "barked"), ("dogs", "barking")} < set(expand("dog bark~"))
    assert {("church", "bell"), ("church", "bells")} < set(expand("church bell"))
    assert set(expand("speech!")) == {("speech",)}


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a company logo", ("logo",)),
        ("two road signs", ("sign",)),
        ("Logos and Emblems.", ("logo", "emblem")),
        ("a signal, a design, a signature", ()),
        ("iconic buildings", ()),
    ],
)
def test_discard_words_are_whole_words(caption, words):
    assert find_discard_words(caption, DISCARD, "word") == words


def test_the_papers_substring_test_also_finds_design():
    assert find_discard_words("a fine DESIGN", DISCARD, "substring") == ("sign",)
