"""Our client of a model server against a bare aiohttp loop that sends requests prepared beforehand to the same server.

    python -m benchmarks.vlm_path

The server is a stub in a process of its own with as many slots as an engine has, each busy for a fixed time. Ours gets
images and encodes them, in windows of which two overlap, as the stage does. Prints one JSON line; the floor is 0.95.
"""

import asyncio
import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import aiohttp
from aiohttp import web
from PIL import Image

from benchmarks.image_decode import make_photo
from benchmarks.measure import interleaved, report
from sonify.config.models import EndpointVlm
from sonify.media.pixels import decode_for_model
from sonify.vlm import backends
from sonify.vlm.endpoint import connect_endpoint, encode_request
from sonify.vlm.questions import Answer, Question
from sonify.vlm.replies import Service

# A 7B model answers some 20 to 40 images a second on one large GPU, so this engine is a fast one.
QUESTIONS, SLOTS, SERVICE_SEC, CONCURRENCY = 400, 4, 0.05, 32
PHOTO_SIZE, IMAGE_SIZE, DIFFERENT_PHOTOS = (1500, 1000), 672, 20
PROMPT = "What could be heard in this image? " * 30


def serve(told: Connection) -> None:
    """The stub engine: a request waits for a slot and keeps it for the time of service."""

    async def main() -> None:
        slots = asyncio.Semaphore(SLOTS)

        async def chat(request: web.Request) -> web.Response:
            asked = await request.json()
            async with slots:
                await asyncio.sleep(SERVICE_SEC)
            message = {"role": "assistant", "content": f"dog: sound of a dog barking {len(asked['messages'])}"}
            return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}]})

        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        told.send(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        await asyncio.Event().wait()

    asyncio.run(main())


async def send_all(url: str, bodies: list[bytes]) -> int:
    """The bare client: as many requests at once as ours, each read and parsed."""
    slots = asyncio.Semaphore(CONCURRENCY)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send(body: bytes) -> str:
            headers = {"Content-Type": "application/json"}
            async with slots, session.post(f"{url}/chat/completions", data=body, headers=headers) as response:
                return json.loads(await response.read())["choices"][0]["message"]["content"]

        return len(await asyncio.gather(*(send(body) for body in bodies)))


def main() -> None:
    photos = [make_photo(*PHOTO_SIZE, seed) for seed in range(DIFFERENT_PHOTOS)]
    images: list[Image.Image] = [decode_for_model(photo, IMAGE_SIZE)[1] for photo in photos]
    questions = [Question(image=images[n % len(images)], prompt=PROMPT) for n in range(QUESTIONS)]
    service = Service(url="", model="stub", max_new_tokens=512, concurrency=CONCURRENCY)
    prepared = [encode_request(question, service) for question in questions[:DIFFERENT_PHOTOS]]
    bodies = [prepared[n % len(prepared)] for n in range(QUESTIONS)]
    told, telling = multiprocessing.Pipe(duplex=False)
    stub = multiprocessing.get_context("spawn").Process(target=serve, args=(telling,), daemon=True)
    stub.start()
    url = told.recv()
    config = EndpointVlm(kind="vlm", name="stub", backend="endpoint", model="stub", url=url, concurrency=CONCURRENCY)
    vlm = connect_endpoint(config)
    window = backends.window_of(config)
    windows = [questions[start : start + window] for start in range(0, QUESTIONS, window)]
    with ThreadPoolExecutor(backends.overlap_of(config)) as callers:

        def ours() -> None:
            answers = [answer for answered in callers.map(vlm, windows) for answer in answered]
            assert len(answers) == QUESTIONS
            assert all(isinstance(answer, Answer) for answer in answers)

        def theirs() -> None:
            assert asyncio.run(send_all(url, bodies)) == QUESTIONS

        ours_sec, theirs_sec = interleaved(ours, theirs)
    vlm.close()
    stub.terminate()
    stub.join()
    report("vlm_path", QUESTIONS / ours_sec, QUESTIONS / theirs_sec, "images/s", slots=SLOTS, concurrency=CONCURRENCY)


if __name__ == "__main__":
    main()
