"""How a server that fails is asked again: jittered waits, a deadline for each question, a breaker for the client."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from itertools import count
from typing import TypeVar

from sonify.errors import TransientError

Out = TypeVar("Out")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`timeout_sec` bounds one try whatever the server does; no try begins `max_wait_sec` after the first or later."""

    timeout_sec: float
    max_wait_sec: float
    first_delay_sec: float = 0.5
    longest_delay_sec: float = 30.0
    most_bad_replies: int = 5  # of a server that answers nobody
    tries_to_blame: int = 8  # some 45 s of failing while others are answered: the question is to blame
    bad_replies_to_blame: int = 2  # what a server says of a question in its own way, it says again
    failures_to_open: int = 10

    def delay_sec(self, tries: int) -> float:
        """Exponential with full jitter, so that clients that failed together do not come back together.

        Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        longest = min(self.longest_delay_sec, self.first_delay_sec * 2.0 ** min(tries - 1, 30))
        return random.uniform(0, longest)  # noqa: S311 - spreads load, decides nothing


class Cause(Enum):
    """What a failed try says of the server."""

    DOWN = "down"  # no connection, no answer in time, 5xx
    BUSY = "busy"  # it is there and asks for patience
    BAD_REPLY = "bad reply"  # 200, and not what was asked for: a proxy's page, half a JSON


class TryFailed(Exception):
    """One try failed and the next may not."""

    def __init__(self, cause: Cause, what: str, retry_after_sec: float = 0.0) -> None:
        super().__init__(what)
        self.cause = cause
        self.retry_after_sec = retry_after_sec


class QuestionFails(Exception):
    """The server is well, and this question fails again and again."""


class CircuitBreaker:
    """Opens after so many failures in a row over the whole client; then one request at a time probes the server."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self.answered = 0
        self.undecided = 0  # questions under way that have not failed yet
        self._last_answered: Callable[[], Awaitable[object]] | None = None
        self._probing = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the server counts as down."""
        return self._failures >= self._policy.failures_to_open

    async def run(self, ask: Callable[[], Awaitable[Out]], deadline: float) -> Out:
        """Ask once, now or, while the breaker is open, when it is this question's turn to probe.

        Raises:
            TryFailed: the try failed.
            TimeoutError: the deadline came before the turn.
        """
        if not self.is_open:
            return await self._watched(ask)
        async with asyncio.timeout_at(deadline):
            await self._probing.acquire()
        try:
            if self.is_open:
                delay_sec = self._policy.delay_sec(1 + self._failures - self._policy.failures_to_open)
                await asyncio.sleep(max(0.0, min(delay_sec, deadline - asyncio.get_running_loop().time())))
                return await self._watched(ask)
        finally:
            self._probing.release()
        return await self._watched(ask)

    async def ask_again(self, deadline: float) -> None:
        """Ask what was answered last: whether the server is well shows in `answered`."""
        if self._last_answered is not None:
            with suppress(TryFailed, TimeoutError):
                await self.run(self._last_answered, deadline)

    async def _watched(self, ask: Callable[[], Awaitable[Out]]) -> Out:
        try:
            answer = await ask()
        except TryFailed as failed:
            # a server that says nonsense is not down, and no patience helps it up
            self._failures = {Cause.BUSY: 0, Cause.DOWN: self._failures + 1}.get(failed.cause, self._failures)
            raise
        self._failures = 0
        self.answered += 1
        self._last_answered = ask
        return answer


async def persist(ask: Callable[[], Awaitable[Out]], policy: RetryPolicy, breaker: CircuitBreaker, where: str) -> Out:
    """Ask until there is an answer.

    A question is to blame that fails so often while the server answers others; where nobody else asks, what was
    answered last is asked again. So neither an outage nor the end of a unit costs a row or a unit.

    Raises:
        TransientError: the deadline has passed, or so many replies were no answers that waiting will not help.
        QuestionFails: others are answered meanwhile.
    """
    clock = asyncio.get_running_loop().time
    start = clock()
    deadline = start + policy.max_wait_sec
    answered, bad_replies, failures, last = breaker.answered, 0, 0, "the server fails for other requests"
    for tries in count(1):
        breaker.undecided += tries == 1
        try:
            return await breaker.run(ask, deadline)
        except TimeoutError:
            raise TransientError(f"{where}: gave up after {clock() - start:.0f} s: {last}") from None
        except TryFailed as failure:
            failed = failure  # nothing is raised here: an HTTP error in the chain would hold the request's key
        finally:
            breaker.undecided -= tries == 1
        is_bad = failed.cause is Cause.BAD_REPLY
        last, bad_replies, failures = str(failed), bad_replies + is_bad, failures + (failed.cause is not Cause.BUSY)
        enough = failures >= (policy.bad_replies_to_blame if is_bad else policy.tries_to_blame)
        if enough and is_bad and breaker.answered == answered:
            await breaker.ask_again(deadline)
        if enough and failed.cause is not Cause.BUSY and breaker.answered > answered:
            raise QuestionFails(f"failed {failures} times in {clock() - start:.0f} s, others did not: {last}")
        # the first answers of a server take longer than five times nonsense
        if clock() >= deadline or (bad_replies >= policy.most_bad_replies and not breaker.undecided):
            raise TransientError(f"{where}: gave up after {tries} tries in {clock() - start:.0f} s: {last}")
        answered = breaker.answered
        delay_sec = max(policy.delay_sec(tries), failed.retry_after_sec)
        await asyncio.sleep(min(delay_sec, max(0.0, deadline - clock())))
        # and then the question once more: an outage may have ended in between
        if failures >= policy.tries_to_blame - 1 and breaker.answered == answered:
            await breaker.ask_again(deadline)
    raise AssertionError


def parse_retry_after(value: str | None) -> float:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; 0 where it holds neither.

    Source: RFC 9110, 10.2.3.
    """
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value)
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _seconds_until(date: str) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return 0.0
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
