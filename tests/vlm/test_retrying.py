import asyncio
import selectors
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from sonify.errors import TransientError
from sonify.vlm.retrying import Cause, CircuitBreaker, QuestionFails, RetryPolicy, TryFailed, parse_retry_after, persist


class Clock(selectors.SelectSelector):
    """Jumps to a loop's next timer instead of waiting for it."""

    now_sec = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout:
            self.now_sec += timeout
        return events


class SkippingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_sec


class Service:
    """Notes when it is asked and how many ask with it; fails as it is told, try by try, the last for ever."""

    def __init__(self, *failures: TryFailed | None, latency_sec: float = 0.0) -> None:
        self._failures = failures
        self._latency_sec = latency_sec
        self._now = 0
        self.asked_at_sec: list[float] = []
        self.at_once: list[int] = []

    async def __call__(self) -> str:
        self.asked_at_sec.append(asyncio.get_running_loop().time())
        failure = self._failures[min(len(self.asked_at_sec), len(self._failures)) - 1]
        self._now += 1
        self.at_once.append(self._now)
        await asyncio.sleep(self._latency_sec)
        self._now -= 1
        if failure is not None:
            raise failure
        return "answer"


def down() -> TryFailed:
    return TryFailed(Cause.DOWN, "no connection")


def busy(retry_after_sec: float = 0.0) -> TryFailed:
    return TryFailed(Cause.BUSY, "too many requests", retry_after_sec)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(work)


def ask(service: Service, policy: RetryPolicy) -> str:
    return run(persist(service, policy, CircuitBreaker(policy), "here"))


def test_a_server_that_asks_for_two_seconds_is_given_them():
    policy = RetryPolicy(timeout_sec=1, max_wait_sec=60, first_delay_sec=0.05)
    service = Service(busy(2.0), None)
    assert ask(service, policy) == "answer"
    assert service.asked_at_sec == [0.0, 2.0]


def test_waiting_ends_with_what_is_left_of_max_wait():
    policy = RetryPolicy(timeout_sec=1, max_wait_sec=30)
    service = Service(busy(3600.0))
    with pytest.raises(TransientError, match=r"here: gave up after 2 tries in 30 s: too many requests"):
        ask(service, policy)
    assert service.asked_at_sec == [0.0, 30.0]


def test_waits_grow_to_the_longest_and_no_try_begins_after_max_wait():
    policy = RetryPolicy(timeout_sec=1, max_wait_sec=600, first_delay_sec=1, longest_delay_sec=8, tries_to_blame=10_000)
    service = Service(busy())
    with pytest.raises(TransientError, match="in 600 s"):
        ask(service, policy)
    waits_sec = [after - before for before, after in zip(service.asked_at_sec, service.asked_at_sec[1:], strict=False)]
    assert service.asked_at_sec[-1] == pytest.approx(600)
    assert waits_sec[0] <= 1
    assert waits_sec[1] <= 2
    assert max(waits_sec) <= 8
    assert 600 / 8 < len(waits_sec) < 400


def test_all_who_wait_for_an_open_breaker_give_up_when_their_time_is_over():
    policy = RetryPolicy(timeout_sec=5, max_wait_sec=30, first_delay_sec=1, failures_to_open=3)
    service = Service(down())

    async def thirty() -> tuple[list[str | BaseException], float]:
        breaker = CircuitBreaker(policy)
        asks = [persist(service, policy, breaker, "here") for _ in range(30)]
        results = await asyncio.gather(*asks, return_exceptions=True)
        return results, asyncio.get_running_loop().time()

    results, ended_sec = run(thirty())
    assert {type(result) for result in results} == {TransientError}
    assert ended_sec == pytest.approx(30)
    assert len([at for at in service.asked_at_sec if at > 0]) < 60  # one at a time, with waits between


def test_an_open_breaker_lets_one_request_at_a_time_probe():
    policy = RetryPolicy(timeout_sec=5, max_wait_sec=3600, failures_to_open=8)
    # thirty requests at once fail, and the server takes its time to say so
    service = Service(*(down() for _ in range(40)), None, latency_sec=0.05)

    async def thirty() -> list[str]:
        breaker = CircuitBreaker(policy)
        return await asyncio.gather(*(persist(service, policy, breaker, "here") for _ in range(30)))

    assert run(thirty()) == ["answer"] * 30
    assert service.at_once[:30] == list(range(1, 31))
    assert service.at_once[30:41] == [1] * 11  # the last of these is answered well, and the others may go
    assert max(service.at_once[41:]) > 4
    assert len(service.at_once) == 70


def test_a_question_is_to_blame_after_so_many_tries_while_others_are_answered():
    policy = RetryPolicy(timeout_sec=5, max_wait_sec=600)
    failing, well = Service(down()), Service(None)

    async def both() -> None:
        breaker = CircuitBreaker(policy)

        async def after_others() -> str:
            await asyncio.gather(*(persist(well, policy, breaker, "here") for _ in range(2)))
            return await failing()

        await persist(after_others, policy, breaker, "here")

    with pytest.raises(QuestionFails):
        run(both())
    assert len(failing.asked_at_sec) == policy.tries_to_blame


def test_answers_before_an_outage_blame_no_question_that_fails_in_it():
    policy = RetryPolicy(timeout_sec=5, max_wait_sec=600, failures_to_open=100)
    failing, well = Service(down()), Service(*[None] * 20, down())

    async def both() -> None:
        breaker = CircuitBreaker(policy)

        async def after_others() -> str:
            while len(well.asked_at_sec) < 20:
                await persist(well, policy, breaker, "here")
            return await failing()

        await persist(after_others, policy, breaker, "here")

    with pytest.raises(TransientError, match="gave up"):
        run(both())
    assert len(failing.asked_at_sec) > policy.tries_to_blame
    assert len(well.asked_at_sec) > 20  # it was asked again, and did not answer


def test_nothing_but_nonsense_ends_soon_and_beside_a_server_that_is_well_at_once():
    policy = RetryPolicy(timeout_sec=5, max_wait_sec=600)
    nonsense = Service(TryFailed(Cause.BAD_REPLY, "no choices"))
    with pytest.raises(TransientError, match="gave up after 5 tries"):
        ask(nonsense, policy)

    async def after_another() -> None:
        breaker = CircuitBreaker(policy)
        await persist(Service(None), policy, breaker, "here")
        await persist(nonsense, policy, breaker, "here")

    with pytest.raises(QuestionFails, match="failed 2 times"):
        run(after_another())


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", 0), ("nan", 0), ("inf", 0), ("", 0), (None, 0)]
)
def test_retry_after_in_seconds(value, seconds):
    assert parse_retry_after(value) == seconds


def test_retry_after_as_a_date():
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert parse_retry_after(format_datetime(later, usegmt=True)) == pytest.approx(90, abs=2)
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(
    "date", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 +99999999999999"]
)
def test_a_date_that_is_none_counts_as_no_header(date):
    assert parse_retry_after(date) == 0.0
