"""A vision-language model behind an OpenAI-compatible server, asked many questions at a time over a few connections."""

import asyncio
import base64
import io
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from sonify.config.sections import EndpointVlm, RemoteVlm
from sonify.errors import InputError
from sonify.rows import Reason
from sonify.vlm.questions import Answer, NoAnswer, Question
from sonify.vlm.retrying import (
    Cause,
    CircuitBreaker,
    QuestionFails,
    RetryPolicy,
    TryFailed,
    parse_retry_after,
    persist,
)

# A well-formed answer has some kilobytes; a server that sends more without end must not fill the memory.
MAX_REPLY_BYTES = 4 << 20
JPEG_QUALITY = 90
# This one question is refused: too long, an image that the server cannot take, a forbidden content.
REFUSED = frozenset({400, 413, 415, 422, 451})
# The server is there and asks for patience: request timeout, conflict, too early, too many requests.
BUSY = frozenset({408, 409, 425, 429})
LONGEST_QUOTE_CHARS = 200
REQUEST_ID = re.compile(r"sonify-[0-9a-f]{32}")
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

    def hide_key_in(self, said: str) -> str:
        """The same once JSON's escapes are undone."""
        return self.hide_key(said.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")

    def refusal(self, status: int, said: str = "") -> InputError:
        """A status that no waiting and no other question changes: the address, the key or the model is wrong."""
        if status in (401, 403):
            named = f"the key in {self.key_env}" if self.key_env else "api_key_env, which names no variable"
            advice = f"check {named}"
        elif 300 <= status < 400:
            advice = "redirects are not followed, for the key's sake: set url to the final address"
        else:
            advice = f"check url (it usually ends in /v1) and model ({self.model})"
        return InputError(f"{self.url} answers {f'{status} {said}'.strip()}: {advice}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server sent back; `request_id` is the one that it names, if it names any."""

    status: int
    body: bytes
    retry_after: str | None = None
    request_id: str = ""


def connect_endpoint(config: EndpointVlm, policy: RetryPolicy | None = None) -> "Endpoint":
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
    """See that the key is there and that the server, if it answers now, serves the model."""
    connect_endpoint(config).close()


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
    """A `LoadedVlm`; calls from several threads share its connections, its limit and its breaker."""

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
        """Answer questions, in their order."""
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
        """Ask which models are served, if the server says; refuse another model and a wrong key."""
        service = self._service
        reply = self._on_loop(self._get(f"{service.url}/models", MODELS_TIMEOUT_SEC)).result()
        if reply is None:
            _logger.warning("%s does not answer yet; each question is tried for some time", service.url)
            return
        if reply.status in (401, 403):
            raise service.refusal(reply.status)
        served = _names_served(reply.body) if reply.status == 200 else []
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
        """One try, which ends within the timeout."""
        request_id = f"sonify-{uuid.uuid4().hex}"
        return _read_reply(await self._post(body, request_id), request_id, self._service)

    async def _post(self, body: bytes, request_id: str) -> Reply:
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
            said = _quote(service.hide_key(str(error).encode()))
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


async def _open_session(key: str) -> aiohttp.ClientSession:
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0),  # the semaphore limits
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),  # each try has its own
        trust_env=False,  # no proxy, no .netrc
    )


def encode_request(question: Question, model: str, max_new_tokens: int) -> bytes:
    """The body of a request. The image travels inside it: a server has no need to fetch anything."""
    jpeg = io.BytesIO()
    question.image.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg.getbuffer()).decode("ascii")
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.prompt}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": max_new_tokens,
        "stream": False,
    }
    return json.dumps(body).encode()


def _read_reply(reply: Reply, request_id: str, service: Service) -> Answer | NoAnswer:
    """What a reply says of the question."""
    if reply.status == 200:
        return _read_answer(reply, request_id, service)
    said = f"the server answers {reply.status} {_quote(reply.body)}".strip()
    if reply.status in REFUSED:
        return NoAnswer(reason=Reason.NO_ANSWER, detail=service.hide_key_in(said))
    if reply.status in BUSY:
        raise TryFailed(Cause.BUSY, said, parse_retry_after(reply.retry_after))
    if reply.status >= 500:
        raise TryFailed(Cause.DOWN, said, parse_retry_after(reply.retry_after))
    if 200 < reply.status < 300:
        raise TryFailed(Cause.BAD_REPLY, said)
    raise service.refusal(reply.status, _quote(reply.body))


def _read_answer(reply: Reply, request_id: str, service: Service) -> Answer:
    try:
        fields = json.loads(reply.body)
        choice = fields["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        # a model that refuses has no content in OpenAI's own form: what it says is an answer too
        text = message["content"] if message["content"] is not None else message.get("refusal") or ""
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        raise TryFailed(Cause.BAD_REPLY, f"no JSON with choices[0].message.content: {_quote(reply.body)}") from None
    if not isinstance(text, str):
        raise TryFailed(Cause.BAD_REPLY, f"message.content is no text: {_quote(reply.body)}")
    # a reply that carries another such name is another request's
    for named in REQUEST_ID.findall(f"{reply.request_id} {fields.get('id')}"):
        if named != request_id:
            raise TryFailed(Cause.BAD_REPLY, "the answer to another request")
    return Answer(text=service.hide_key_in(text), finished=finish != "length")


def _names_served(body: bytes) -> list[str]:
    """The models that a `/models` answer lists; none where it is something else."""
    try:
        return [model["id"] for model in json.loads(body)["data"] if isinstance(model["id"], str)]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []


def _quote(body: bytes) -> str:
    """The begin of what a server said, as one printable line."""
    text = " ".join(body[: 4 * LONGEST_QUOTE_CHARS].decode("utf-8", "replace").split())
    return "".join(char for char in text if char.isprintable())[:LONGEST_QUOTE_CHARS]
