from hashlib import sha256

from sonify.rows import Reason
from sonify.vlm.parsing import parse_concepts
from sonify.vlm.prompts import CONCEPTS_PROMPT, EXAMPLE_DESCRIPTION, EXAMPLE_NAME, PROMPT_VERSION, concepts_prompt


def test_the_prompt_asks_for_a_caption_and_for_as_many_concepts_as_are_wanted():
    prompt = concepts_prompt(7)
    assert prompt.index("caption:") < prompt.index("at most 7 lines") < prompt.index("name: description")
    assert "visible and present in the image" in prompt
    assert f"{EXAMPLE_NAME}: {EXAMPLE_DESCRIPTION}" in prompt
    assert "{" not in prompt


def test_the_prompt_is_short_enough_for_small_models():
    assert len(concepts_prompt(5).split()) < 140


def test_the_prompt_said_back_is_no_answer():
    for said in (concepts_prompt(5), concepts_prompt(12).replace("\n", "\n\n"), concepts_prompt(5).upper()):
        result = parse_concepts(said, 5)
        assert getattr(result, "reason", result) is Reason.BAD_ANSWER


def test_every_line_of_the_prompt_said_back_is_left_out_of_an_answer():
    for line in concepts_prompt(5).split("\n"):
        result = parse_concepts(f"{line}\ncat: sound of a cat meowing", 5)
        assert [concept.concept for concept in getattr(result, "concepts", ())] == ["cat"], line
        assert getattr(result, "caption", None) == "", line


def test_the_version_stands_for_these_words():
    # other words are another prompt: raise PROMPT_VERSION, and write both here
    assert (PROMPT_VERSION, sha256(CONCEPTS_PROMPT.encode()).hexdigest()[:8]) == (1, "4855e1a0")
