"""An OpenAI-compatible server on loopback that answers by what is in the image or sound, and misbehaves as it is told.

    with serving(Fault("status", status=500, count=3)) as server:
        ... server.url ...

or as a process: python tests/vlm/faulty_server.py --port 8000 --plan '[{"kind": "hang", "count": 1}]'
"""

import argparse
import asyncio
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile
from aiohttp import web
from PIL import Image

ANSWERS = (
    "Caption: a dog on grass.\ndog: sound of a dog barking (foreground)",
    "Caption: a train in the rain.\n- **train**: a train passing by (foreground)\n- rain: steady rain (background)",
    "Caption: a church.\n1. church bell: a church bell ringing (foreground)\n2. wind: wind blowing (background)",
    "Caption: a farm.\nrooster: a rooster crowing (foreground)\nhen: hens clucking (background)",
)
SIDE = 4
RATE_HZ = 16_000  # of sounds


Shown = Image.Image | np.ndarray  # an image, or the (S,) int16 samples of a sound


def number_of(image: Shown) -> int:
    """What the server knows of an image: sixteen fields, bright or dark, which JPEG and resizing leave as they are.

    Of a sound it is the pitch in Hz.
    """
    if isinstance(image, np.ndarray):
        return round(float(np.argmax(np.abs(np.fft.rfft(image)))) * RATE_HZ / len(image))
    fields = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()
    return sum(1 << n for n, level in enumerate(fields) if level > 127)


def numbered_image(number: int, side: int = 64) -> Image.Image:
    """An image with that number."""
    fields = bytes(230 if number >> n & 1 else 25 for n in range(SIDE * SIDE))
    small = Image.frombytes("L", (SIDE, SIDE), fields).convert("RGB")
    return small.resize((side, side), Image.Resampling.NEAREST)


def answer_for(image: Shown, prompt: str) -> str:
    """A well-formed answer, with the image's number in its caption."""
    number = number_of(image)
    return ANSWERS[number % len(ANSWERS)].replace(".", f", picture {number}.", 1)


def held_to(schema: dict, value: Any) -> Any:
    """The value as a grammar made of the schema lets it be said: the schema's keys, in its order, and no others."""
    match schema["type"]:
        case "object":
            told = value if isinstance(value, dict) else {}
            return {key: held_to(inner, told.get(key)) for key, inner in schema["properties"].items()}
        case "array":
            items = value if isinstance(value, list) else []
            return [held_to(schema["items"], item) for item in items[: schema.get("maxItems")]]
        case "string":
            allowed = schema.get("enum", [value if isinstance(value, str) else ""])
            return value if value in allowed else allowed[0]
        case "boolean":
            return value is True
        case kind:
            return {"integer": int, "number": float}[kind](value or 0)


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to misbehave, for the requests that match: the first fault that does decides.

    Skips the first `after` requests; then at most `count` requests, at most `sec` from the first, only the image
    `number`, only the first `tries` with each image, only every `every`th request.
    """

    kind: str
    status: int = 500
    retry_after: str | None = None
    location: str = ""
    after: int = 0
    count: int | None = None
    sec: float | None = None
    number: int | None = None
    tries: int | None = None
    every: int = 1
    delay_sec: float = 3600.0
    body: str = ""
    share: float = 0.5

    def __post_init__(self) -> None:
        assert self.kind in FAULTS, self.kind


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came."""

    number: int
    prompt: str
    body: dict
    headers: dict[str, str]
    size: tuple[int, int]


@dataclass
class FaultyServer:
    """Its behaviour, and what it has seen; `answered` counts whole good answers by image number."""

    faults: Sequence[Fault] = ()
    model: str = "stub"
    answer: Callable[[Any, str], str] = answer_for
    key: str | None = None
    latency_sec: float = 0.0
    refuses: Callable[[dict], str] = lambda _body: ""  # in what words, of a request, with 400
    lists: Callable[[], web.Response] | None = None  # instead of its models
    honours: bool = False  # whether its answers, which are JSON then, are held to the schema of a request
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    answered: Counter[int] = field(default_factory=Counter)
    most_at_once: int = 0
    _now: int = 0
    _uses: Counter[Fault] = field(default_factory=Counter)
    _began: dict[Fault, float] = field(default_factory=dict)
    parked: list[tuple[dict, asyncio.Future[dict]]] = field(default_factory=list)

    def app(self) -> web.Application:
        """The server's pages."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _health(self, _request: web.Request) -> web.Response:
        # an engine that hangs or fails does so on every page
        for fault in self.faults:
            if fault in self._uses and fault.kind == "hang" and fault.count is None:
                await asyncio.sleep(fault.delay_sec)
        return web.json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "wrong key"}, status=401)
        if self.lists is not None:
            return self.lists()
        return web.json_response({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        image, prompt = _read_question(body)
        number = number_of(image)
        tried = sum(seen.number == number for seen in self.seen)
        size = image.size if isinstance(image, Image.Image) else (len(image), 1)
        self.seen.append(Seen(number, prompt, body, dict(request.headers), size))
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "wrong key"}, status=401)
        if body["model"] != self.model:
            return web.json_response({"error": f"no model {body['model']}"}, status=404)
        if words := self.refuses(body):
            return web.json_response({"error": {"message": words, "type": "invalid_request_error"}}, status=400)
        answer = self.answer(image, prompt)
        if self.honours and "response_format" in body:
            schema = body["response_format"]["json_schema"]["schema"]
            answer = json.dumps(held_to(schema, json.loads(answer)), ensure_ascii=False)
        good = _completion(answer, self.model, request)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.latency_sec)
            fault = self._fault_for(number, tried)
            if fault is not None:
                return await FAULTS[fault.kind](Told(self, request, fault, good))
            response = await _send(request, json.dumps(good).encode())
            self.answered[number] += 1
            return response
        finally:
            self._now -= 1

    def _fault_for(self, number: int, tried: int) -> Fault | None:
        index = len(self.seen) - 1
        for fault in self.faults:
            began = self._began.get(fault, time.monotonic())
            matches = (
                index >= fault.after
                and (index - fault.after) % fault.every == 0
                and (fault.count is None or self._uses[fault] < fault.count)
                and (fault.sec is None or time.monotonic() - began < fault.sec)
                and fault.number in (None, number)
                and (fault.tries is None or tried < fault.tries)
            )
            if matches:
                self._uses[fault] += 1
                self._began.setdefault(fault, began)
                return fault
        return None


@dataclass(frozen=True, slots=True)
class Told:
    """What a misbehaviour has to work with; `good` is the answer that there would have been."""

    server: FaultyServer
    request: web.Request
    fault: Fault
    good: dict

    def say(self, text: str | None) -> dict:
        """The good answer with another text."""
        self.good["choices"][0]["message"]["content"] = text
        return self.good


async def _status(told: Told) -> web.Response:
    headers = {"Retry-After": told.fault.retry_after} if told.fault.retry_after else {}
    return web.json_response({"error": {"message": "as told"}}, status=told.fault.status, headers=headers)


async def _html(_told: Told) -> web.Response:
    return web.Response(text="<html><body>Sign in to the gateway</body></html>", content_type="text/html")


async def _not_json(_told: Told) -> web.Response:
    return web.Response(body=b"[" * 100_000, content_type="application/json")


async def _reply(told: Told) -> web.Response:
    """The words of the fault."""
    return web.Response(text=told.fault.body, status=told.fault.status, content_type="application/json")


async def _no_fields(_told: Told) -> web.Response:
    return web.json_response({"object": "chat.completion", "choices": []})


async def _refusal(told: Told) -> web.Response:
    good = told.say(None)
    good["choices"][0]["message"]["refusal"] = "I can't help with that."
    return web.json_response(good)


async def _length(told: Told) -> web.Response:
    told.good["choices"][0]["finish_reason"] = "length"
    return web.json_response(told.good)


async def _cut(told: Told) -> web.Response:
    """A share of the answer, which the token limit has ended."""
    text = told.good["choices"][0]["message"]["content"]
    told.good["choices"][0]["finish_reason"] = "length"
    return web.json_response(told.say(text[: int(told.fault.share * len(text))]))


async def _echo(told: Told) -> web.Response:
    """Says in its answer what it was sent, the key too."""
    headers = " ".join(f"{name}: {value}" for name, value in told.request.headers.items())
    good = told.fault.status == 200
    return web.json_response(told.say(headers) if good else {"error": headers}, status=told.fault.status)


async def _redirect(told: Told) -> web.Response:
    return web.Response(status=307, headers={"Location": told.fault.location})


async def _hang(told: Told) -> web.Response:
    await asyncio.sleep(told.fault.delay_sec)
    return web.json_response(told.good)


async def _half(told: Told) -> web.StreamResponse:
    data = json.dumps(told.good).encode()
    response = await _begin(told.request, len(data))
    await response.write(data[: len(data) // 2])
    assert told.request.transport is not None
    told.request.transport.close()
    return response


async def _garbage(told: Told) -> web.Response:
    """What is no HTTP: aiohttp reports it with the whole request, its headers too."""
    assert told.request.transport is not None
    told.request.transport.write(b"HTTP/1.1 2OO fine\r\nContent-Length: 2\r\n\r\n{}")
    told.request.transport.close()
    return web.Response()


async def _drip(told: Told) -> web.StreamResponse:
    data = json.dumps(told.good).encode()
    response = await _begin(told.request, len(data))
    for n in range(len(data)):
        await response.write(data[n : n + 1])
        await asyncio.sleep(0.1)
    return response


async def _large(told: Told) -> web.StreamResponse:
    return await _send(told.request, json.dumps(told.say("la " * 350_000)).encode())


async def _endless(told: Told) -> web.StreamResponse:
    response = await _begin(told.request, None)
    while True:
        await response.write(b" " * 65536)


async def _swap(told: Told) -> web.Response:
    """Two requests that are here together get each other's answer, as from a broken proxy."""
    mine: asyncio.Future[dict] = asyncio.get_running_loop().create_future()
    parked = told.server.parked
    parked.append((told.good, mine))
    if len(parked) == 2:
        (first, to_first), (second, to_second) = parked
        parked.clear()
        to_first.set_result(second)
        to_second.set_result(first)
    await asyncio.wait([mine], timeout=1)
    return web.json_response(mine.result() if mine.done() else told.good)


async def _die(_told: Told) -> web.Response:
    sys.stderr.write("fatal: out of memory, as told\n")
    sys.stderr.flush()
    os._exit(1)


FAULTS: dict[str, Callable[[Told], Awaitable[web.StreamResponse]]] = {
    "status": _status,
    "html": _html,
    "not_json": _not_json,
    "reply": _reply,
    "no_fields": _no_fields,
    "refusal": _refusal,
    "length": _length,
    "cut": _cut,
    "echo": _echo,
    "redirect": _redirect,
    "hang": _hang,
    "half": _half,
    "garbage": _garbage,
    "drip": _drip,
    "large": _large,
    "endless": _endless,
    "swap": _swap,
    "die": _die,
}


def _read_question(body: dict) -> tuple[Shown, str]:
    parts = body["messages"][-1]["content"]
    if sounds := [part["input_audio"] for part in parts if part["type"] == "input_audio"]:
        assert sounds[0]["format"] == "wav"
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0]["data"], validate=True)), dtype="int16")
        assert rate == RATE_HZ
        return samples, next(part["text"] for part in parts if part["type"] == "text")
    url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    found = re.fullmatch(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", url)
    assert found, url[:100]
    image = Image.open(io.BytesIO(base64.b64decode(found[1])))
    return image, next(part["text"] for part in parts if part["type"] == "text")


def _completion(text: str, model: str, request: web.Request) -> dict:
    message = {"role": "assistant", "content": text}
    return {
        "id": f"chatcmpl-{request.headers.get('X-Request-Id', 'none')}",  # as vLLM and `transformers serve` do
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }


async def _begin(request: web.Request, length: int | None) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = length
    await response.prepare(request)
    return response


async def _send(request: web.Request, data: bytes) -> web.StreamResponse:
    response = await _begin(request, len(data))
    await response.write(data)
    await response.write_eof()
    return response


async def _run(server: FaultyServer, port: int, until: Callable[[], Awaitable[None]]) -> None:
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await until()
    await runner.cleanup()


@contextmanager
def serving(*faults: Fault, port: int = 0, **fields) -> Iterator[FaultyServer]:
    """Serve from a thread of this process; `fields` are those of `FaultyServer`."""
    server = FaultyServer(faults, **fields)
    loop, started, stopping = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def until() -> None:
        started.set()
        await stopping.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(_run(server, port, until)))
    thread.start()
    try:
        assert started.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="stub")
    parser.add_argument("--plan", default="[]", help="JSON list of faults")
    parser.add_argument("--start-sec", type=float, default=0.0, help="time until it listens")
    parser.add_argument(
        "--child", action="store_true", help="start a process that leaves the group and ignores SIGTERM"
    )
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
    asked = parser.parse_args()
    sys.stderr.write(f"loading {asked.model} pid {os.getpid()}\n")
    if asked.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if asked.child:
        script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
        sys.stderr.write(f"child pid {child.pid}\n")
    time.sleep(asked.start_sec)
    server = FaultyServer([Fault(**fault) for fault in json.loads(asked.plan)], model=asked.model)
    asyncio.run(_run(server, asked.port, asyncio.Event().wait))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
