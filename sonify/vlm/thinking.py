"""What a model says for itself, told apart from what it answers: the forms in which models think out loud.

Reasoning is not an answer, whatever it names. A server may keep it in a field of its own, leave its marks in the text,
or strip the marks and leave the words; `FORMS` has the marks, `BARE` what is left where they are gone. An answer in
which no form is found is returned as it is, letter by letter, so that a form that is added here changes no other
answer. Where two readings are open, a concept is rather lost than taken out of reasoning.
"""

import re
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Marks around reasoning. What closes one form closes every other, for models mix them."""

    opens: str
    closes: str


_NAME = r"(?:\w{1,20}:|\w{1,12}_)?(?:think|thinking|thought|thoughts|reason|reasoning|reflection|scratchpad|analysis)"
FORMS = (
    # DeepSeek, Qwen, GLM, Hunyuan; <thought> of EXAONE and Gemini; <seed:think>, <longcat_think>
    Form(
        opens=rf"[<＜]\s?{_NAME}(?:\s[^<>\n]{{0,80}})?[>＞]",
        closes=rf"[<＜]\s?/\s?{_NAME}\s?[>＞]",
    ),
    Form(opens=r"\[THINK\]", closes=r"\[/THINK\]"),  # Mistral
    Form(opens=r"◁think▷", closes=r"◁/think▷"),  # Kimi
    Form(opens=r"<\|channel>\s?(?:thought|thinking)?", closes=r"<channel\|>"),  # Gemma
    Form(opens=r"<unused94>", closes=r"<unused95>"),  # MedGemma
    # Harmony of gpt-oss: each channel but the last
    Form(
        opens=r"<\|channel\|>\s?(?:analysis|commentary)",
        closes=r"(?P<final><\|channel\|>\s?final(?:[^<>\n]{0,20}<\|constrain\|>[^<>\n]{0,20})?(?:\s?<\|message\|>)?)",
    ),
    Form(opens=r"<\|START_THINKING\|>", closes=r"<\|END_THINKING\|>"),  # Cohere
    Form(opens=r"<\|begin_of_thought\|>", closes=r"<\|end_of_thought\|>"),  # OpenThinker, Sky-T1
    Form(opens=r"<\|inner_prefix\|>", closes=r"<\|inner_suffix\|>"),  # Apertus
)
_OPENS = "|".join(form.opens for form in FORMS)
_CLOSES = "|".join(form.closes for form in FORMS)
_MARK = re.compile(rf"(?=[<＜][\s/|\w]|\[/?T|◁)(?:(?P<opens>{_OPENS})|(?:{_CLOSES}))", re.IGNORECASE)
MAX_MARKS = 200  # so many are a loop
# The block of a model that forgets to end it ends where the answer's own mark begins a line.
_ANSWER_MARK = re.compile(r"<(?:answer|final_answer|response)>|<\|begin_of_(?:solution|box)\|>", re.IGNORECASE)
# Harmony's last channel without its marks, of a model that has not thought
_FINAL = re.compile(r"\A\s*(?:assistant\s?)?final(?=[A-Z*{\n]|caption|medium)")
# What models that think put around their answers, beside the turns of Gemma 4. Where nobody thought these are words.
_AROUND = re.compile(r"</?(?:final_answer|response|solution|conclusion|output)>")
# A token of a vocabulary that is a mark or a part of one.
_PIECE = re.compile(r"think|thought|reason|channel|<\|message\|>|inner_(?:pre|suf)fix|unused9[45]", re.IGNORECASE)
_OPEN_AT_END = re.compile(rf"({_OPENS})\s*\Z", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}
_LINE_CHARS = 60  # looked at on either side of a mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """Reasoning without marks: how a text begins that thinks first, and what stands before its answer."""

    begins: re.Pattern[str]
    ends: re.Pattern[str]
    always: bool  # whether a text that begins so and never ends so is reasoning to its end


# The first line of the form that both questions ask for; behind a mark that is gone it may follow a sentence at once.
_FIRST_LINE = r"(?:(?<=\n)|(?<=[.!?)]))(?=[^\w\n]{0,8}\n?\W{0,6}(?:image )?(?:caption|medium)[*_`\"']{0,4}\s?[:=：])"
_ANSWERS = r"^\W{0,6}(?:my |the )?(?:final )?(?:answer|response|output)\W{0,4}[:\n]"
BARE = (
    # Harmony
    Bare(
        begins=re.compile(r"\A\s*(?:assistant\s?)?(?:analysis|commentary)(?=[A-Z\"'\n]|\s[A-Z])"),
        ends=re.compile(r"assistant\s{0,2}final(?:\s?message)?"),
        always=True,
    ),
    # Harmony in lower case
    Bare(
        begins=re.compile(r"\A\s*(?:assistant\s?)?(?:analysis|commentary)"),
        ends=re.compile(r"assistant\s{0,2}final(?:\s?message)?"),
        always=False,
    ),
    # Gemma: <|channel> and <channel|> are special tokens
    Bare(
        begins=re.compile(r"\A\s*(?:thought|thinking)[^\S\n]*\n", re.IGNORECASE),
        ends=re.compile(_FIRST_LINE, re.IGNORECASE),
        always=True,
    ),
    # Granite, Qwen 3.5
    Bare(
        begins=re.compile(
            r"\A\W{0,6}(?:(?:here(?:'s| is) )?(?:my|the|a) )?(?:thinking|thought|reasoning) process\W{0,4}:",
            re.IGNORECASE,
        ),
        ends=re.compile(rf"here(?:'s| is) my response\W{{0,4}}:|{_ANSWERS}", re.IGNORECASE | re.MULTILINE),
        always=True,
    ),
    # prompted to think step by step
    Bare(
        begins=re.compile(
            r"\A\W{0,6}(?:thoughts?|thinking|reasoning|rationale|chain of thought)[*_]{0,2}:", re.IGNORECASE
        ),
        ends=re.compile(_ANSWERS, re.IGNORECASE | re.MULTILINE),
        always=False,
    ),
)
# A template that opens the block in the prompt leaves no mark in an answer that the token limit cuts: such words begin
# it, and the first line that was asked for has not come.
_ALOUD = re.compile(
    r"\A\W{0,4}(?:(?:okay|ok|alright|all right|hmm+|so|well|right|got it|now|first)\b[,.!\s-]{1,3}){0,3}"
    r"(?:let(?:'s| us| me(?! know))|i (?:need|have|should|must|want|am asked)|i'(?:ll|m asked)"
    r"|we (?:need|have|should|must|are)|the user"
    r"|the (?:question|task|prompt|instruction)s? (?:is|are|asks?|says?|wants?)|my task)\b",
    re.IGNORECASE,
)
_FORM_BEGUN = re.compile(r"^\W{0,6}(?:image )?(?:caption|medium)\b", re.IGNORECASE | re.MULTILINE)


def answer_in(said: str, finished: bool = True) -> str | None:
    """Return what a model answers, without its reasoning; None where it thinks to the end and does not answer.

    Args:
        finished: False where the token limit cut the text.
    """
    answer = _without_reasoning(said, finished)
    if answer is None or answer == said:
        return answer
    return _AROUND.sub(" ", answer).replace("<|turn>", "<start_of_turn>").replace("<turn|>", "<end_of_turn>")


def _without_reasoning(said: str, finished: bool) -> str | None:
    marks = [mark for mark in islice(_MARK.finditer(said), MAX_MARKS) if not _is_quoted(said, mark)]
    if len(marks) == MAX_MARKS:
        return None
    answer = _outside(said, marks) if marks else said
    if answer is None:
        return None
    answer = _FINAL.sub("", answer)
    for bare in BARE:
        if (begin := bare.begins.match(answer)) is not None:
            return _behind(answer, begin, bare, finished)
    cut_in_thought = not finished and not marks and _ALOUD.match(answer) and not _FORM_BEGUN.search(answer)
    return None if cut_in_thought else answer


def opened_by(prompt: str) -> str:
    """The mark with which a prompt has begun the model's reasoning for it; empty where it has not."""
    match = _OPEN_AT_END.search(prompt[-200:])
    return match[1] if match else ""


def is_piece_of_mark(token: str) -> bool:
    """Whether a special token must stay in the text, for without it reasoning has no bounds."""
    return _PIECE.search(token) is not None


def _outside(said: str, marks: list[re.Match[str]]) -> str | None:
    """The last that stands outside of blocks; before a mark that closes and was never opened, all is reasoning."""
    kept: list[str] = []
    last_end = max((mark.end() for mark in marks if mark["opens"] is None), default=0)
    position = opened = closed = 0
    thinks = False
    for mark in marks:
        if mark["opens"] is not None:
            if not thinks and mark.end() > last_end and not _at_line_edge(said, mark):
                continue  # a word of the text: nothing closes it
            opened += 1
            if not thinks:
                kept.append(said[position : mark.start()])
                position = mark.end()
            thinks = True
            continue
        # a last mark, behind a block that is closed already, closes nothing; behind Harmony's last channel all is said
        if mark["final"]:
            kept.clear()
        elif not thinks and 0 < closed >= opened and not said[mark.end() :].strip():
            kept.append(said[position : mark.start()])
        elif not thinks:
            kept.clear()
        closed += 1
        thinks, position = False, mark.end()
    if thinks:
        own = (mark.start() for mark in _ANSWER_MARK.finditer(said, position) if _at_line_edge(said, mark))
        position = max(own, default=len(said))
    kept.append(said[position:])
    answer = next((piece for piece in reversed(kept) if piece.strip()), "")  # of several, the one after most thought
    return None if thinks and not answer else answer


def _behind(answer: str, begin: re.Match[str], bare: Bare, finished: bool) -> str | None:
    """What stands behind reasoning that has no marks; of several places the last, for drafts stand before it."""
    end = next(reversed(list(bare.ends.finditer(answer, max(0, begin.end() - 1)))), None)
    if end is None:
        return None if bare.always else answer
    # without any mark, a draft that the limit cut and an answer that it cut are one
    if not finished and not end.group() and answer[begin.end() : end.start()].strip():
        return None
    return answer[end.end() :]


def _is_quoted(said: str, mark: re.Match[str]) -> bool:
    before = said[mark.start() - 1 : mark.start()]
    return before in _QUOTES and said[mark.end() : mark.end() + 1] == _QUOTES[before]


def _at_line_edge(said: str, mark: re.Match[str]) -> bool:
    """Whether a mark begins or ends its line; the marks of a template may stand before it."""
    before = said[max(0, mark.start() - _LINE_CHARS) : mark.start()]
    after = said[mark.end() : mark.end() + _LINE_CHARS]
    cut_before, cut_after = mark.start() > _LINE_CHARS, len(said) > mark.end() + _LINE_CHARS
    head, tail = before.rpartition("\n"), after.partition("\n")
    begins = (head[1] or not cut_before) and (not head[2].strip(" \t*_>#-") or head[2].rstrip().endswith("|>"))
    return bool(begins or ((tail[1] or not cut_after) and not tail[0].strip()))
