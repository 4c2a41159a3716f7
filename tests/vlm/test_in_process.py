"""The `transformers` backend, on real LLaVA, Qwen2-VL and Qwen3-VL classes at tiny size."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from sonify.config import TransformersVlm
from sonify.config.models import TEMPLATE_TOLD
from sonify.errors import InputError
from sonify.rows import Reason
from sonify.vlm.answers import Parsed, parse_concepts
from sonify.vlm.in_process import InProcessVlm, load_in_process
from sonify.vlm.questions import Answer, NoAnswer, Question
from sonify.vlm.repair import Unusable
from tests.builders import refused
from tests.processes import run_python
from tests.tiny_networks import (
    answering_llava,
    answering_qwen3_vl,
    answering_qwen_vl,
    edit_json,
    tiny_llava,
    tiny_qwen3_vl,
    tiny_qwen_vl,
)

RED = "Caption: a dog on grass.\ndog: sound of a dog barking (foreground)"
BLUE = "Caption: waves on a beach.\nwaves: waves breaking on the shore (background)"
ROOT = Path(__file__).parents[2]
PAIRS = [(Image.new("RGB", (64, 48), "red"), RED), (Image.new("RGB", (64, 48), "blue"), BLUE)]
ANSWERING = {"llava": answering_llava, "qwen_vl": answering_qwen_vl, "qwen3_vl": answering_qwen3_vl}
PROMPTS = ["What is it?", "Name all that could be heard here, one thing a line.", "Sounds?"]


@pytest.fixture(scope="session", params=list(ANSWERING))
def answering(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt `PAIRS`."""
    return ANSWERING[request.param](tmp_path_factory.mktemp("answering") / request.param, PAIRS)


@pytest.fixture(scope="session", params=[tiny_llava, tiny_qwen_vl, tiny_qwen3_vl])
def untaught(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, whose answers change with every pixel and letter."""
    return request.param(tmp_path_factory.mktemp("untaught") / "model")


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    return tiny_llava(tmp_path / "llava")


def settings(folder: Path, **changes: object) -> TransformersVlm:
    return TransformersVlm.model_validate(
        {"kind": "vlm", "name": "tiny", "backend": "transformers", "model": str(folder), "max_new_tokens": 48} | changes
    )


def ask(colour: str, prompt: str = PROMPTS[0], size: tuple[int, int] = (80, 60)) -> Question:
    return Question(image=Image.new("RGB", size, colour), prompt=prompt)


def test_a_batch_is_answered_in_its_order(answering: Path) -> None:
    vlm = load_in_process(settings(answering))

    answers = vlm([ask("red"), ask("blue", PROMPTS[1]), ask("blue", size=(64, 100)), ask("red", PROMPTS[2])])

    assert answers == [Answer(text=text, finished=True) for text in (RED, BLUE, BLUE, RED)]


def test_an_answer_that_the_limit_cuts_is_not_finished(answering: Path) -> None:
    (whole,) = load_in_process(settings(answering))([ask("red")])
    (cut,) = load_in_process(settings(answering, max_new_tokens=5))([ask("red")])

    assert isinstance(whole, Answer)
    assert isinstance(cut, Answer)
    assert not cut.finished
    assert 0 < len(cut.text) < len(whole.text)
    assert whole.text.startswith(cut.text)


def test_an_answer_that_ends_at_the_limit_is_finished(answering: Path) -> None:
    tokens = len(AutoTokenizer.from_pretrained(answering).encode(RED, add_special_tokens=False))

    with_its_end = load_in_process(settings(answering, max_new_tokens=tokens + 1))([ask("red")])
    without = load_in_process(settings(answering, max_new_tokens=tokens))([ask("red")])

    assert with_its_end == [Answer(text=RED, finished=True)]
    assert without == [Answer(text=RED, finished=False)]


def test_padding_does_not_change_an_answer(untaught: Path) -> None:
    vlm = load_in_process(settings(untaught, dtype="float32"))
    questions = [
        Question(image=Image.effect_noise((60 + 20 * n, 60), 90).convert("RGB"), prompt=prompt)
        for n, prompt in enumerate(PROMPTS)
    ]

    together = vlm(questions)

    assert together == [vlm([question])[0] for question in questions]
    assert len({answer.text for answer in together if isinstance(answer, Answer)}) == len(questions)


def test_another_process_gives_the_same_answers(tmp_path: Path) -> None:
    folders = [tiny_llava(tmp_path / "llava"), tiny_qwen_vl(tmp_path / "qwen_vl")]
    script = (
        "import sys; from tests.vlm.test_in_process import ask, load_in_process, settings\n"
        "for folder in sys.argv[1:]: print(load_in_process(settings(folder))([ask('red'), ask('blue'), ask('green')]))"
    )
    here = [str(load_in_process(settings(folder))([ask("red"), ask("blue"), ask("green")])) for folder in folders]

    assert run_python(script, *folders, cwd=ROOT).stdout.splitlines() == here


def test_the_threads_are_those_of_the_settings(llava: Path) -> None:
    before = torch.get_num_threads()
    vlm = load_in_process(settings(llava, cpus=1))
    torch.set_num_threads(2)

    vlm([ask("red")])

    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_an_image_that_the_processor_refuses_has_no_answer_and_the_others_have(tmp_path: Path) -> None:
    vlm = load_in_process(settings(tiny_qwen_vl(tmp_path)))
    strip = ask("green", size=(3000, 10))

    answers = vlm([ask("red"), strip, ask("blue")])

    assert isinstance(answers[1], NoAnswer)
    assert answers[1].reason == Reason.NO_ANSWER
    assert "aspect ratio" in answers[1].detail
    assert [answers[0], answers[2]] == vlm([ask("red"), ask("blue")])
    assert [type(answer) for answer in vlm([strip, strip])] == [NoAnswer, NoAnswer]


def test_sampling_settings_of_the_model_are_dropped_without_a_word(
    llava: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sampling = Path(shutil.copytree(llava, tmp_path / "sampling"))
    edit_json(
        sampling / "generation_config.json",
        lambda own: own.update(do_sample=True, temperature=5.0, top_p=0.9, top_k=50, max_length=20),
    )
    greedy = load_in_process(settings(llava))([ask("red"), ask("blue")])
    vlm = load_in_process(settings(sampling))
    capfd.readouterr()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = [vlm([ask("red"), ask("blue")]) for _ in range(2)]

    assert answers == [greedy, greedy]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("marks", [("[THINK]", "[/THINK]"), ("<|channel>", "<channel|>")])
def test_marks_of_reasoning_that_are_special_tokens_stay_in_the_text(tmp_path: Path, marks: tuple[str, str]) -> None:
    opens, closes = marks
    red, blue = (f"{opens}cat: it purrs{closes}{text}" for text in (RED, BLUE))
    pairs = [(PAIRS[0][0], red), (PAIRS[1][0], blue)]
    vlm = load_in_process(settings(answering_llava(tmp_path / "thinking", pairs, marks), max_new_tokens=96))

    answers = vlm([ask("red"), ask("blue")])

    assert answers == [Answer(text=red, finished=True), Answer(text=blue, finished=True)]
    for answer, concept in zip(answers, ("dog", "waves"), strict=True):
        assert isinstance(answer, Answer)
        parsed = parse_concepts(answer.text, 5)
        assert isinstance(parsed, Parsed)
        assert [heard.concept for heard in parsed.concepts] == [concept]


def test_a_template_that_begins_to_think_is_told_of_or_told_not_to(llava: Path) -> None:
    template = llava / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if enable_thinking | default(true) %}<think>\n{% endif %}")

    (thinks,) = load_in_process(settings(llava))([ask("red")])
    (answers,) = load_in_process(settings(llava, template={"enable_thinking": False}))([ask("red")])

    assert isinstance(thinks, Answer)
    assert isinstance(answers, Answer)
    assert thinks.text.startswith("<think>\n")
    assert not answers.text.startswith("<think>")
    result = parse_concepts(thinks.text, 5, None, thinks.finished)
    assert isinstance(result, Unusable)
    assert "thinks to the end" in result.detail


def test_what_the_question_tells_the_template_is_not_told_twice(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = load_in_process(settings(llava))
    told: dict[str, object] = {}
    apply = vlm._processor.apply_chat_template
    monkeypatch.setattr(
        vlm._processor,
        "apply_chat_template",
        lambda questions, **named: told.update(named) or apply(questions, **named),
    )
    vlm([ask("red")])
    assert told.keys() | {"conversation"} == TEMPLATE_TOLD


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_precision_is_that_of_the_settings(answering: Path, dtype: str) -> None:
    vlm = load_in_process(settings(answering, dtype=dtype))

    assert vlm([ask("blue")]) == [Answer(text=BLUE, finished=True)]
    assert {weight.dtype for weight in vlm._network.parameters()} == {getattr(torch, dtype)}


def test_on_a_cpu_auto_is_float32(llava: Path) -> None:
    vlm = load_in_process(settings(llava, device="cpu"))

    assert {weight.dtype for weight in vlm._network.parameters()} == {torch.float32}


TEXT_ONLY = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "no chat template that takes an image"),
        (TEXT_ONLY, "chat template"),
        ("USER: <image>\nWhat is this? ASSISTANT:", "loses the image or the text"),
        ("{{ raise_exception('only for tools') }}", "only for tools"),
    ],
    ids=["none", "text only", "no text", "raises"],
)
def test_a_model_that_cannot_be_asked_about_an_image_is_refused(
    llava: Path, template: str | None, expected: str
) -> None:
    (llava / "chat_template.jinja").unlink()
    if template is not None:
        (llava / "chat_template.jinja").write_text(template)

    with refused(expected) as caught:
        load_in_process(settings(llava))

    assert str(llava) in str(caught.value)


def test_a_gpu_that_is_not_there_is_an_error_of_the_settings(llava: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="device: cuda was asked for"):
        load_in_process(settings(llava, device="cuda"))


@pytest.mark.gpu
def test_a_gpu_answers_as_the_cpu_does(answering: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    vlm: InProcessVlm = load_in_process(settings(answering))

    assert vlm._network.dtype == torch.bfloat16
    assert vlm([ask("red"), ask("blue", PROMPTS[1])]) == [Answer(text=text, finished=True) for text in (RED, BLUE)]


@pytest.mark.gpu
def test_too_little_gpu_memory_leaves_the_unit_undone(answering: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    vlm = load_in_process(settings(answering))
    torch.cuda.set_per_process_memory_fraction(1e-6)

    with pytest.raises(MemoryError, match="batch_size"):
        vlm([ask("red")] * 4096)

    torch.cuda.set_per_process_memory_fraction(1.0)
    assert vlm([ask("red")]) == [Answer(text=RED, finished=True)]
