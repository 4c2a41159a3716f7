"""The form of what is sent to and read from an OpenAI-compatible server: chat completions with one image."""

import base64
import io
import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

from sonify.rows import Reason
from sonify.vlm.questions import Answer, NoAnswer, Question
from sonify.vlm.retrying import Cause, TryFailed, parse_retry_after

JPEG_QUALITY = 90
# This one question is refused: too long, an image that the server cannot take, a forbidden content.
REFUSED = frozenset({400, 413, 415, 422, 451})
# The server is there and asks for patience: request timeout, conflict, too early, too many requests.
BUSY = frozenset({408, 409, 425, 429})
LONGEST_QUOTE = 200
REQUEST_ID = re.compile(r"sonify-[0-9a-f]{32}")


class ServerRefused(Exception):
    """A status that no waiting and no other question changes: the address, the key or the model is wrong."""

    def __init__(self, status: int, quote: str) -> None:
        super().__init__(f"{status} {quote}".strip())
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server sent back; `request_id` is the one that it names, if it names any."""

    status: int
    body: bytes
    retry_after: str | None = None
    request_id: str = ""


def new_request_id() -> str:
    """A name for one try; a reply that carries another such name is another request's."""
    return f"sonify-{uuid.uuid4().hex}"


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


def read_reply(reply: Reply, request_id: str) -> Answer | NoAnswer:
    """What a reply says of the question.

    Raises:
        TryFailed: nothing; asking again may help.
        ServerRefused: the address, the key or the model is wrong.
    """
    if reply.status == 200:
        return _read_answer(reply, request_id)
    said = f"the server answers {reply.status} {quote(reply.body)}".strip()
    if reply.status in REFUSED:
        return NoAnswer(reason=Reason.NO_ANSWER, detail=said)
    if reply.status in BUSY:
        raise TryFailed(Cause.BUSY, said, parse_retry_after(reply.retry_after))
    if reply.status >= 500:
        raise TryFailed(Cause.DOWN, said, parse_retry_after(reply.retry_after))
    if 200 < reply.status < 300:
        raise TryFailed(Cause.BAD_REPLY, said)
    raise ServerRefused(reply.status, quote(reply.body))


def _read_answer(reply: Reply, request_id: str) -> Answer:
    fields = parse_json(reply.body)
    try:
        choice = fields["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        # a model that refuses has no content in OpenAI's own form: what it says is an answer too
        text = message["content"] if message["content"] is not None else message.get("refusal") or ""
    except (KeyError, IndexError, TypeError, AttributeError):
        raise TryFailed(Cause.BAD_REPLY, f"JSON without choices[0].message.content: {quote(reply.body)}") from None
    if not isinstance(text, str):
        raise TryFailed(Cause.BAD_REPLY, f"message.content is no text: {quote(reply.body)}")
    for named in REQUEST_ID.findall(f"{reply.request_id} {fields.get('id')}"):
        if named != request_id:
            raise TryFailed(Cause.BAD_REPLY, "the answer to another request")
    return Answer(text=text, finished=finish != "length")


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        TryFailed: it is none.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise TryFailed(Cause.BAD_REPLY, f"not a JSON object: {quote(body)}")
    return fields


def names_served(body: bytes) -> list[str]:
    """The models that a `/models` answer lists; none where it is something else."""
    try:
        return [model["id"] for model in parse_json(body)["data"] if isinstance(model["id"], str)]
    except (TryFailed, KeyError, TypeError):
        return []


def quote(body: bytes) -> str:
    """The begin of what a server said, as one printable line."""
    text = " ".join(body[: 4 * LONGEST_QUOTE].decode("utf-8", "replace").split())
    return "".join(char for char in text if char.isprintable())[:LONGEST_QUOTE]
