import json
import os
import signal
import socket
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiohttp import web

from sonify.config.models import EndpointVlm
from sonify.errors import ConcernsAll, InputError, TransientError
from sonify.rows import Reason
from sonify.vlm.endpoint import check_endpoint, connect_endpoint
from sonify.vlm.questions import Answer, NoAnswer, Question
from sonify.vlm.retrying import RetryPolicy
from tests.vlm.faulty_server import Fault, FaultyServer, answer_for, numbered_image, serving

KEY = "sk-planted-4f1d7c"
QUICK = RetryPolicy(timeout_sec=1.0, max_wait_sec=8.0, first_delay_sec=0.05, longest_delay_sec=0.2)


def config_for(server: FaultyServer | None = None, **fields) -> EndpointVlm:
    base = {"kind": "vlm", "name": "stub", "backend": "endpoint", "model": "stub", "concurrency": 4}
    return EndpointVlm.model_validate(base | {"url": server.url if server else "http://127.0.0.1:9/v1"} | fields)


def questions(*numbers: int) -> list[Question]:
    return [Question(image=numbered_image(number), prompt="What can be heard?") for number in numbers]


def expected(*numbers: int) -> list[Answer]:
    return [Answer(text=answer_for(numbered_image(number), ""), finished=True) for number in numbers]


def ask(server: FaultyServer, numbers: range | list[int], policy: RetryPolicy = QUICK, **fields) -> list:
    vlm = connect_endpoint(config_for(server, **fields), policy)
    try:
        return vlm(questions(*numbers))
    finally:
        vlm.close()


def chain_of(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def test_answers_come_in_the_order_of_the_questions_and_each_once():
    with serving(latency_sec=0.02) as server:
        assert ask(server, range(50)) == expected(*range(50))
        assert server.answered == dict.fromkeys(range(50), 1)
        assert server.most_at_once == 4


def test_a_request_has_the_form_that_servers_read():
    with serving() as server:
        ask(server, [7], max_new_tokens=99)
    body = server.seen[0].body
    assert {key: body[key] for key in body if key != "messages"} == {
        "model": "stub",
        "temperature": 0,
        "max_tokens": 99,
        "stream": False,
    }
    ((image, text),) = (message["content"] for message in body["messages"])
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert text == {"type": "text", "text": "What can be heard?"}
    assert "Authorization" not in server.seen[0].headers


def test_calls_from_two_threads_share_the_limit():
    with serving(latency_sec=0.05) as server:
        vlm = connect_endpoint(config_for(server), QUICK)
        with ThreadPoolExecutor(2) as callers:
            calls = [callers.submit(vlm, questions(*range(start, start + 20))) for start in (0, 100)]
            assert [call.result() for call in calls] == [expected(*range(20)), expected(*range(100, 120))]
        vlm.close()
        assert server.most_at_once == 4


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=429, count=6),
        Fault("status", status=500, tries=2),
        Fault("status", status=503, count=4, retry_after="0.1"),
        Fault("html", tries=1),
        Fault("not_json", tries=1),
        Fault("no_fields", tries=1),
        Fault("half", tries=1),
        Fault("garbage", tries=1),
        Fault("endless", count=2),
        Fault("hang", count=3),
        Fault("drip", count=3),
        Fault("swap", count=4),
        Fault("half", every=3),
    ],
    ids=lambda fault: fault.kind,
)
def test_nothing_is_lost_doubled_or_swapped_while_a_server_recovers(fault):
    numbers = list(range(12))
    with serving(fault, latency_sec=0.01) as server:
        assert ask(server, numbers) == expected(*numbers)
        assert len(server.seen) > len(numbers)  # it did fail
        assert set(server.answered.values()) == {1}


def test_a_server_that_is_busy_for_a_while_is_not_hammered():
    with serving(Fault("status", status=429, sec=1.0)) as server:
        assert ask(server, range(8)) == expected(*range(8))
        assert len(server.seen) < 200


def test_waiting_is_capped_by_what_is_left_of_max_wait():
    policy = RetryPolicy(timeout_sec=1, max_wait_sec=1.0, first_delay_sec=0.05)
    with serving(Fault("status", status=429, retry_after="3600")) as server:
        with pytest.raises(TransientError, match=r"gave up after 2 tries in \d+ s: the server answers 429") as caught:
            ask(server, [1], policy)
        assert server.url in str(caught.value)


@pytest.mark.parametrize("kind", ["hang", "drip", "endless"])
def test_one_try_ends_in_time_whatever_the_server_does(kind):
    policy = RetryPolicy(timeout_sec=0.5, max_wait_sec=0.5, first_delay_sec=0.05, most_bad_replies=2)
    with serving(Fault(kind, delay_sec=20)) as server:  # a good answer comes, too late
        with pytest.raises(TransientError, match=r"no whole answer within 0.5 s|longer than 4 MiB"):
            ask(server, [1], policy)
        assert len(server.seen) <= 2


def test_an_endless_answer_does_not_fill_the_memory():
    with serving(Fault("endless", count=1)) as server:
        tracemalloc.start()
        assert ask(server, [1]) == expected(1)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 40 << 20


def test_a_long_answer_is_an_answer():
    with serving(Fault("large")) as server:
        (answer,) = ask(server, [1])
        assert len(answer.text) == 3 * 350_000


@pytest.mark.parametrize("kind", ["html", "not_json", "no_fields"])
def test_replies_that_are_no_answers_are_asked_for_a_bounded_number_of_times(kind):
    with serving(Fault(kind)) as server:
        with pytest.raises(TransientError, match="gave up after 5 tries"):
            ask(server, [1])
        assert len(server.seen) == 5


def test_an_answer_that_the_token_limit_cut_says_so():
    with serving(Fault("length", number=1)) as server:
        assert [answer.finished for answer in ask(server, [0, 1])] == [True, False]


def test_a_refusal_in_its_own_field_is_an_answer():
    with serving(Fault("refusal")) as server:
        assert ask(server, [1]) == [Answer(text="I can't help with that.", finished=True)]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_refused_image_is_no_answer_and_asked_once(status):
    with serving(Fault("status", status=status, number=5)) as server:
        answers = ask(server, range(8))
        refused = answers.pop(5)
        assert isinstance(refused, NoAnswer)
        assert refused.reason is Reason.NO_ANSWER
        assert str(status) in refused.detail
        assert "as told" in refused.detail
        assert answers == expected(0, 1, 2, 3, 4, 6, 7)
        assert len(server.seen) == 8


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("status", status=401), "401.*api_key_env"),
        (Fault("status", status=403), "403.*api_key_env"),
        (Fault("status", status=404), "404.*check url .* and model"),
    ],
)
def test_what_no_waiting_changes_is_an_input_error_at_once(fault, says):
    with serving(fault) as server:
        with pytest.raises(InputError, match=says) as caught:
            ask(server, range(8))
        assert server.url in str(caught.value)
        assert "\n" not in str(caught.value)


def test_redirects_are_not_followed_and_the_key_goes_nowhere_else(monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    with serving() as elsewhere, serving(Fault("redirect", location=f"{elsewhere.url}/chat/completions")) as server:
        with pytest.raises(InputError, match=r"307.*final address"):
            ask(server, [1], api_key_env="STUB_KEY")
        assert elsewhere.seen == []


def test_a_proxy_of_the_environment_is_not_used(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with serving() as server:
        assert ask(server, [1]) == expected(1)


def test_a_wrong_model_is_named_with_those_served():
    with (
        serving(model="llava-1.5") as server,
        pytest.raises(InputError, match=r"'stub'; set model to one of: llava-1.5"),
    ):
        check_endpoint(config_for(server))


def test_a_server_that_is_not_there_yet_is_waited_for(caplog):
    with serving() as first:
        port = int(first.url.split(":")[2].split("/")[0])
    vlm = connect_endpoint(config_for(url=f"http://127.0.0.1:{port}/v1"), QUICK)
    assert "does not answer yet" in caplog.text
    assert "each question is tried for 8 s (max_wait_sec)" in caplog.text
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(vlm, questions(3))
        time.sleep(0.7)
        with serving(port=port):
            assert call.result() == expected(3)
    vlm.close()


def test_a_dead_server_leaves_the_unit_undone_after_max_wait():
    policy = RetryPolicy(timeout_sec=1, max_wait_sec=1.0, first_delay_sec=0.02, longest_delay_sec=0.1)
    vlm = connect_endpoint(config_for(), policy)
    with pytest.raises(TransientError, match=r"http://127.0.0.1:9/v1: gave up after .* refused|Connect"):
        vlm(questions(*range(8)))
    vlm.close()


def test_questions_that_wait_for_a_server_to_recover_are_each_answered_once():
    policy = RetryPolicy(
        timeout_sec=5, max_wait_sec=20, first_delay_sec=0.02, longest_delay_sec=0.1, failures_to_open=8
    )
    with serving(Fault("status", status=503, count=40), latency_sec=0.05) as server:
        assert ask(server, range(30), policy, concurrency=30) == expected(*range(30))
    assert len(server.seen) == 70


@pytest.mark.parametrize("kind", ["status", "html"])
def test_a_question_that_fails_while_others_are_answered_is_to_blame(kind):
    with serving(Fault(kind, number=3)) as server:
        answers = ask(server, range(30))

    assert [n for n, answer in enumerate(answers) if isinstance(answer, NoAnswer)] == [3]
    assert answers[3].reason == Reason.NO_ANSWER
    assert "others did not" in answers[3].detail


def test_requests_that_wait_for_the_breaker_give_up_in_time():
    policy = RetryPolicy(timeout_sec=5, max_wait_sec=1, first_delay_sec=0.3, failures_to_open=3)
    with serving(Fault("status", status=503)) as server:
        with pytest.raises(TransientError, match="gave up"):
            ask(server, range(30), policy, concurrency=10)
        assert len(server.seen) < 25


def test_a_refused_or_missing_key_is_an_input_error_that_names_the_variable(monkeypatch):
    monkeypatch.delenv("STUB_KEY", raising=False)
    with serving(key=KEY) as server:
        with pytest.raises(InputError, match="STUB_KEY"):
            check_endpoint(config_for(server, api_key_env="STUB_KEY"))
        monkeypatch.setenv("STUB_KEY", "another")
        with pytest.raises(InputError, match="401: check the key in STUB_KEY"):
            check_endpoint(config_for(server, api_key_env="STUB_KEY"))
        monkeypatch.setenv("STUB_KEY", "two\nlines")
        with pytest.raises(InputError, match="characters that no key can have"):
            check_endpoint(config_for(server, api_key_env="STUB_KEY"))
        with pytest.raises(InputError, match="401: check api_key_env"):
            check_endpoint(config_for(server))
        monkeypatch.setenv("STUB_KEY", KEY)
        assert ask(server, [1], api_key_env="STUB_KEY") == expected(1)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("echo", status=500),
        Fault("echo", status=429),
        Fault("echo", status=404),
        Fault("echo", status=401),
        Fault("echo", status=418),
        Fault("half"),
        Fault("garbage"),
        Fault("hang"),
        Fault("html"),
        Fault("redirect", location=f"http://127.0.0.1:9/?key={KEY}"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_the_key_is_in_no_error_and_no_log(fault, monkeypatch, caplog):
    monkeypatch.setenv("STUB_KEY", KEY)
    caplog.set_level(0)
    policy = RetryPolicy(timeout_sec=0.2, max_wait_sec=0.2, first_delay_sec=0.05)
    with serving(fault, key=KEY) as server:
        vlm = connect_endpoint(config_for(server, api_key_env="STUB_KEY"), policy)
        with pytest.raises((InputError, TransientError)) as caught:
            vlm(questions(1))
        held = "".join(repr(part) for part in (vlm, vars(vlm)))
        vlm.close()
    for error in chain_of(caught.value):
        assert KEY not in f"{error} {error!r} {getattr(error, '__dict__', '')}"
    assert KEY not in held + caplog.text


def test_the_key_is_in_no_answer(monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    with serving(Fault("echo", status=200, number=1), Fault("echo", status=400, number=2), key=KEY) as server:
        answered, refused = ask(server, [1, 2], api_key_env="STUB_KEY")
    assert "Bearer ***" in answered.text
    assert "***" in refused.detail or "Bearer" not in refused.detail
    assert KEY not in answered.text + refused.detail


class Interrupted(Exception):
    pass


def interrupt_once_all_slots_are_taken(server: FaultyServer) -> None:
    while len(server.seen) < 4:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGUSR1)


def test_an_interrupted_caller_leaves_no_requests_behind():
    def interrupt(*_: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGUSR1, interrupt)
    with serving(Fault("hang", count=4)) as server:
        vlm = connect_endpoint(config_for(server), RetryPolicy(timeout_sec=30, max_wait_sec=30))
        threading.Thread(target=interrupt_once_all_slots_are_taken, args=(server,)).start()
        with pytest.raises(Interrupted):
            vlm(questions(*range(8)))
        assert len(server.seen) == 4
        assert vlm(questions(20)) == expected(20)  # the slots are free again, and the other four wait for none
        assert [seen.number for seen in server.seen[4:]] == [20]
        vlm.close()
        vlm.close()
    signal.signal(signal.SIGUSR1, previous)
    assert not any(thread.name == "endpoint" for thread in threading.enumerate())


def test_a_key_that_is_echoed_in_jsons_escapes_is_hidden(monkeypatch):
    key = 'sk"planted-4f1d'  # JSON writes a quote with a backslash
    monkeypatch.setenv("STUB_KEY", key)
    said = "Caption: a dog.\ndog: sound of a dog " + key
    with serving(key=key, answer=lambda _image, _prompt: said) as server:
        (answer,) = ask(server, [1], api_key_env="STUB_KEY")
    assert isinstance(answer, Answer)
    assert key not in answer.text


@pytest.mark.parametrize("kind", ["reply", "html", "not_json", "no_fields"])
def test_odd_replies_cost_one_more_try_each_and_no_time(kind):
    faults = [Fault(kind, status=200, number=number, body="7") for number in range(0, 40, 5)]
    policy = RetryPolicy(timeout_sec=5, max_wait_sec=600)
    with serving(*faults, latency_sec=0.02) as server:
        began = time.monotonic()
        answers = ask(server, range(40), policy)
    assert time.monotonic() - began < 8
    odd = [answer for answer in answers if isinstance(answer, NoAnswer)]
    assert [n for n, answer in enumerate(answers) if isinstance(answer, NoAnswer)] == list(range(0, 40, 5))
    assert {answer.reason for answer in odd} == {Reason.NO_ANSWER}
    tries = [sum(seen.number == number for seen in server.seen) for number in range(0, 40, 5)]
    assert tries == [2] * 8
    assert len(server.seen) <= 40 + 8 + 8  # an answer that was there before, once more, where nobody else asks


def test_an_odd_reply_before_any_answer_waits_for_the_others():
    policy = RetryPolicy(timeout_sec=5, max_wait_sec=600, first_delay_sec=0.01, longest_delay_sec=0.02)
    with serving(Fault("no_fields", number=0), Fault("hang", delay_sec=0.5)) as server:
        answers = ask(server, range(4), policy)
    assert isinstance(answers[0], NoAnswer)
    assert answers[1:] == expected(1, 2, 3)


def test_a_server_that_begins_to_say_nonsense_to_all_is_in_trouble_and_no_question_to_blame():
    with serving(Fault("no_fields", after=6)) as server, pytest.raises(TransientError, match="gave up after 5 tries"):
        ask(server, range(12))


def test_a_question_that_fails_at_the_end_of_all_is_to_blame_too():
    policy = RetryPolicy(timeout_sec=1, max_wait_sec=600, first_delay_sec=0.01, longest_delay_sec=0.02)
    with serving(Fault("status", number=11)) as server:
        answers = ask(server, range(12), policy, concurrency=1)
    assert answers[:11] == expected(*range(11))
    assert isinstance(answers[11], NoAnswer)


def test_an_outage_blames_no_question():
    policy = RetryPolicy(timeout_sec=1, max_wait_sec=3, first_delay_sec=0.01, longest_delay_sec=0.02)
    with serving(Fault("status", after=20), latency_sec=0.01) as server, pytest.raises(TransientError, match="gave up"):
        ask(server, range(40), policy)


def test_every_field_of_a_request_has_a_key_that_changes_or_omits_it():
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "stream": None, "top_p": 0.5}
    keys = {"token_limit": "max_completion_tokens", "temperature": None, "system": "/no_think", "extra_body": extra}
    with serving() as server:
        ask(server, [1], max_new_tokens=99, **keys)
    body = server.seen[0].body
    assert {key: body[key] for key in body if key != "messages"} == {
        "model": "stub",
        "max_completion_tokens": 99,
        "chat_template_kwargs": {"enable_thinking": False},
        "top_p": 0.5,
    }
    assert body["messages"][0] == {"role": "system", "content": "/no_think"}
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


MAX_TOKENS = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
)
DEMANDS = {
    "token_limit": (lambda body: MAX_TOKENS * ("max_tokens" in body), {"token_limit": "max_completion_tokens"}),
    "temperature": (
        lambda body: "temperature does not support 0 with this model" * (body.get("temperature") == 0),
        {"temperature": None},
    ),
    "extra_body": (lambda body: "Unknown parameter: 'stream'." * ("stream" in body), {"extra_body": {"stream": None}}),
}


@pytest.mark.parametrize("key", DEMANDS)
def test_a_server_that_refuses_a_field_stops_all_with_its_words_and_the_key_that_mends_it(key):
    refuses, mends = DEMANDS[key]
    with serving(refuses=refuses) as server:
        with pytest.raises(ConcernsAll, match=rf"refuses one question after another: the server answers 400 .*{key}"):
            ask(server, range(40))
        assert 3 <= len(server.seen) <= 3 * 4  # and what is under way
        assert ask(server, range(8), **mends) == expected(*range(8))


def test_a_schema_is_sent_with_its_question_alone_and_extra_body_changes_it():
    schema = {"type": "object", "properties": {}}
    with serving() as server:
        endpoint = connect_endpoint(config_for(server))
        image = numbered_image(1)
        endpoint([Question(image=image, prompt="a", schema=schema), Question(image=image, prompt="b")])
        endpoint.close()
        endpoint = connect_endpoint(config_for(server, extra_body={"response_format": {"type": "json_object"}}))
        endpoint([Question(image=image, prompt="c", schema=schema)])
        endpoint.close()
    sent = {seen.prompt: seen.body.get("response_format") for seen in server.seen}
    asked_for = {"type": "json_schema", "json_schema": {"name": "heard", "strict": True, "schema": schema}}
    assert sent == {"a": asked_for, "b": None, "c": {"type": "json_object"}}


def test_two_questions_are_enough_where_there_are_two():
    with serving(refuses=lambda _body: MAX_TOKENS) as server, pytest.raises(ConcernsAll):
        ask(server, range(2))


def test_refusals_in_unknown_words_concern_all_where_nobody_is_answered():
    with serving(Fault("status", status=400)) as server:
        with pytest.raises(ConcernsAll, match=r"400 as told: mend what it names; extra_body"):
            ask(server, range(40))
        assert len(server.seen) <= 2 * 4


def test_refusals_in_unknown_words_concern_their_images_where_another_is_answered():
    refused = [Fault("status", status=400, number=number) for number in (0, 1, 2)]
    with serving(*refused, Fault("hang", delay_sec=0.3, number=3)) as server:
        answers = ask(server, range(12))
    assert [n for n, answer in enumerate(answers) if isinstance(answer, NoAnswer)] == [0, 1, 2]
    assert answers[3:] == expected(*range(3, 12))


FILTERED = json.dumps({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]})
# What becomes of question 3, long after others were refused.
LAST = {
    "a filter ends it": (
        (
            Fault("status", status=503, retry_after="1", number=3, tries=1),
            Fault("reply", status=200, body=FILTERED, number=3),
        ),
        "ended by content_filter",
    ),
    "it fails alone": ((Fault("status", status=500, number=3),), "failed 8 times"),
}


def answers_within(sec: float, server: FaultyServer, numbers: range, policy: RetryPolicy = QUICK) -> list:
    vlm = connect_endpoint(config_for(server), policy)
    answers = vlm.submit(questions(*numbers))
    try:
        return answers.result(timeout=sec)
    finally:
        answers.cancel()
        vlm.close()


@pytest.mark.parametrize("last", LAST)
def test_those_who_wait_are_asked_where_the_last_under_way_decides_nothing(last):
    faults, detail = LAST[last]
    refused = [Fault("status", status=400, number=number) for number in (0, 1, 2, 4, 5)]  # 4 and 5 begin beside 2
    with serving(*refused, *faults, latency_sec=0.02) as server:
        answers = answers_within(20, server, range(8))
    assert [n for n, answer in enumerate(answers) if isinstance(answer, NoAnswer)] == [0, 1, 2, 3, 4, 5]
    assert detail in answers[3].detail
    assert answers[6:] == expected(6, 7)


@pytest.mark.parametrize("last", LAST)
def test_a_server_that_refuses_all_but_one_is_still_found_out(last):
    with serving(*LAST[last][0], Fault("status", status=400), latency_sec=0.02) as server:
        with pytest.raises(ConcernsAll, match="400 as told"):
            answers_within(20, server, range(12))
        assert {seen.number for seen in server.seen} < set(range(12))


def test_a_call_beside_one_that_is_refused_whole_is_told_too_and_waits_for_nobody():
    with serving(Fault("status", status=400), latency_sec=0.1) as server:
        vlm = connect_endpoint(config_for(server), QUICK)
        calls = [vlm.submit(questions(*range(start, start + 6))) for start in (0, 10)]
        calls.append(vlm.submit(questions(20)))
        for call in calls:
            with pytest.raises(ConcernsAll):
                call.result(timeout=20)
        vlm.close()


def test_images_that_are_refused_for_a_field_between_answers_stop_nothing():
    temperature = [Fault("reply", status=400, body='{"error": "temperature"}', number=n) for n in (2, 4, 6, 8, 20)]
    with serving(*temperature) as server:
        vlm = connect_endpoint(config_for(server, concurrency=1), QUICK)
        answers = vlm(questions(*range(10)))
        (alone,) = vlm(questions(20))  # the last of a unit
        vlm.close()
    assert [n for n, answer in enumerate(answers) if isinstance(answer, NoAnswer)] == [2, 4, 6, 8]
    assert isinstance(alone, NoAnswer)


def test_a_refused_account_stops_all():
    body = '{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'
    with serving(Fault("reply", status=429, body=body)) as server, pytest.raises(ConcernsAll, match="the account"):
        ask(server, range(8))


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


@pytest.fixture
def silent_port():
    """Who takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        yield listening.getsockname()[1]


def refused_at(url: str, **fields) -> str:
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        check_endpoint(config_for(url=url, **fields))
    assert time.monotonic() - began < 10
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_address_where_nobody_answers_is_said_within_seconds(free_port, silent_port, monkeypatch):
    monkeypatch.setattr("sonify.vlm.endpoint.MODELS_TIMEOUT_SEC", 3.5)
    monkeypatch.setattr("sonify.vlm.endpoint.SECONDS_TO_LOOK", 0.5)
    for variable in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    at_port = f"extractor stub: nobody answers at http://127.0.0.1:{free_port}/v1 (Connect call failed"
    assert refused_at(f"http://127.0.0.1:{free_port}/v1").startswith(at_port)
    silent = refused_at(f"http://127.0.0.1:{silent_port}")
    assert f"(not within 3.5 s): start the server first and wait until http://127.0.0.1:{silent_port}/models" in silent
    assert "give the same command again, which goes on; or correct url" in silent
    assert "nobody answers at http://no-such-host.invalid/v1 (" in refused_at("http://no-such-host.invalid/v1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert "HTTPS_PROXY is set, and no proxy is used" in refused_at(f"http://127.0.0.1:{free_port}/v1")


def test_a_server_that_restarts_is_found():
    with serving() as first:
        port = int(first.url.split(":")[2].split("/")[0])
    with ThreadPoolExecutor(1) as caller:
        check = caller.submit(check_endpoint, config_for(url=f"http://127.0.0.1:{port}/v1"))
        time.sleep(0.5)
        assert not check.done()
        with serving(port=port):
            assert check.result() is None


def test_tls_where_there_is_none_is_said():
    with serving() as server:
        assert "speaks no TLS: set url to http://" in refused_at(server.url.replace("http:", "https:"))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda: web.Response(text="<html>Sign in</html>", content_type="text/html"), "answers with a page"),
        (lambda: web.Response(status=302, headers={"Location": "/login"}), "302.*final address"),
        (lambda: web.Response(status=400, text="The plain HTTP request was sent to HTTPS port"), "set url to https"),
    ],
)
def test_what_is_no_models_server_is_said(answer, says):
    with serving(lists=answer) as server, pytest.raises(InputError, match=says):
        check_endpoint(config_for(server))


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(status=404),
        lambda: web.Response(status=503),
        lambda: web.json_response({"models": []}),
        lambda: web.json_response({"data": []}),
    ],
)
def test_a_server_that_lists_no_models_or_is_not_ready_is_asked_all_the_same(answer):
    with serving(lists=answer) as server:
        check_endpoint(config_for(server))
        assert ask(server, [1]) == expected(1)


def test_an_address_without_its_last_step_is_said_and_one_with_a_step_too_many_is_read():
    with serving() as server:
        root = server.url.removesuffix("/v1")
        assert f"set url: {root}/v1" in refused_at(root)
        for url in (f"{server.url}/", f"{server.url}/chat/completions", f"{server.url}/chat/completions/"):
            config = config_for(url=url)
            check_endpoint(config)
            assert connect_and_ask(config) == expected(1)


def connect_and_ask(config: EndpointVlm) -> list:
    vlm = connect_endpoint(config, QUICK)
    try:
        return vlm(questions(1))
    finally:
        vlm.close()
