from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sonify.rows import Reason, Verdict
from sonify.vlm.check import Check, parse_check
from sonify.vlm.questions import FOILS, check_question
from sonify.vlm.repair import Unusable

NAMES = ("dog", "car", "church organ")
CASES = yaml.safe_load((Path(__file__).parent / "answers" / "checks.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_answers_mean_what_the_corpus_says(case):
    result = parse_check(case["answer"], NAMES)
    if "reason" in case:
        assert isinstance(result, Unusable), result
        assert result.reason == Reason(case["reason"])
        return
    assert isinstance(result, Check), result
    assert result.medium == case["medium"]
    said = ["".join("ny"[word] for word in (v.visible, v.real, v.sounding)) for v in result.verdicts]
    assert said == case["told"]
    assert [verdict.concept for verdict in result.verdicts] == list(NAMES)
    assert [verdict.confirmed for verdict in result.verdicts] == [told == "yyy" for told in case["told"]]


@given(
    st.lists(st.sampled_from(FOILS), min_size=1, max_size=7, unique=True).flatmap(
        lambda names: st.tuples(
            st.just(names),
            st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=len(names), max_size=len(names)),
        )
    ),
    st.sampled_from(("photo", "drawing", "statue", "logo", "screen", "other")),
)
def test_an_answer_in_the_asked_form_is_read_as_it_stands(said, medium):
    names, told = said
    lines = [f"medium: {medium}"]
    for name, three in zip(names, told, strict=True):
        visible, real, sounding = ("yes" if yes else "no" for yes in three)
        lines.append(f"{name}: visible {visible}, real {real}, sounding {sounding}")
    expected = tuple(
        Verdict(concept=name, visible=visible, real=real, sounding=sounding)
        for name, (visible, real, sounding) in zip(names, told, strict=True)
    )
    assert parse_check("\n".join(lines), names) == Check(medium=medium, verdicts=expected)


@given(st.text(max_size=300), st.lists(st.text(max_size=20), max_size=4))
def test_any_text_and_any_names_are_read_without_an_error(answer, names):
    result = parse_check(answer, names)
    assert isinstance(result, Unusable) or [verdict.concept for verdict in result.verdicts] == names


def test_the_question_said_back_confirms_nothing():
    result = parse_check(check_question(NAMES), NAMES)
    assert isinstance(result, Unusable)
    assert result.reason is Reason.BAD_ANSWER
