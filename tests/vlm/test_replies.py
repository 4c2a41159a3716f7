"""What a server's reply means, by the table in `sonify.vlm.replies`."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonify.errors import ConcernsAll
from sonify.rows import Reason
from sonify.vlm.answers import parse_concepts
from sonify.vlm.questions import Answer, NoAnswer
from sonify.vlm.repair import Unusable
from sonify.vlm.replies import Reply, Service, advice_for, read_reply
from sonify.vlm.retrying import Cause, TryFailed

SERVICE = Service(url="http://here/v1", model="eye", max_new_tokens=9, concurrency=1, key="sk-key", key_env="KEY")
SAID = "caption: a dog"


def read(body: object, status: int = 200, retry_after: str | None = None) -> Answer | NoAnswer | Cause | ConcernsAll:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        return read_reply(Reply(status=status, body=raw, retry_after=retry_after), "sonify-0", SERVICE)
    except TryFailed as failed:
        return failed.cause
    except ConcernsAll as error:
        return error


def choice(message: object = None, ending: object = "stop", **fields: object) -> dict[str, object]:
    return {"choices": [{"message": message, "finish_reason": ending, **fields}]}


def says(content: object, ending: object = "stop", **fields: object) -> dict[str, object]:
    return choice({"role": "assistant", "content": content, **fields}, ending)


@pytest.mark.parametrize(
    "body",
    [
        says(SAID),
        says(SAID, None),
        says([{"type": "text", "text": SAID}]),
        says([{"type": "output_text", "text": SAID}]),
        says(["caption: ", "a dog"]),
        says([{"type": "text", "text": {"value": SAID}}]),
        says({"type": "text", "text": SAID}),
        says(
            [{"type": "thinking", "thinking": [{"type": "text", "text": "cat: purrs"}]}, {"type": "text", "text": SAID}]
        ),
        says([{"type": "reasoning", "text": "cat: purrs"}, SAID]),
        says([{"type": "text", "text": "cat: purrs", "thought": True}, {"type": "text", "text": SAID}]),
        says([{"text": "cat: purrs", "thinking": True}, {"type": "text", "text": SAID, "thought": False}]),
        says([{"type": "output_text", "text": "cat: purrs", "reasoning": True}, SAID]),
        says(SAID, reasoning_content="cat: purrs"),
        says(None, refusal=SAID),
        says([{"type": "refusal", "refusal": SAID}]),
        {"choices": [{"text": SAID, "finish_reason": "stop"}]},
        {"choices": [{"delta": {"content": SAID}, "finish_reason": "stop"}]},
        {"error": None, **says(SAID)},
    ],
)
def test_text_is_an_answer_in_whatever_parts_it_comes(body):
    assert read(body) == Answer(text=SAID, finished=True)


@pytest.mark.parametrize("ending", ["length", "max_tokens", "MAX_TOKENS", {"type": "length"}, "content_filter"])
def test_an_answer_that_was_cut_says_so(ending):
    assert read(says(SAID, ending)) == Answer(text=SAID, finished=False)


@pytest.mark.parametrize("message", [{}, {"content": None}, {"content": ""}, {"content": []}, {"content": " \n"}])
@pytest.mark.parametrize("ending", ["stop", "length", "tool_calls", "eos"])
def test_no_text_and_an_ending_is_an_empty_answer(message, ending):
    answer = read(choice(message, ending))
    assert isinstance(answer, Answer)
    assert answer.finished is (ending != "length")
    parsed = parse_concepts(answer.text, 5)
    assert isinstance(parsed, Unusable)
    assert parsed.reason is Reason.EMPTY_ANSWER


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": "zebra: sound of a zebra"},
        {"content": "", "reasoning": "zebra: sound of a zebra"},
        {"reasoning": {"text": "no"}, "thinking": "zebra: sound of a zebra"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "zebra: sound of a zebra"}]}]},
        {"content": [{"type": "text", "text": "zebra: sound of a zebra", "thought": True}]},
    ],
)
def test_reasoning_alone_is_recorded_and_named_nowhere(message):
    answer = read(choice(message, "length"))
    assert isinstance(answer, Answer)
    assert answer == Answer(text="<think>\nzebra: sound of a zebra", finished=False)
    parsed = parse_concepts(answer.text, 5, None, answer.finished)
    assert isinstance(parsed, Unusable)
    assert parsed.reason is Reason.BAD_ANSWER


@pytest.mark.parametrize("ending", ["content_filter", "SAFETY", "prohibited_content"])
def test_what_a_filter_holds_back_whole_is_refused(ending):
    answer = read(says(None, ending))
    assert isinstance(answer, NoAnswer)
    assert answer.reason is Reason.NO_ANSWER
    assert answer.status == 0  # says nothing of other questions


@pytest.mark.parametrize(
    "body",
    [
        {"choices": []},
        {"choices": None},
        {"choices": {}},
        {"choices": ["text"]},
        {"object": "chat.completion"},
        7,
        None,
        "text",
        [],
        b"",
        b"<html></html>",
        b'{"choices": [',
        b"[" * 100_000,
        b"\xff\xfe",
        says(5),
        says([5]),
        says(None, None),
        says(None, "error"),
        says(SAID, "abort"),
        says(SAID, {"type": "abort"}),
        choice(None),
        choice("text"),
        choice([]),
        {"error": {"message": "odd", "code": None}},
        {"error": "odd"},
        {"id": "chatcmpl-sonify-00000000000000000000000000000001", **says(SAID)},
    ],
    ids=repr,
)
def test_what_is_not_in_form_is_odd(body):
    assert read(body) is Cause.BAD_REPLY


@pytest.mark.parametrize(
    ("body", "status", "cause"),
    [
        ({}, 500, Cause.DOWN),
        ({}, 503, Cause.DOWN),
        ({}, 529, Cause.DOWN),
        ({}, 429, Cause.BUSY),
        ({"error": {"message": "Rate limit reached for requests per minute: billing"}}, 429, Cause.BUSY),
        ({}, 408, Cause.BUSY),
        ({}, 204, Cause.BAD_REPLY),
        ({"error": {"code": 502, "message": "Provider returned error"}}, 200, Cause.DOWN),
        ({"error": {"code": "429", "message": "slow down"}}, 200, Cause.BUSY),
        ({"error": {"message": "The model is overloaded"}}, 200, Cause.BUSY),
        ({"error": {"type": "server_error", "message": "CUDA error"}}, 200, Cause.DOWN),
        ({"object": "error", "message": "internal error"}, 200, Cause.DOWN),
        (choice(None, None, error={"code": 503, "message": "upstream"}), 200, Cause.DOWN),
    ],
)
def test_trouble_of_the_servers_is_told_by_number_and_by_words(body, status, cause):
    assert read(body, status) is cause


@pytest.mark.parametrize("status", [400, 413, 415, 422, 451])
def test_a_refused_question_keeps_the_servers_own_words(status):
    answer = read({"error": {"message": "Image too odd", "param": "messages", "code": "bad_image"}}, status)
    assert isinstance(answer, NoAnswer)
    assert answer.status == status
    assert answer.detail == f"the server answers {status} Image too odd (param messages) (code bad_image)"


@pytest.mark.parametrize(
    "error", [{"code": 400, "message": "bad image"}, {"type": "invalid_request_error", "message": "bad image"}]
)
def test_a_refusal_under_200_is_one(error):
    answer = read({"error": error})
    assert isinstance(answer, NoAnswer)
    assert answer.detail == "the server answers 400 bad image"


@pytest.mark.parametrize(
    ("status", "words", "mends"),
    [
        (401, "Incorrect API key provided", "check the key in KEY"),
        (403, "Forbidden", "check the key in KEY"),
        (402, "This request requires more credits; payment required", "the account pays for no more"),
        (403, "insufficient_quota", "the account pays for no more"),
        (404, "The model `eye` does not exist", r"check url .* and model \(eye\)"),
        (405, "Method Not Allowed", "check url"),
        (307, "", "final address"),
    ],
)
def test_what_concerns_every_question_is_said_at_once(status, words, mends):
    error = read({"error": {"message": words}}, status)
    assert isinstance(error, ConcernsAll)
    assert str(error).startswith(f"http://here/v1 answers {status} {words}".rstrip())
    assert mends.split(" .* ")[0].replace("\\", "") in str(error)


def test_an_account_without_credit_is_no_patience_matter():
    body = {"error": {"message": "You exceeded your current quota, check your billing", "code": "insufficient_quota"}}
    assert isinstance(read(body, 429), ConcernsAll)
    assert read(body, 429, retry_after="20") is Cause.BUSY


# How servers refuse a schema; of llama.cpp, vLLM, SGLang and OpenAI as their sources and issues have it.
NO_SCHEMAS = {
    "OpenAI": "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model. (param"
    " response_format)",
    "OpenAI, the schema": "Invalid schema for response_format 'heard': In context=(), 'maxItems' is not permitted.",
    "vLLM": "The provided JSON schema contains features not supported by xgrammar.",
    "vLLM, old": "[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'),"
    " 'msg': \"Input should be 'text' or 'json_object'\"}]",
    "vLLM, the grammar": "Failed to transform json schema into a grammar: unsupported keyword",
    "SGLang": "Grammar-based generation (json_schema, regex, ebnf, structural_tag) is not supported when the server is"
    " launched with --grammar-backend none",
    "llama.cpp": 'response_format type must be one of "text" or "json_object", but got: json_schema',
    "llama.cpp, the grammar": "failed to parse grammar",
    "DeepSeek": "This response_format type is unavailable now",
    "Mistral": "[{'loc': ['body', 'response_format'], 'msg': 'Extra inputs are not permitted'}]",
    "LMDeploy": "response_format is not supported by the pytorch backend",
}


@pytest.mark.parametrize(
    ("words", "mends"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model."
            " Use 'max_completion_tokens' instead.",
            "token_limit: max_completion_tokens",
        ),
        ("Unrecognized request argument supplied: max_completion_tokens", "token_limit: max_tokens"),
        ("max_completion_tokens: Extra inputs are not permitted", "token_limit: max_tokens"),
        ("max_tokens is too large: 8192. This model supports at most 4096 completion tokens", "lower max_new_tokens"),
        (
            "temperature does not support 0 with this model. Only the default (1) value is supported.",
            "temperature: null",
        ),
        ("`temperature` has to be a strictly positive float", "temperature: null"),
        ("System role not supported", "system: null"),
        ("Only user and assistant roles are supported!", "system: null"),
        ("Conversation roles must alternate user/assistant/user/assistant/...", "system: null"),
        ("Developer instruction is not enabled for models/gemma-3", "system: null"),
        ("Invalid content type. image_url is only supported by certain models.", "model to one that sees images"),
        ("This model does not support image input", "model to one that sees images"),
        ("eye is not a multimodal model", "model to one that sees images"),
        ("image input is not supported - hint: you may need to provide the mmproj", "model to one that sees images"),
        ("No endpoints found that support image input", "model to one that sees images"),
        ("unknown variant `image_url`, expected `text`", "model to one that sees images"),
        ("messages.0.content: Input should be a valid string", "model to one that sees images"),
        ("API key not valid. Please pass a valid API key.", "api_key_env"),
        ("The model `x` does not exist or you do not have access to it.", "model to one that it serves"),
        *((words, "answers: json") for words in NO_SCHEMAS.values()),
        ("Unrecognized request argument supplied: chat_template_kwargs", "extra_body"),
        ("Unknown parameter: 'reasoning_effort'.", "extra_body"),
        ("[{'loc': ['body', 'stream'], 'msg': 'Extra inputs are not permitted'}]", "extra_body"),
    ],
)
def test_refusals_that_name_what_is_sent_name_the_key_that_mends_it(words, mends):
    advice = advice_for(words)
    assert advice is not None
    assert mends in advice.mends
    assert advice.of_all


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4488 in the messages,"
        " 512 in the completion). Please reduce the length of the messages or max_tokens.",
        "the request exceeds the available context size. try increasing the context size",
        "absolute aspect ratio must be smaller than 200, got 312",
        "cannot identify image file",
        "Unsupported image format",
        "Your request was rejected as a result of our safety system.",
    ],
)
def test_what_is_said_of_one_image_concerns_that_image(words):
    advice = advice_for(words)
    assert advice is None or not advice.of_all


@pytest.mark.parametrize("named", ["", " ", 5, None, {}])
def test_a_field_that_is_named_by_nothing_is_not_said(named):
    answer = read({"error": {"message": "no", "param": named, "code": ""}}, 400)
    assert isinstance(answer, NoAnswer)
    assert answer.detail == "the server answers 400 no"


def test_a_part_of_no_known_type_is_not_spoken():
    assert read(says([{"type": {}, "text": "cat: purrs"}, SAID])) == Answer(text=SAID, finished=True)


def test_an_error_of_the_servers_that_says_it_sees_nothing_is_a_refusal():
    assert isinstance(read({"error": {"message": "image input is not supported"}}, 500), NoAnswer)
    assert read({"error": {"message": "temperature of the GPU"}}, 500) is Cause.DOWN
    assert isinstance(read({"error": {"message": NO_SCHEMAS["vLLM"]}}, 502), NoAnswer)


def test_the_key_is_hidden_wherever_it_is_said():
    for body, status in ((says("sk-key"), 200), ({"error": {"message": "sk\\u002dkey sk-key"}}, 400)):
        assert "sk-key" not in str(read(body, status))
    assert "sk-key" not in str(read({"error": "sk-key"}, 404))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-600, 600) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "message", "content", "text", "type", "error", "code", "finish_reason", "refusal", "detail",
             "reasoning_content", "object", "id", "thinking", "delta", "value", "param"]
        ) | st.text(max_size=3),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
REPLIES = JSON | JSON.map(lambda x: {"choices": [x]}) | JSON.map(lambda x: choice(x, None)) | JSON.map(says)


@settings(max_examples=500)
@given(REPLIES, st.sampled_from([200, 200, 200, 204, 302, 400, 401, 404, 422, 429, 500, 503]))
def test_any_json_is_an_answer_a_refusal_or_trouble(body, status):
    result = read(body, status)
    if isinstance(result, Answer):
        assert status == 200
        assert isinstance(result.text, str)
    elif isinstance(result, NoAnswer):
        assert result.detail.isprintable()
    else:
        assert isinstance(result, Cause | ConcernsAll)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(body):
    assert read(body) in (Cause.BAD_REPLY, Cause.BUSY, Cause.DOWN) or isinstance(read(body), Answer | NoAnswer)


@pytest.mark.parametrize("deep", [900, 5_000, 100_000])
def test_what_is_nested_without_end_is_odd(deep):
    nested = b"[" * deep + b"]" * deep
    for body in (nested, b'{"error":' + nested + b"}", b'{"choices":[{"message":{"content":' + nested + b"}}]}"):
        assert isinstance(read(body), Cause | NoAnswer | Answer)
