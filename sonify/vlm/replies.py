"""What a server's reply means: an answer, no answer to this question, trouble of the server's, or no answer to any.

An answer is recorded and parsed: 200 with text, as a string or as a list of parts, in `message` or in the `text` of
older servers, or a `refusal`. Without text it is empty (`empty_answer`) where the model ended by itself or at the token
limit; where there is reasoning beside it, that is recorded as `<think>...` and never read for concepts (`bad_answer`).

This question is refused (`no_answer`): 400, 413, 415, 422, 451, and 200 without text that a filter ended.

An odd reply is 200 and not in form: no choices, a number, neither text nor an ending, no JSON, another's answer. It is
asked for once more; then it is `no_answer` if the server answers others, and trouble if not.

Trouble of the server's is no answer in time, 5xx, 408, 409, 425, 429, and an error of that kind under 200: the question
is asked again for `max_wait_sec`, and then the unit stays undone, so that the same command asks again.

Every question is refused (`ConcernsAll`, which stops the run with the server's words and the key that mends it): 401,
402, 403, 404, a redirect; a few refusals in the same words where the words name a parameter, the model or the account,
and in any words where nothing was ever answered.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sonify.errors import ConcernsAll
from sonify.rows import Reason
from sonify.vlm.questions import Answer, NoAnswer
from sonify.vlm.retrying import Cause, TryFailed, parse_retry_after

# This one question is refused: too long, an image that the server cannot take, a forbidden content.
REFUSED = frozenset({400, 413, 415, 422, 451})
# The server is there and asks for patience: request timeout, conflict, too early, too many requests.
BUSY = frozenset({408, 409, 425, 429})
LONGEST_QUOTE_CHARS = 200
REQUEST_ID = re.compile(r"sonify-[0-9a-f]{32}")
# Words for an ending in the APIs that are translated into OpenAI's, in lower case.
CUT = frozenset({"length", "max_tokens", "model_length", "max_output_tokens", "token_limit"})
FILTERED = frozenset({"content_filter", "safety", "recitation", "prohibited_content", "blocklist", "sensitive", "spii"})
FAILED = frozenset({"error", "abort", "aborted", "cancelled", "network_error", "unknown"})
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_text")
SPOKEN_PARTS = ("text", "output_text", None)
MARKED_AS_THOUGHT = ("thought", "thinking", "reasoning")  # true in a part of text: Gemini's


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What a server says that it refuses, and what mends it; all but the context's length concerns every question."""

    about: str
    says: re.Pattern[str]
    mends: str

    @property
    def of_all(self) -> bool:
        return self.about != "context"


def _advice(about: str, says: str, mends: str) -> Advice:
    return Advice(about=about, says=re.compile(says, re.IGNORECASE), mends=mends)


_NOT = (
    r"(?:not (?:supported|permitted|allowed|recogni[sz]ed|accepted|a valid)|unsupported|unrecogni[sz]ed|unknown"
    r"|unexpected|extra (?:inputs|fields))"
)
_WAITS = re.compile(r"retry|per[ _](?:second|minute|hour|day)", re.IGNORECASE)
# In the order in which they are looked for: a message about the context's length names the token limit too.
ADVICE = (
    _advice(
        "context",
        r"context[ _](?:length|window|size)|maximum (?:context|model|sequence|input) length|max_model_len"
        r"|too many tokens|(?:prompt|input|message)s? (?:is|are) too (?:long|large)"
        r"|exceeds? the (?:available|maximum) ",
        "lower image_size or max_new_tokens, or give the server a longer context",
    ),
    _advice(
        "schema",
        r"response_?format|json_?schema|json schema|structured.?output|guided.?(?:json|decoding)|\bgrammar\b|xgrammar",
        "set answers: json, which asks in the same words and sends no response_format, nor set one in extra_body",
    ),
    _advice(
        "field",
        rf"{_NOT}[^.]{{0,60}}max_completion_tokens|max_completion_tokens[^.]{{0,40}}{_NOT}",
        "set token_limit: max_tokens",
    ),
    _advice(
        "field",
        rf"max_completion_tokens|{_NOT}[^.]{{0,60}}max_tokens|max_tokens[^.]{{0,40}}{_NOT}",
        "set token_limit: max_completion_tokens",
    ),
    _advice("field", r"\bmax_(?:new_|output_)?tokens\b", "lower max_new_tokens"),
    _advice("field", r"\btemperature\b", "set temperature: null, which sends none, or to what it takes"),
    _advice(
        "system",
        r"system (?:role|message|prompt|instruction)|(?:developer|system) instruction|only user and assistant roles"
        r"|roles must alternate|role.{0,20}\bsystem\b",
        "set system: null, which sends no such message",
    ),
    _advice(
        "images",
        r"(?:not|n't) (?:support|accept|allow|take)\w* (?:\w+ ){0,3}?"
        r"(?:images?|vision|multimodal|multi-modal|image_url)\b(?! format)"
        r"|image(?:_url| input| content)?s?[\"'`]? (?:is|are) (?:not supported|only supported|unsupported|not allowed)"
        r"|not a (?:multimodal|multi-modal|vision)|unknown variant .{0,3}image_url|mmproj|at most 0 image"
        r"|no endpoints found that support image"
        r"|content[^.]{0,40}(?:must be|should be|expected|valid) (?:a )?(?:valid )?str",
        "set model to one that sees images, or start the server with the part that does (llama.cpp: --mmproj)",
    ),
    _advice("key", r"api[ _-]?key|authenticat|unauthori[sz]ed", "check api_key_env"),
    _advice(
        "account",
        r"insufficient[_ ](?:quota|balance|funds|credits?)|exceeded your current quota|billing|out of credits"
        r"|credit balance|payment required",
        "the account pays for no more: mend that and run the same command",
    ),
    _advice(
        "model",
        r"model[^.]{0,80}(?:not found|not exist|not available|unknown|not loaded)|(?:unknown|invalid|no such) model"
        r"|model_not_found|not a valid model",
        "set model to one that it serves",
    ),
    _advice(
        "field",
        rf"{_NOT}[^.]{{0,30}}(?:parameter|argument|field|keyword|propert|key\b)"
        rf"|(?:parameter|argument|field)s?\b[^.]{{0,60}}{_NOT}"
        r"|extra (?:inputs|fields)[^.]{0,10}not permitted|chat_template_kwargs|reasoning_effort",
        "change it in extra_body, where null takes a field out of the request",
    ),
)


def advice_for(said: str) -> Advice | None:
    """What mends what a server refuses in these words, where they are known."""
    return next((advice for advice in ADVICE if advice.says.search(said)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Which model is asked where, and how. The key's value appears in no message; `key_env` names its variable.

    `extra` is merged into each request: a value of None takes a field out.
    """

    url: str
    model: str
    max_new_tokens: int
    concurrency: int
    key: str = field(default="", repr=False)
    key_env: str | None = None
    token_limit: str = "max_tokens"  # noqa: S105 - a field's name
    temperature: float | None = 0
    system: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def hide_key(self, said: bytes) -> bytes:
        """Take the key out of what a server said: some echo it."""
        return said.replace(self.key.encode(), b"***") if self.key else said

    def hide_key_in(self, said: str) -> str:
        """The same once JSON's escapes are undone."""
        return self.hide_key(said.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")

    def refusal(self, status: int, said: str = "") -> ConcernsAll:
        """A status that no waiting and no other question changes: the address, the key or the model is wrong."""
        known = advice_for(said)
        if status in (401, 403) and (known is None or known.about != "account"):
            named = f"the key in {self.key_env}" if self.key_env else "api_key_env, which names no variable"
            advice = f"check {named}"
        elif 300 <= status < 400:
            advice = "redirects are not followed, for the key's sake: set url to the final address"
        elif known is not None and known.of_all and status != 404:
            advice = known.mends
        else:
            advice = f"check url (it usually ends in /v1) and model ({self.model})"
        return ConcernsAll(f"{self.url} answers {f'{status} {said}'.strip()}: {advice}")

    def refuses_all(self, refused: NoAnswer) -> ConcernsAll:
        """What refuses one question after another in the same words."""
        known = advice_for(refused.detail)
        advice = known.mends if known else "mend what it names; extra_body changes or takes out any field of a request"
        return ConcernsAll(f"{self.url} refuses one question after another: {refused.detail}: {advice}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server sent back; `request_id` is the one that it names, if it names any."""

    status: int
    body: bytes
    retry_after: str | None = None
    request_id: str = ""


def read_reply(reply: Reply, request_id: str, service: Service) -> Answer | NoAnswer:
    """What a reply says of the question: the table above.

    Raises:
        TryFailed: it is odd, or the server is in trouble.
        ConcernsAll: every question is refused.
    """
    if reply.status != 200:
        return _read_error(reply.status, service.hide_key_in(_words(reply.body)), reply, service)
    try:
        return _read_success(json.loads(reply.body), reply, request_id, service)
    except (ValueError, RecursionError):
        raise TryFailed(Cause.BAD_REPLY, f"no JSON: {quote(reply.body)}") from None


def _read_success(fields: Any, reply: Reply, request_id: str, service: Service) -> Answer | NoAnswer:
    choice = _first_choice(fields)
    if error := _error_in(fields, choice):
        return _read_error(_status_of(error), service.hide_key_in(_words(reply.body, error)), reply, service)
    if choice is None:
        raise TryFailed(Cause.BAD_REPLY, f"no choices[0] with a message: {quote(reply.body)}")
    # a reply that carries another such name is another request's
    for named in REQUEST_ID.findall(f"{reply.request_id} {fields.get('id')}"):
        if named != request_id:
            raise TryFailed(Cause.BAD_REPLY, "the answer to another request")
    answer = _read_choice(choice, quote(reply.body))
    return (
        Answer(text=service.hide_key_in(answer.text), finished=answer.finished)
        if isinstance(answer, Answer)
        else answer
    )


def names_served(body: bytes) -> list[str] | None:
    """The models that a `/models` answer lists; None where it is something else."""
    try:
        return [model["id"] for model in json.loads(body)["data"] if isinstance(model["id"], str)]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def quote(body: bytes) -> str:
    """The begin of what a server said, as one printable line."""
    return _one_line(body[: 4 * LONGEST_QUOTE_CHARS].decode("utf-8", "replace"))


def _one_line(text: str) -> str:
    return "".join(char for char in " ".join(text.split()) if char.isprintable())[:LONGEST_QUOTE_CHARS]


def _read_error(status: int, said: str, reply: Reply, service: Service) -> NoAnswer:
    """What is no success: of the question, of the server, or of all that could be asked."""
    words = f"the server answers {status} {said}".strip()
    known = advice_for(said)
    # a limit per minute is spoken of as a quota too
    is_used_up = known is not None and known.about == "account" and not (reply.retry_after or _WAITS.search(words))
    if status in BUSY and not is_used_up:
        raise TryFailed(Cause.BUSY, words, parse_retry_after(reply.retry_after))
    # some servers call it their own error that they were started without the part that sees
    if status in REFUSED or (status >= 500 and known and known.about in ("images", "system", "schema")):
        return NoAnswer(reason=Reason.NO_ANSWER, detail=words, status=status)
    if status >= 500:
        raise TryFailed(Cause.DOWN, words, parse_retry_after(reply.retry_after))
    if 200 <= status < 300:
        raise TryFailed(Cause.BAD_REPLY, words)
    raise service.refusal(status, said)


def _status_of(error: object) -> int:
    """The status that an error under 200 stands for: its own number, or by its words; 200 where nothing tells."""
    told = error if isinstance(error, dict) else {"message": error}
    for key in ("code", "status", "status_code"):
        value = told.get(key)
        if isinstance(value, int | str) and re.fullmatch(r"[45]\d\d", str(value)):
            return int(value)
    words = json.dumps(error).lower()
    if re.search(r"overload|rate.?limit|too many|unavailable|capacity|try again", words):
        return 429
    if re.search(r"internal|server.?error|timeout|timed out|crash|cuda|out of memory|upstream|provider", words):
        return 500
    return 400 if advice_for(words) or "invalid_request" in words else 200


def _words(body: bytes, error: object = None) -> str:
    """A server's own words in what it sends with an error, with the field that it names; else its beginning."""
    try:
        told: Any = error or json.loads(body)
    except (ValueError, RecursionError):
        return quote(body)
    while isinstance(told, dict) and isinstance(told.get("error"), dict):
        told = told["error"]
    if isinstance(told, dict):
        message = told.get("message") or told.get("error") or told.get("detail")
        if isinstance(message, str) and message:
            named = [(key, told.get(key)) for key in ("param", "code")]
            more = [f"({key} {name})" for key, name in named if isinstance(name, str) and name.strip() not in message]
            return _one_line(" ".join([message, *more]))
    return quote(body) if error is None else _one_line(error if isinstance(error, str) else json.dumps(error))


def _first_choice(fields: Any) -> dict[str, Any] | None:
    choices = fields.get("choices") if isinstance(fields, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else None


def _error_in(fields: Any, choice: dict[str, Any] | None) -> Any:
    """What an answer under 200 says has failed."""
    if choice is not None:
        return choice.get("error")
    told = fields if isinstance(fields, dict) else {}
    return told if told.get("object") == "error" else told.get("error")


def _read_choice(choice: dict[str, Any], said: str) -> Answer | NoAnswer:
    message = choice.get("message", choice.get("delta", {"content": choice.get("text")}))
    ending = choice.get("finish_reason")
    ending = str(ending.get("type") if isinstance(ending, dict) else ending or "").lower()  # SGLang's is an object
    if ending in FAILED:
        raise TryFailed(Cause.BAD_REPLY, f"ended by {ending}: {said}")
    if not isinstance(message, dict):
        raise TryFailed(Cause.BAD_REPLY, f"message is no object: {said}")
    text, thought = _spoken(message.get("content"), said)
    # a model that refuses has no content in OpenAI's own form: what it says is an answer too
    text = text or _text_of(message.get("refusal"))
    thought = thought or next(filter(None, (_text_of(message.get(key)) for key in REASONING_FIELDS)), "")
    if not text.strip() and ending in FILTERED:
        return NoAnswer(reason=Reason.NO_ANSWER, detail=f"ended by {ending}, without a word")
    if not text.strip() and not thought and not ending:
        raise TryFailed(Cause.BAD_REPLY, f"neither text nor an ending: {said}")
    finished = ending not in CUT and ending not in FILTERED
    return Answer(text=text if text.strip() or not thought else f"<think>\n{thought}", finished=finished)


def _spoken(content: object, said: str) -> tuple[str, str]:
    """What is said in a message's content, and what is thought there."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list | dict):
        raise TryFailed(Cause.BAD_REPLY, f"message.content is no text: {said}")
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, str | dict) for part in parts):
        raise TryFailed(Cause.BAD_REPLY, f"message.content is no text: {said}")
    spoken = [part for part in parts if isinstance(part, str) or _is_spoken(part)]
    refused = [part for part in parts if isinstance(part, dict) and part.get("type") == "refusal"]
    thought = [part for part in parts if part not in spoken and part not in refused]
    return "".join(_strings(spoken)) or "".join(_strings(refused)), "".join(_strings(thought))


def _is_spoken(part: dict[str, Any]) -> bool:
    return part.get("type") in SPOKEN_PARTS and not any(part.get(key) is True for key in MARKED_AS_THOUGHT)


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def _strings(value: object) -> Iterator[str]:
    """The texts of parts, however they are wrapped."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key in ("text", "value", "thinking", "reasoning", "refusal", "content"):
            yield from _strings(value.get(key))
