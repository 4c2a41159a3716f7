"""A vision-language model behind an OpenAI-compatible server, asked many questions at a time over a few connections."""

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from sonify.config.config import EndpointVlm, RemoteVlm
from sonify.errors import InputError
from sonify.rows import Reason
from sonify.vlm.questions import Answer, NoAnswer, Question
from sonify.vlm.retrying import Cause, CircuitBreaker, QuestionFails, RetryPolicy, TryFailed, persist
from sonify.vlm.wire import Reply, ServerRefused, encode_request, names_served, new_request_id, quote, read_reply

# A well-formed answer has some kilobytes; a server that sends more without end must not fill the memory.
MAX_REPLY_BYTES = 4 << 20
# Encoding a 672-pixel JPEG takes some 6 ms of one core without the interpreter's lock.
ENCODER_THREADS = 4
MODELS_TIMEOUT_SEC = 10.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Which model is asked where. The key's value appears in no message; `key_env` names its variable."""

    url: str
    model: str
    max_new_tokens: int
    concurrency: int
    key: str = field(default="", repr=False)
    key_env: str | None = None

    def hide_key(self, said: bytes) -> bytes:
        """Take the key out of what a server said: some echo it."""
        return said.replace(self.key.encode(), b"***") if self.key else said


def load(config: EndpointVlm, policy: RetryPolicy | None = None) -> "Endpoint":
    """Connect to a server that runs already.

    Raises:
        InputError: the key's variable is not set, or the server does not serve the model, or refuses the key.
    """
    service = Service(
        url=config.url.rstrip("/"),
        model=config.model,
        max_new_tokens=config.max_new_tokens,
        concurrency=config.concurrency,
        key=_read_key(config),
        key_env=config.api_key_env,
    )
    endpoint = Endpoint(service, policy or policy_of(config))
    try:
        endpoint.check_model()
    except InputError:
        endpoint.close()
        raise
    return endpoint


def check_endpoint(config: EndpointVlm) -> None:
    """See that the key is there and that the server, if it answers now, serves the model.

    Raises:
        InputError: one of them is not so.
    """
    load(config).close()


def policy_of(config: RemoteVlm) -> RetryPolicy:
    """The policy with a configuration's times; few connections need few failures to be sure."""
    return RetryPolicy(
        timeout_sec=config.timeout_sec,
        max_wait_sec=config.max_wait_sec,
        failures_to_open=max(3, min(10, config.concurrency)),
    )


def _read_key(config: EndpointVlm) -> str:
    if config.api_key_env is None:
        return ""
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise InputError(
            f"extractor {config.name}: api_key_env names {config.api_key_env}, and the environment of the worker "
            "has no such variable or an empty one; export it before the start, on every node"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(f"extractor {config.name}: {config.api_key_env} holds characters that no key can have")
    return key


class Endpoint:
    """A `Vlm`; calls from several threads share its connections, its limit and its breaker."""

    def __init__(self, service: Service, policy: RetryPolicy) -> None:
        self._service = service
        self._policy = policy
        self._breaker = CircuitBreaker(policy)
        self._slots = asyncio.Semaphore(service.concurrency)
        self._encoders = ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="encode")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()
        self._session = self._on_loop(_open_session(service.key)).result()

    def __call__(self, questions: Sequence[Question]) -> list[Answer | NoAnswer]:
        """Answer questions, in their order.

        Raises:
            TransientError: the server is not there or not well.
            InputError: it refuses the key, the model or the address.
        """
        answers = self.submit(questions)
        try:
            return answers.result()
        finally:
            answers.cancel()  # an interrupted caller's requests end too

    def submit(self, questions: Sequence[Question]) -> "Future[list[Answer | NoAnswer]]":
        """Begin to answer questions."""
        return self._on_loop(self._answer_all(questions))

    @property
    def is_struggling(self) -> bool:
        """Whether the last requests all failed."""
        return self._breaker.is_open

    def status_of(self, url: str, timeout_sec: float) -> int | None:
        """The status with which a page of the server answers; None where it does not."""
        reply = self._on_loop(self._get(url, timeout_sec)).result()
        return reply.status if reply else None

    def check_model(self) -> None:
        """Ask which models are served, if the server says.

        Raises:
            InputError: this one is not, or the key is refused.
        """
        service = self._service
        reply = self._on_loop(self._get(f"{service.url}/models", MODELS_TIMEOUT_SEC)).result()
        if reply is None:
            _logger.warning("%s does not answer yet; each question is tried for some time", service.url)
            return
        if reply.status in (401, 403):
            raise self._refusal(ServerRefused(reply.status, ""))
        served = names_served(reply.body) if reply.status == 200 else []
        # `transformers serve` lists what lies in the hub's cache, not the folder that it serves
        if served and service.model not in served and not Path(service.model).is_dir():
            names = ", ".join(served[:10])
            raise InputError(f"{service.url} does not serve the model {service.model!r}; set model to one of: {names}")

    def close(self) -> None:
        """End what is under way and the connections."""
        if self._loop.is_closed():
            return
        self._on_loop(self._shut_down()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def _on_loop(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()

    async def _answer_all(self, questions: Sequence[Question]) -> list[Answer | NoAnswer]:
        tasks = [asyncio.create_task(self._answer(question)) for question in questions]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, question: Question) -> Answer | NoAnswer:
        service = self._service
        body = await self._loop.run_in_executor(
            self._encoders, encode_request, question, service.model, service.max_new_tokens
        )
        # a question that waits to be tried again keeps its slot: a server that asks for patience is asked less
        async with self._slots:
            try:
                return await persist(lambda: self._ask(body), self._policy, self._breaker, service.url)
            except QuestionFails as failed:
                return NoAnswer(reason=Reason.NO_ANSWER, detail=str(failed))

    async def _ask(self, body: bytes) -> Answer | NoAnswer:
        request_id = new_request_id()
        reply = await self._post(body, request_id)
        try:
            return self._without_key(read_reply(reply, request_id))
        except ServerRefused as refused:
            raise self._refusal(refused) from None

    async def _post(self, body: bytes, request_id: str) -> Reply:
        """One try, which ends within the timeout, or TryFailed."""
        service, timeout_sec = self._service, self._policy.timeout_sec
        url = f"{service.url}/chat/completions"
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        try:
            async with (
                asyncio.timeout(timeout_sec),
                self._session.post(url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                return await self._read_whole(response)
        except aiohttp.ClientConnectorCertificateError as error:
            raise InputError(f"{service.url}: its certificate is not valid: {error.certificate_error}") from None
        except TimeoutError:
            raise TryFailed(Cause.DOWN, f"no whole answer within {timeout_sec:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            said = quote(service.hide_key(str(error).encode()))
            raise TryFailed(Cause.DOWN, f"{type(error).__name__}: {said}") from None

    async def _get(self, url: str, timeout_sec: float) -> Reply | None:
        try:
            async with asyncio.timeout(timeout_sec), self._session.get(url, allow_redirects=False) as response:
                return await self._read_whole(response)
        except (aiohttp.ClientError, OSError, TimeoutError, TryFailed):
            return None

    async def _read_whole(self, response: aiohttp.ClientResponse) -> Reply:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_REPLY_BYTES:
                raise TryFailed(Cause.BAD_REPLY, f"an answer longer than {MAX_REPLY_BYTES >> 20} MiB")
        return Reply(
            status=response.status,
            body=self._service.hide_key(bytes(body)),
            retry_after=response.headers.get("Retry-After"),
            request_id=response.headers.get("X-Request-Id", ""),
        )

    def _without_key(self, said: Answer | NoAnswer) -> Answer | NoAnswer:
        """Once more where JSON's escapes are undone."""
        hide = self._service.hide_key
        if isinstance(said, NoAnswer):
            return replace(said, detail=hide(said.detail.encode("utf-8", "surrogatepass")).decode("utf-8", "replace"))
        return replace(said, text=hide(said.text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace"))

    def _refusal(self, refused: ServerRefused) -> InputError:
        service = self._service
        if refused.status in (401, 403):
            named = f"the key in {service.key_env}" if service.key_env else "api_key_env, which names no variable"
            advice = f"check {named}"
        elif 300 <= refused.status < 400:
            advice = "redirects are not followed, for the key's sake: set url to the final address"
        else:
            advice = f"check url (it usually ends in /v1) and model ({service.model})"
        return InputError(f"{service.url} answers {refused}: {advice}")


async def _open_session(key: str) -> aiohttp.ClientSession:
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0),  # the semaphore limits
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),  # each try has its own
        trust_env=False,  # no proxy, no .netrc
    )
