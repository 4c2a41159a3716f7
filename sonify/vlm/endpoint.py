"""A vision-language model behind an OpenAI-compatible server, asked many questions at a time over a few connections."""

import asyncio
import base64
import io
import json
import logging
import os
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from sonify.config.models import EndpointVlm, RemoteVlm
from sonify.errors import ConcernsAll, InputError
from sonify.rows import Reason
from sonify.vlm.questions import Answer, NoAnswer, Question, SoundQuestion
from sonify.vlm.replies import Reply, Service, advice_for, names_served, quote, read_reply
from sonify.vlm.retrying import Cause, CircuitBreaker, QuestionFails, RetryPolicy, TryFailed, persist

# A well-formed answer has some kilobytes; a server that sends more without end must not fill the memory.
MAX_REPLY_BYTES = 4 << 20
JPEG_QUALITY = 90
# Encoding a 672-pixel JPEG takes some 6 ms of one core without the interpreter's lock.
ENCODER_THREADS = 4
MODELS_TIMEOUT_SEC = 10.0
# Before a run: a server that restarts is back by then, and an address where nobody is is said soon.
SECONDS_TO_LOOK, SECONDS_BETWEEN_LOOKS = 3.0, 1.0
# So many questions refused in the same words, and none answered meanwhile, are no accident.
FEW = 3
PROXY_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")

_logger = logging.getLogger(__name__)
_NUMBER = re.compile(r"\d+")


def connect_endpoint(config: EndpointVlm, policy: RetryPolicy | None = None) -> "Endpoint":
    """Connect to a server that runs already.

    Raises:
        InputError: the key's variable is not set, or the server does not serve the model, or refuses the key.
    """
    policy = policy or policy_of(config)
    endpoint = Endpoint(service_of(config, config.url, config.model, _read_key(config)), policy)
    try:
        if absent := endpoint.find_model():
            _logger.warning(
                "%s does not answer yet (%s); each question is tried for %g s (max_wait_sec)",
                config.url,
                absent,
                policy.max_wait_sec,
            )
    except InputError:
        endpoint.close()
        raise
    return endpoint


def check_endpoint(config: EndpointVlm) -> None:
    """See, before any work, that the key is there and that somebody at the address serves the model.

    Raises:
        InputError: the key's variable is not set, nobody answers, or who does has not the model or refuses the key.
    """
    endpoint = Endpoint(service_of(config, config.url, config.model, _read_key(config)), policy_of(config))
    started = time.monotonic()
    try:
        while absent := endpoint.find_model():
            if time.monotonic() - started > SECONDS_TO_LOOK:
                raise InputError(
                    f"extractor {config.name}: nobody answers at {config.url} ({absent}): start the server first and"
                    f" wait until {config.url}/models answers (a large model loads for minutes), then give the same"
                    f" command again, which goes on; or correct url{_about_proxies()}"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        endpoint.close()


def _about_proxies() -> str:
    names = [name for name in PROXY_VARIABLES if os.environ.get(name) or os.environ.get(name.lower())]
    return f"; {names[0]} is set, and no proxy is used" if names else ""


def service_of(config: RemoteVlm, url: str, model: str, key: str = "") -> Service:
    """Who is asked there, in the way of the configuration."""
    return Service(
        url=url.rstrip("/"),
        model=model,
        max_new_tokens=config.max_new_tokens,
        concurrency=config.concurrency,
        key=key,
        key_env=config.api_key_env if isinstance(config, EndpointVlm) else None,
        token_limit=config.token_limit,
        temperature=config.temperature,
        system=config.system,
        extra=config.extra_body,
    )


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
        self._refusals = Refusals()
        self._encoders = ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="encode")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()
        self._session = self._on_loop(_open_session(service.key)).result()

    def __call__(self, questions: Sequence[Question | SoundQuestion]) -> list[Answer | NoAnswer]:
        """Answer questions, in their order."""
        answers = self.submit(questions)
        try:
            return answers.result()
        finally:
            answers.cancel()  # an interrupted caller's requests end too

    def submit(self, questions: Sequence[Question | SoundQuestion]) -> "Future[list[Answer | NoAnswer]]":
        """Begin to answer questions."""
        return self._on_loop(self._answer_all(questions))

    @property
    def is_struggling(self) -> bool:
        """Whether the last requests all failed."""
        return self._breaker.is_open

    def status_of(self, url: str, timeout_sec: float) -> int | None:
        """The status with which a page of the server answers; None where it does not."""
        reply = self._on_loop(self._get(url, timeout_sec)).result()
        return reply.status if isinstance(reply, Reply) else None

    def find_model(self) -> str:
        """Ask which models are served, if the server says; return why nobody answers, or nothing.

        Raises:
            InputError: another model is served, the key is refused, or this is no address of such a server.
        """
        service = self._service
        reply = self._look(f"{service.url}/models")
        if isinstance(reply, str):
            return reply
        if reply.status in (401, 403) or 300 <= reply.status < 400:
            raise service.refusal(reply.status)
        if reply.status == 400 and b"HTTPS" in reply.body:
            raise InputError(f"{service.url} answers 400 {quote(reply.body)}: set url to https://...")
        served = names_served(reply.body) if reply.status == 200 else []
        if served is None or reply.status in (404, 405):
            self._refuse_other_place(reply)
        # `transformers serve` lists what lies in the hub's cache, not the folder that it serves
        if served and service.model not in served and not Path(service.model).is_dir():
            names = ", ".join(served[:10])
            raise InputError(f"{service.url} does not serve the model {service.model!r}; set model to one of: {names}")
        return ""

    def _refuse_other_place(self, reply: Reply) -> None:
        """Say where the models are listed, if it is one step below; a page of HTML is nowhere."""
        url = self._service.url
        below = self._look(f"{url}/v1/models")
        if isinstance(below, Reply) and below.status == 200 and names_served(below.body) is not None:
            raise InputError(f"{url} lists no models, and {url}/v1 does: set url: {url}/v1")
        if reply.status == 200 and reply.body.lstrip()[:1] not in (b"{", b"["):
            raise InputError(
                f"{url} answers with a page and not as a model's server does ({quote(reply.body)}): check url (it"
                " usually ends in /v1)"
            )

    def _look(self, url: str) -> Reply | str:
        return self._on_loop(self._get(url, MODELS_TIMEOUT_SEC)).result()

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

    async def _answer_all(self, questions: Sequence[Question | SoundQuestion]) -> list[Answer | NoAnswer]:
        few = min(FEW, len(questions))
        tasks = [asyncio.create_task(self._answer(question, few)) for question in questions]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._refusals.let_go()

    async def _answer(self, question: Question | SoundQuestion, few: int) -> Answer | NoAnswer:
        body = await self._loop.run_in_executor(self._encoders, encode_request, question, self._service)
        # a question that waits to be tried again keeps its slot: a server that asks for patience is asked less
        async with self._slots:
            async with self._refusals.watched():
                try:
                    answer = await persist(lambda: self._ask(body), self._policy, self._breaker, self._service.url)
                except QuestionFails as failed:
                    answer = NoAnswer(reason=Reason.NO_ANSWER, detail=str(failed))
            if (refused := self._refusals.weigh(answer, few)) is not None:
                raise self._service.refuses_all(refused)
            return answer

    async def _ask(self, body: bytes) -> Answer | NoAnswer:
        """One try, which ends within the timeout."""
        request_id = f"sonify-{uuid.uuid4().hex}"
        return read_reply(await self._post(body, request_id), request_id, self._service)

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
            raise ConcernsAll(f"{service.url}: its certificate is not valid: {error.certificate_error}") from None
        except TimeoutError:
            raise TryFailed(Cause.DOWN, f"no whole answer within {timeout_sec:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            said = quote(service.hide_key(str(error).encode()))
            raise TryFailed(Cause.DOWN, f"{type(error).__name__}: {said}") from None

    async def _get(self, url: str, timeout_sec: float) -> Reply | str:
        """What a page answers, or why it does not."""
        try:
            async with asyncio.timeout(timeout_sec), self._session.get(url, allow_redirects=False) as response:
                return await self._read_whole(response)
        except aiohttp.ClientConnectorCertificateError as error:
            raise InputError(f"{self._service.url}: its certificate is not valid: {error.certificate_error}") from None
        except aiohttp.ClientSSLError:
            raise InputError(f"{self._service.url}: who answers there speaks no TLS: set url to http://...") from None
        except TimeoutError:
            return f"not within {timeout_sec:g} s"
        except aiohttp.ClientConnectorError as error:
            return error.os_error.strerror or str(error.os_error)
        except (aiohttp.ClientError, OSError, TryFailed) as error:
            return quote(self._service.hide_key(str(error).encode())) or type(error).__name__

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


class Refusals:
    """Tells a question that is refused from a server that refuses all, by what becomes of the others.

    Until the first answer, no new question goes out once `FEW` were refused alike: those under way decide. Nobody
    waits where nothing is under way.
    """

    def __init__(self) -> None:
        self._answered = False
        self._alike: Counter[str] = Counter()  # by their words, since the last answer
        self._under_way = 0
        self._sure = asyncio.Event()
        self._sure.set()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Ask within this: it waits while the others decide."""
        await self._sure.wait()
        self._under_way += 1
        try:
            yield
        except BaseException:
            self._sure.set()  # nothing is decided, and those who wait must not wait for ever
            raise
        finally:
            self._under_way -= 1

    def weigh(self, answer: Answer | NoAnswer, few: int) -> NoAnswer | None:
        """Count what came, and return it where it says that every question is refused.

        `few` are all that were asked, where they are fewer than `FEW`: of a server that has answered nobody.
        """
        if isinstance(answer, Answer):
            self._answered = True
            self._alike.clear()
        if isinstance(answer, Answer) or not answer.status:
            # what a filter ends, or what fails alone, decides nothing, and it may be the last that was under way
            self._sure.set()
            return None
        words = _NUMBER.sub("0", answer.detail)
        self._alike[words] += 1
        known = advice_for(answer.detail)
        if known and known.of_all and self._alike[words] >= (FEW if self._answered else few):
            return answer
        if not self._answered and self._alike[words] >= FEW:
            self._sure.clear()
        return answer if not self._sure.is_set() and not self._under_way else None

    def let_go(self) -> None:
        """A call has ended: those of other calls, who waited for its questions, ask for themselves."""
        if not self._under_way:
            self._sure.set()


def encode_request(question: Question | SoundQuestion, service: Service) -> bytes:
    """The body of a request. Image or sound travel inside it: a server has no need to fetch anything."""
    content = [_encode_part(question), {"type": "text", "text": question.prompt}]
    system = [{"role": "system", "content": service.system}] if service.system is not None else []
    body = {
        "model": service.model,
        "messages": [*system, {"role": "user", "content": content}],
        "temperature": service.temperature,
        service.token_limit: service.max_new_tokens,
        "stream": False,
        **_form_of(question),
        **service.extra,
    }
    return json.dumps({name: value for name, value in body.items() if value is not None}).encode()


def _encode_part(question: Question | SoundQuestion) -> dict[str, Any]:
    """What a question is about, in OpenAI's form."""
    if isinstance(question, SoundQuestion):
        data = base64.b64encode(question.wav).decode("ascii")
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    jpeg = io.BytesIO()
    question.image.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg.getbuffer()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}


def _form_of(question: Question | SoundQuestion) -> dict[str, Any]:
    """What tells a server the form of the answer, where it has one."""
    if isinstance(question, SoundQuestion) or question.schema is None:
        return {}
    schema = {"name": "heard", "strict": True, "schema": question.schema}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
