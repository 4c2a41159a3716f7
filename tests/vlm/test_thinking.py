"""Reasoning is not an answer, in whatever form a model thinks out loud; an answer without a form stays as it is."""

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sonify.rows import Concept, Reason
from sonify.vlm.answers import Parsed, parse_concepts
from sonify.vlm.check import Check, parse_check
from sonify.vlm.repair import Unusable
from sonify.vlm.thinking import FORMS, PAIRS, answer_in, is_piece_of_mark, opened_by

ANSWER = "caption: A dog on grass.\ndog: sound of a dog barking (foreground)"
THOUGHT = "The user wants sounds.\nzebra: sound of a zebra braying (foreground)\nSo I name it."
PARSED = Parsed(
    caption="A dog on grass.",
    concepts=(Concept(concept="dog", description="sound of a dog barking", prominence="foreground"),),
)
MARKS = {
    "DeepSeek": ("<think>", "</think>"),
    "Qwen": ("<think>\n", "\n</think>\n\n"),
    "capitals": ("<THINK>", "</THINK>"),
    "thinking": ("<thinking>", "</thinking>"),
    "EXAONE": ("<thought>", "</thought>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "mixed": ("<think>", "</thinking>"),
    "attributes": ('<think duration="3">', "</think >"),
    "full width": ("＜think＞", "＜/think＞"),
    "Seed": ("<seed:think>", "</seed:think>"),
    "LongCat": ("<longcat_think>", "</longcat_think>"),
    "Mistral": ("[THINK]", "[/THINK]"),
    "Kimi": ("◁think▷", "◁/think▷"),
    "Gemma": ("<|channel>thought\n", "<channel|>"),
    "MedGemma": ("<unused94>thought\n", "<unused95>"),
    "Cohere": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    "OpenThinker": ("<|begin_of_thought|>", "<|end_of_thought|>\n<|begin_of_solution|>"),
    "Apertus": ("<|inner_prefix|>", "<|inner_suffix|>"),
    "Cohere's kin": ("<|think_start|>", "<|think_end|>"),
    "DeepSeek's bars": ("<｜begin▁of▁thinking｜>", "<｜end▁of▁thinking｜>"),
    "Solar": ("<|think|>", "<|end|><|begin|>assistant<|content|>"),
    "Harmony with its beginning": (
        "<|start|>assistant<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "Harmony": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "Harmony of three": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>commentary<|message|>zebra: a zebra<|end|>"
        "<|start|>assistant<|channel|>final <|constrain|>json<|message|>",
    ),
}
# Marks that are no special tokens of a vocabulary, or are written in another way.
WRITTEN = {
    "escaped": ("&lt;think&gt;", "&lt;/think&gt;"),
    "escaped in Markdown": ("\\<think\\>", "\\</think\\>"),
    "byte order mark": ("\ufeff<think>", "</think>"),
    "unseen": ("\u200b<th\u200bink>", "</th\u200bink>"),
    "other brackets": ("【思考】", "【/思考】"),
    "s1": ("<|im_start|>think\n", "<|im_end|>\n<|im_start|>answer\n"),
    "Ling": ("<|role|>thinking\n", "<|role|>ASSISTANT\n"),
    "s1, stripped": ("think\n", "\nanswer\n"),
    "OpenWebUI": (
        '<details type="reasoning" done="true" duration="3">\n<summary>Thought for 3 seconds</summary>\n',
        "</details>\n",
    ),
    "details": ("<details>\n<summary>Thinking</summary>\n", "</details>\n"),
    "fence": ("```thinking\n", "\n```\n"),
    "Ollama": ("Thinking...\n", "\n...done thinking.\n"),
    "heading": ("### Reasoning\n", "\n### Answer\n"),
    "bold": ("**Reasoning:**\n", "\n**Final Answer**\n"),
    "heading before the form's own": ("## Thinking process\n", "\n## Caption\n"),
    "for seconds": ("Thought for 12 seconds\n\n", "\n\nFinal answer:\n"),
    "Chinese": ("思考：", "\n回答：\n"),
}
NAMES = [
    "thought_process",
    "thinking_process",
    "inner_thoughts",
    "cot",
    "chain-of-thought",
    "reflect",
    "reflection",
    "self_reflection",
    "reasoning_content",
    "antThinking",
    "deepthink",
    "think1",
    "think_token",
    "o:think",
    "internal_monologue",
    "scratch_pad",
    "reasons",
]
# Where the server took the marks out, and where there never were any.
BARE = {
    "Harmony, stripped": ("analysis", "assistantfinal"),
    "Harmony with role": ("assistantanalysis", "assistantfinal"),
    "Gemma": ("thought\n", "\n"),
    "Gemma, glued": ("thought\n", ""),
    "Granite": ("Here is my thought process:\n\n", "\n\nHere is my response:\n\n"),
    "Qwen 3.5": ("Thinking Process:\n\n1. ", "\n**Final Answer:**\n"),
}


def concepts_of(answer: str, finished: bool = True) -> list[str]:
    result = parse_concepts(answer, 5, None, finished)
    return [concept.concept for concept in result.concepts] if isinstance(result, Parsed) else []


@pytest.mark.parametrize("form", [*MARKS, *WRITTEN])
def test_what_stands_in_marks_is_no_answer(form):
    opens, closes = (MARKS | WRITTEN)[form]
    assert parse_concepts(f"{opens}{THOUGHT}{closes}{ANSWER}", 5) == PARSED
    assert parse_concepts(f"{opens}{closes}{ANSWER}", 5) == PARSED


@pytest.mark.parametrize("form", MARKS)
def test_a_block_that_the_prompt_opened_ends_all_the_same(form):
    assert parse_concepts(f"{THOUGHT}{MARKS[form][1]}{ANSWER}", 5) == PARSED


@pytest.mark.parametrize("form", [*MARKS, *BARE, *WRITTEN])
def test_thinking_that_the_limit_cut_has_no_answer(form):
    opens = (MARKS | BARE | WRITTEN)[form][0]
    for finished in (False, True):
        result = parse_concepts(f"{opens}{THOUGHT}", 5, None, finished)
        assert isinstance(result, Unusable)
        assert result.reason is Reason.BAD_ANSWER
        assert result.detail.startswith("thinks to the end, see max_new_tokens: ")
        assert len(result.detail) <= 80


@pytest.mark.parametrize("form", MARKS)
def test_an_answer_before_a_block_without_end_stays(form):
    assert parse_concepts(f"{ANSWER}\n{MARKS[form][0]}{THOUGHT}", 5) == PARSED


@pytest.mark.parametrize("form", BARE)
def test_reasoning_without_marks_is_told_by_how_it_begins_and_ends(form):
    opens, closes = BARE[form]
    assert parse_concepts(f"{opens}{THOUGHT}{closes}{ANSWER}", 5) == PARSED
    assert parse_concepts(f"{opens}{closes}{ANSWER}", 5) == PARSED


@pytest.mark.parametrize("form", [*MARKS, *BARE])
def test_a_yes_in_reasoning_is_no_yes(form):
    opens, closes = (MARKS | BARE)[form]
    yes, no = "visible yes, real yes, sounding yes", "visible no, real no, sounding no"
    said = f"{opens}dog: {yes}\nDone.{closes}medium: photo\ndog: {no}"
    check = parse_check(said, ("dog",))
    assert isinstance(check, Check)
    assert check.medium == "photo"
    assert not check.verdicts[0].confirmed
    assert isinstance(parse_check(f"{opens}dog: {yes}", ("dog",), finished=False), Unusable)


@pytest.mark.parametrize(
    ("answer", "concepts"),
    [
        ("caption: A cartoon.\na thought bubble: sound of a bubble popping", ["thought bubble"]),
        ("thought bubble: sound of a bubble popping\ndog: sound of a dog barking", ["thought bubble", "dog"]),
        ('caption: A sign says "<think>" and "</think>".\ndog: sound of a dog barking', ["dog"]),
        ("caption: A slide with `</think>` on it.\ndog: sound of a dog barking", ["dog"]),
        ("caption: A wall with the word <think> on it.\ndog: sound of a dog barking", ["dog"]),
        ("caption: A final exam.\npen: sound of a pen scratching", ["pen"]),
        ("Analysis:\ncaption: A lab.\nfan: sound of a fan humming", ["fan"]),
        ("Thoughts:\n- dog: sound of a dog barking", ["dog"]),
        ("caption: A sign that reads <think>, in red.\ndog: sound of a dog barking", ["dog"]),
        ("caption: A code of <thinking_process> tags.\ndog: sound of a dog barking", ["dog"]),
        ("<details><summary>Answer</summary>\ndog: sound of a dog barking\n</details>", ["dog"]),
        ("```\ndog: sound of a dog barking\n```", ["dog"]),
        ("**Caption:** A man thinking.\ndog: sound of a dog barking\nReasoning: none", ["dog"]),
        ("### Analysis\ncaption: A lab.\nfan: sound of a fan humming", ["fan"]),
        ("<think>hm</think>caption: A lab.\nfan: sound of a fan humming</think>", ["fan"]),
        ("<think>The user says <think> is a tag.</think>\nfan: sound of a fan humming", ["fan"]),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_an_answer_that_merely_holds_such_words_stays(answer, concepts, finished):
    assert concepts_of(answer, finished) == concepts


@pytest.mark.parametrize(
    "answer",
    [
        f"<think>{THOUGHT}<think>{THOUGHT}</think>{THOUGHT}</think>{ANSWER}",
        f"<think>{THOUGHT}\n<answer>{ANSWER}</answer>",
        f"<think>{THOUGHT}</think>\n<answer><|begin_of_box|>{ANSWER}<|end_of_box|></answer>",
        f"<think>{THOUGHT}\n<|begin_of_box|>{ANSWER}<|end_of_box|>",
        f"<|im_start|>assistant\n<think>\n{THOUGHT}\n</think>\n\n{ANSWER}<|im_end|>",
        f"<|turn>model\n<|channel>thought\n{THOUGHT}<channel|>{ANSWER}<turn|>\n<|turn>user\nzebra: sound of a zebra",
        f"<|channel|>final<|message|>{ANSWER}<|return|>",
        f"final{ANSWER}",
        f"assistantfinal{ANSWER}",
        f"thought\ncaption: draft\nzebra: sound of a zebra\n\n{ANSWER}",
        f"Thought: {THOUGHT}\nAnswer:\n{ANSWER}",
        '{"thinking": "zebra: a zebra brays", "caption": "A dog on grass.", "concepts":'
        ' [{"name": "dog", "description": "sound of a dog barking", "prominence": "foreground"}]}',
        '{"Reasoning": "zebra: sound of a zebra", "chain_of_thought": "lion: roars", "caption":'
        ' "A dog on grass.", "dog": "sound of a dog barking (foreground)"}',
    ],
)
def test_disguises_of_the_same_answer(answer):
    assert parse_concepts(answer, 5) == PARSED


@pytest.mark.parametrize("said", ["Okay, let's look. ", "Got it, the user wants sounds. ", "We need to list. "])
def test_reasoning_that_a_template_opened_and_the_limit_cut_is_told_by_its_words(said):
    text = said + "The animal may be heard.\nzebra: sound of a zebra braying"
    assert answer_in(text, finished=False) is None
    assert answer_in(text, finished=True) == text


def test_a_draft_in_what_the_limit_cut_is_no_answer():
    text = f"Okay, let me see.\nCaption: maybe a street\n{THOUGHT}"
    assert answer_in(text, finished=False) is None
    assert answer_in(text, finished=True) == text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("write", [str, str.upper])
def test_one_rule_over_names(name, write):
    name = write(name)
    assert parse_concepts(f"<{name}>{THOUGHT}</{name}>{ANSWER}", 5) == PARSED
    assert concepts_of(f"<{name}>{THOUGHT}") == []


@pytest.mark.parametrize("name", ["cottage", "apricot", "p", "caption", "answer", "street", "end"])
def test_other_names_are_no_marks(name):
    said = f"<{name}>{ANSWER}</{name}>"
    assert answer_in(said) == said


@pytest.mark.parametrize(
    "before",
    [
        "\ufeff",
        "Assistant: ",
        "<|im_start|>assistant ",
        "<|start|>assistant",
        "Sure. ",
        "Sure, here it is: ",
        "Okay ",
        "\u200b",
        "```\n",
    ],
)
@pytest.mark.parametrize(
    "opens", ["<think>", "<THINK>", "<|think|>", "<|channel|>analysis<|message|>", "&lt;think&gt;"]
)
@pytest.mark.parametrize("behind", ["I see. ", " hmm, so ", "\n"])
def test_a_mark_without_end_opens_wherever_it_stands_before_an_answer(before, opens, behind):
    for finished in (False, True):
        assert concepts_of(f"{before}{opens}{behind}{THOUGHT}", finished) == []


@pytest.mark.parametrize("behind", ["<|end|>", "<|end|><|start|>assistant", "<|end|><|start|>assistant<|channel|>"])
def test_harmony_without_a_last_channel_has_no_answer(behind):
    assert concepts_of(f"<|start|>assistant<|channel|>analysis<|message|>{THOUGHT}{behind}") == []


@pytest.mark.parametrize("behind", [" So I see.", "I see", ""])
def test_a_mark_behind_an_answer_opens_where_no_sentence_goes_on(behind):
    assert concepts_of(f"{ANSWER} <think>{behind}\n{THOUGHT}") == ["dog"]
    assert concepts_of(f"{ANSWER}. <think> hmm\n{THOUGHT}") == ["dog"]


def test_an_answer_after_an_empty_thought_may_be_cut_but_a_draft_may_not():
    assert concepts_of(f"thought\n{ANSWER}", finished=False) == ["dog"]
    assert concepts_of(f"thought\n{THOUGHT}\n{ANSWER}", finished=False) == []


def test_json_of_a_check_may_think_too():
    check = parse_check('{"medium": "photo", "reasoning": "dog: visible yes, real yes, sounding yes"}', ("dog",))
    assert isinstance(check, Check)
    assert not check.verdicts[0].visible


@pytest.mark.parametrize(
    ("answer", "caption", "concepts"),
    [
        (
            '{"caption": "A yard.", "explanation": {"dog": "dog barking", "cat": "cat meowing"}}',
            "A yard.",
            {"dog": "dog barking", "cat": "cat meowing"},
        ),
        (
            "Caption: a street\nThought: dog\n- rain | sound of rain falling | background",
            "a street",
            {"thought": "dog"},
        ),
        ('{"rationale": ["lion: roars"], "dog": "dog barking"}', "", {"lion": "roars", "dog": "dog barking"}),
        ("caption: a yard\ndog: a dog barks</output>", "a yard", {"dog": "a dog barks</output>"}),
        ("caption: a yard\ndog: a dog barks<turn|>", "a yard", {"dog": "a dog barks<turn|>"}),
        ("Let me know!\ndog: a dog barks", "", {"dog": "a dog barks"}),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_what_was_an_answer_under_this_version_and_holds_no_form_is_the_same_answer(
    answer, caption, concepts, finished
):
    read = parse_concepts(answer, 5, None, finished)
    assert isinstance(read, Parsed)
    assert (read.caption, {concept.concept: concept.description for concept in read.concepts}) == (caption, concepts)


def test_verdicts_below_a_key_of_reasoning_are_verdicts_as_they_were():
    said = '{"medium": "photo", "reasoning": {"dog": "visible yes, real yes, sounding yes"}}'
    check = parse_check(said, ("dog",))
    assert isinstance(check, Check)
    assert check.verdicts[0].confirmed


@pytest.mark.parametrize("around", ["final_answer", "response", "solution", "conclusion", "output"])
def test_what_stands_around_an_answer_behind_reasoning_is_none_of_its_words(around):
    assert parse_concepts(f"<think>{THOUGHT}</think>\n<{around}>{ANSWER}</{around}>", 5) == PARSED


def test_a_check_that_the_limit_cut_in_thought_confirms_nothing():
    said = "Okay, let's look at each.\ndog: visible yes, real yes, sounding yes"
    assert isinstance(parse_check(said, ("dog",), finished=False), Unusable)
    assert isinstance(parse_check(said, ("dog",), finished=True), Check)


def test_of_answers_between_thoughts_the_last_counts_as_it_always_did():
    assert (
        parse_concepts(f"<think>a</think>\ncaption: A cat.\ncat: a cat purrs\n<think>b</think>\n{ANSWER}", 5) == PARSED
    )
    assert parse_concepts(f"<think>a</think>\n{ANSWER}\n<think>b</think>\n" * 6, 5) == PARSED


@pytest.mark.parametrize("quoted", ['"<think>"', "`</think>`", "'[THINK]'", "“</thought>”", "«<|channel>»"])
def test_a_mark_in_quotes_is_a_word(quoted):
    said = f"caption: A sign that says {quoted}.\ndog: sound of a dog barking\n{quoted}"
    assert answer_in(said) == said


@pytest.mark.parametrize(
    "said",
    [
        "finally a dog barks",
        "analysis: none",
        "thought of a dog: barks",
        "Thinking: done",
        "[cot]: creaks",
        "[thinking](url)",
    ],
)
def test_words_that_only_begin_like_a_form_stay(said):
    assert answer_in(said) == said


def test_nothing_behind_a_block_is_an_empty_answer():
    result = parse_concepts(f"<think>{THOUGHT}</think>\n", 5)
    assert isinstance(result, Unusable)
    assert result.reason is Reason.EMPTY_ANSWER


def test_so_many_marks_are_no_answer():
    assert answer_in("<think>a</think>" * 1000 + ANSWER) is None


CORPUS = [
    case["answer"]
    for file in sorted((Path(__file__).parent / "answers").glob("*.yaml"))
    for case in yaml.safe_load(file.read_text(encoding="utf-8"))
]


def test_the_corpus_without_thinking_is_read_as_it_always_was():
    """What lets `PARSER_VERSION` stay: other answers than those that think are the same to the letter."""
    thinking = [said for said in CORPUS if any(mark in said for mark in ("think>", "think▷", "</reasoning>"))]
    assert 3 <= len(thinking) < 20
    assert all(answer_in(said) == said for said in CORPUS if said not in thinking)


@pytest.mark.parametrize("form", [*MARKS, *WRITTEN])
@pytest.mark.parametrize("write", [str, str.upper, str.lower])
def test_no_answer_of_the_corpus_counts_as_reasoning(form, write):
    opens, closes = map(write, (MARKS | WRITTEN)[form])
    for said in CORPUS[::7]:
        thought = f"zebra: sound of a zebra braying\n{said}\n"
        if "</" not in said and "<|" not in said and "```" not in said:
            assert concepts_of(opens + thought) == []
            assert "zebra" not in concepts_of(f"{opens}{thought}{closes}{ANSWER}")


@given(st.text(st.characters(exclude_characters="<＜‹[【◁&\\"), max_size=200).map("caption: ".__add__), st.booleans())
def test_a_text_without_marks_is_returned_as_it_is(text, finished):
    assert answer_in(text, finished) == text


@pytest.mark.parametrize("seed", range(100))
def test_no_concept_comes_out_of_blocks_however_they_follow_and_nest(seed):
    draw = random.Random(seed)
    pieces, spoken = [], 0
    for _ in range(draw.randint(1, 5)):
        inner = THOUGHT
        for _ in range(draw.randint(0, 2)):
            opens, closes = draw.choice(list(MARKS.values()))
            inner = f"{inner}\n{opens}{THOUGHT}{closes}{THOUGHT}"
        opens, closes = draw.choice(list(MARKS.values()))
        spoken = draw.random() < 0.5
        pieces.append(f"{opens}{inner}{closes}\n{ANSWER * spoken}\n")
    text = "".join(pieces)
    assert "zebra" not in concepts_of(text)
    if spoken:
        assert concepts_of(text) == ["dog"]


@pytest.mark.parametrize("form", MARKS)
def test_a_block_that_is_cut_anywhere_gives_no_concept(form):
    """A mark that a server cuts through is no mark, but nothing of what stood in front of it is an answer."""
    opens, closes = MARKS[form]
    whole = f"{opens}{THOUGHT}{closes}"
    for end in range(len(opens), len(whole)):
        assert concepts_of(whole[:end], finished=False) == []


def test_the_mark_that_a_prompt_ends_with_is_known():
    assert opened_by("<|im_start|>assistant\n<think>\n") == "<think>"
    assert opened_by("<|im_start|>assistant\n[THINK]") == "[THINK]"
    assert opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""
    assert opened_by("say <think> or not\nassistant: ") == ""


def test_special_tokens_that_bound_reasoning_stay():
    for opens, closes in MARKS.values():
        assert is_piece_of_mark(opens), opens
        assert is_piece_of_mark(closes), closes
    assert not any(map(is_piece_of_mark, ("<|im_end|>", "</s>", "<pad>", "<image>", "<|endoftext|>")))


def test_every_form_has_an_example():
    import re  # noqa: PLC0415

    examples = [*MARKS.values(), *WRITTEN.values()]
    flags = re.IGNORECASE | re.MULTILINE
    for form in (*FORMS, *PAIRS):
        assert any(re.search(form.opens, opens, flags) for opens, _ in examples), form
        assert any(re.search(form.closes, closes, flags) for _, closes in examples), form
