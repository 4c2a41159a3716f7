from pathlib import Path

import pytest
import yaml

from sonify.rows import Concept, Reason
from sonify.vlm.parsing import Parsed, Unusable, parse_concepts

FOLDER = Path(__file__).parent / "answers"


def load(style):
    return [(style, case) for case in yaml.safe_load((FOLDER / f"{style}.yaml").read_text(encoding="utf-8"))]


CORPUS = [case for style in ("llava", "cogvlm", "qwen", "small", "adversarial") for case in load(style)]


@pytest.mark.parametrize(("style", "case"), CORPUS, ids=[f"{style}: {case['id']}" for style, case in CORPUS])
def test_answers_mean_what_the_corpus_says(style, case):
    size = tuple(case["size"]) if "size" in case else None
    result = parse_concepts(case["answer"], 5, size)
    if "reason" in case:
        assert isinstance(result, Unusable), result
        assert result.reason == Reason(case["reason"])
        assert len(result.detail) <= 80
        return
    assert isinstance(result, Parsed), result
    assert result.caption == case["caption"]
    assert [rounded(concept) for concept in result.concepts] == [Concept(**concept) for concept in case["concepts"]]


def rounded(concept):
    return Concept(
        concept=concept.concept,
        description=concept.description,
        prominence=concept.prominence,
        area=round(concept.area, 6),
    )
