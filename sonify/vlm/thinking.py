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


# One rule over names: a word for thinking, whatever stands around it in the same name. A cot is a bed too.
_NAME = (
    r"(?:[\w:.-]{0,24}?(?:think|thought|reason|reflect|scratch_?pad|analysis|monologue|deliberat|思考|推理)"
    r"|(?:[\w:.-]{0,24}[_:.-])?cot(?=[_:.-]|\b))[\w:.-]{0,24}"
)
_ENDS = rf"/\s?{_NAME}|end_(?:of_)?{_NAME}|{_NAME}(?<=[_:-]end)"
_BEGINS = rf"(?!end_){_NAME}(?<![_:-]end)"
_MORE = r"(?:\s[^<>\n]{0,80})?"
FORMS = (
    # DeepSeek, Qwen, GLM, Hunyuan; <thought> of EXAONE and Gemini; <seed:think>, <longcat_think>; Kimi;
    # <|START_THINKING|> of Cohere, <|begin_of_thought|> of OpenThinker and Sky-T1
    Form(
        opens=rf"<\|?\s?(?:{_BEGINS}){_MORE}\|?>",
        closes=rf"<\s?\|?\s?(?:{_ENDS}){_MORE}\|?>",
    ),
    # Mistral
    Form(opens=rf"\[{_BEGINS}\](?![(:])", closes=rf"\[(?:{_ENDS})\]"),
    # Gemma
    Form(opens=r"<\|channel>\s?(?:thought|thinking)?", closes=r"<channel\|>"),
    # MedGemma
    Form(opens=r"<unused94>", closes=r"<unused95>"),
    # Harmony of gpt-oss: each channel but the last
    Form(
        opens=r"<\|channel\|>\s?(?:analysis|commentary)",
        closes=r"(?P<final><\|channel\|>\s?final(?:[^<>\n]{0,20}<\|constrain\|>[^<>\n]{0,20})?(?:\s?<\|message\|>)?)",
    ),
    # Solar
    Form(opens=r"<\|think\|>", closes=r"<\|content\|>"),
    # s1, Ling: a turn of its own
    Form(
        opens=r"<\|(?:im_start|role)\|>\s?think(?:ing)?\b",
        closes=r"<\|im_start\|>\s?answer\b|<\|role\|>\s?assistant\b",
    ),
    # Apertus
    Form(opens=r"<\|inner_prefix\|>", closes=r"<\|inner_suffix\|>"),
)
# Forms that end in what may end anything: such an end counts behind its own beginning alone.
_THINKS = r"(?:think|thought|reason)"
PAIRS = (
    # OpenWebUI
    Form(
        opens=rf"<details\b(?:[^<>\n]{{0,200}}{_THINKS}[^<>\n]{{0,200}}>|[^<>\n]{{0,200}}>\s{{0,4}}<summary>[^<>\n]{{0,40}}{_THINKS})",
        closes=r"</details>",
    ),
    # fenced
    Form(opens=rf"^[^\S\n]*(?:```|~~~)\s?{_BEGINS}[^\S\n]*$", closes=r"^[^\S\n]*(?:```|~~~)[^\S\n]*$"),
    # Ollama
    Form(opens=r"\A\s*Thinking(?:\.{3}|…)[^\S\n]*\n", closes=r"(?:\.{3}|…)\s?done thinking\.?"),
)
_PAIRS = tuple(
    re.compile(rf"(?:{pair.opens})(.*?)({pair.closes}|\Z)", re.IGNORECASE | re.MULTILINE | re.DOTALL) for pair in PAIRS
)
# How else the brackets of a mark are written, and what nobody sees in one.
_WRITTEN = str.maketrans("＜‹◁＞›▷【】｜▁", "<<<>>>[]|_")
_UNSEEN = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_ESCAPED = re.compile(r"&(lt|gt);|\\([<>])", re.IGNORECASE)
_OPENS = "|".join(form.opens for form in FORMS)
_CLOSES = "|".join(form.closes for form in FORMS)
_MARK = re.compile(rf"(?=<\|?[\s/\w]|\[[/\w])(?:(?P<opens>{_OPENS})|(?:{_CLOSES}))", re.IGNORECASE)
MAX_MARKS = 200  # so many are a loop
# What every mark has in it, in small letters: a text without any of it is not looked at bracket by bracket.
_IN_MARKS = (
    *("think", "thought", "reason", "reflect", "scratch", "analysis", "monologue", "deliberat", "cot", "思考", "推理"),
    *("channel", "unused9", "inner_", "<|content", "answer", "<|role"),
)
# The block of a model that forgets to end it ends where the answer's own mark begins a line.
_ANSWER_MARK = re.compile(r"<(?:answer|final_answer|response)>|<\|begin_of_(?:solution|box)\|>", re.IGNORECASE)
# Harmony's last channel without its marks, of a model that has not thought
_FINAL = re.compile(r"\A\s*(?:assistant\s?)?final(?=[A-Z*{\n]|caption|medium)")
# What models that think put around their answers, beside the turns of Gemma 4. Where nobody thought these are words.
_AROUND = re.compile(r"</?(?:final_answer|response|solution|conclusion|output)>")
# A token of a vocabulary that is a mark or a part of one.
_PIECE = re.compile(
    r"think|thought|reason|channel|<\|(?:message|content)\|>|inner_(?:pre|suf)fix|unused9[45]", re.IGNORECASE
)
_OPEN_AT_END = re.compile(rf"({_OPENS})\s*\Z", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}
_LINE_CHARS = 60  # looked at on either side of a mark
# A mark of a vocabulary is no word of any sentence.
_TOKEN = re.compile(r"<\||<unused")
_TEMPLATE = re.compile(r"<\|[^<>|\n]{1,40}\|>|\b(?:assistant|model)\b:?", re.IGNORECASE)
_BEGUN = re.compile(r"^(?!\W*(?:assistant|model)\b)[^\n:：=]{1,80}[:：=]\s?[^\s<]", re.IGNORECASE | re.MULTILINE)
_GOES_ON = re.compile(r"""[^\S\n]?[.,;:!?)"'|}\]]|[^\S\n][a-z0-9]""")


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
    # s1
    Bare(
        begins=re.compile(r"\A\s*think[^\S\n]*\n", re.IGNORECASE),
        ends=re.compile(r"^answer[^\S\n]*\n", re.IGNORECASE | re.MULTILINE),
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
    # prompted to think under a heading
    Bare(
        begins=re.compile(
            r"\A\s*(?:(?:#{1,6}\s?[*_]{0,3}|[*_]{1,3})(?:(?:my|step[- ]by[- ]step) )?"
            r"(?:thoughts?|thinking|reasoning|rationale|chain of thought)(?: process)?\s?[:*_]{0,4}"
            r"|[*_]{0,3}thought for [^\n]{1,20}(?:second|minute)s?[.*_]{0,4})[^\S\n]*\n",
            re.IGNORECASE,
        ),
        ends=re.compile(
            rf"{_ANSWERS}|^#{{1,6}}\s(?=\W{{0,4}}(?:caption|medium|concepts|sounds|result|conclusion)\b)",
            re.IGNORECASE | re.MULTILINE,
        ),
        always=True,
    ),
    # Chinese
    Bare(
        begins=re.compile(r"\A\W{0,6}(?:思考|推理)(?:过程)?\W{0,3}[:：]"),
        ends=re.compile(r"^\W{0,6}(?:最终)?(?:回答|答案|答复)\W{0,3}[:：]", re.MULTILINE),
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
# it. A caption in it may be a draft.
_ALOUD = re.compile(
    r"\A\W{0,4}(?:(?:okay|ok|alright|all right|hmm+|so|well|right|got it|now|first)\b[,.!\s-]{1,3}){0,3}"
    r"(?:let(?:'s| us| me(?! know))|i (?:need|have|should|must|want|am asked)|i'(?:ll|m asked)"
    r"|we (?:need|have|should|must|are)|the user"
    r"|the (?:question|task|prompt|instruction)s? (?:is|are|asks?|says?|wants?)|my task)\b",
    re.IGNORECASE,
)


def answer_in(said: str, finished: bool = True) -> str | None:
    """Return what a model answers, without its reasoning; None where it thinks to the end and does not answer.

    Args:
        finished: False where the token limit cut the text.
    """
    plain = _plainly(said)
    answer = _answer_in(_with_marks(plain), finished)
    if answer is None:
        return None
    if answer == plain:
        return said
    return _AROUND.sub(" ", answer).replace("<|turn>", "<start_of_turn>").replace("<turn|>", "<end_of_turn>")


def _answer_in(said: str, finished: bool) -> str | None:
    small = said.lower()
    found = islice(_MARK.finditer(said), MAX_MARKS) if any(part in small for part in _IN_MARKS) else ()
    marks = [mark for mark in found if not _is_quoted(said, mark)]
    if len(marks) == MAX_MARKS:
        return None
    answer = _outside(said, marks) if marks else said
    if answer is None:
        return None
    answer = _FINAL.sub("", answer)
    for bare in BARE:
        if (begin := bare.begins.match(answer)) is not None:
            return _behind(answer, begin, bare, finished)
    return None if not finished and not marks and _ALOUD.match(answer) else answer


def opened_by(prompt: str) -> str:
    """The mark with which a prompt has begun the model's reasoning for it; empty where it has not."""
    match = _OPEN_AT_END.search(_plainly(prompt[-200:]))
    return match[1] if match else ""


def is_piece_of_mark(token: str) -> bool:
    """Whether a special token must stay in the text, for without it reasoning has no bounds."""
    return _PIECE.search(token) is not None


def _plainly(said: str) -> str:
    """The same with every mark in its plainest writing."""
    seen = _UNSEEN.sub("", said).translate(_WRITTEN)
    return _ESCAPED.sub(lambda escaped: escaped[2] or ("<" if escaped[1].lower() == "lt" else ">"), seen)


def _with_marks(said: str) -> str:
    """The same with marks of their own for the forms that have a beginning alone."""
    for pair in _PAIRS:
        said = pair.sub(lambda block: f"<think>{block[1]}{'</think>' if block[2] else ''}", said)
    return said


def _outside(said: str, marks: list[re.Match[str]]) -> str | None:
    """The last that stands outside of blocks; before a mark that closes and was never opened, all is reasoning."""
    kept: list[str] = []
    last_end = max((mark.end() for mark in marks if mark["opens"] is None), default=0)
    position = opened = closed = 0
    thinks = False
    for mark in marks:
        if mark["opens"] is not None:
            if not thinks and mark.end() > last_end and _is_word(said, mark):
                continue
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
    return None if thinks and not _TEMPLATE.sub("", answer).strip() else answer


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


def _is_word(said: str, mark: re.Match[str]) -> bool:
    """Whether a mark that nothing closes is spoken of: inside a sentence of an answer that has begun.

    There the line in front of it is no end of a sentence, and what is behind goes on without a capital.
    """
    if _TOKEN.match(mark.group()) or _at_line_edge(said, mark) or not _GOES_ON.match(said, mark.end()):
        return False
    line = said[max(0, mark.start() - _LINE_CHARS) : mark.start()].rstrip()
    return line[-1:] not in ".!?…:：。" and _BEGUN.search(said, 0, mark.start()) is not None


def _at_line_edge(said: str, mark: re.Match[str]) -> bool:
    """Whether a mark begins or ends its line; the marks of a template may stand before it."""
    before = said[max(0, mark.start() - _LINE_CHARS) : mark.start()]
    after = said[mark.end() : mark.end() + _LINE_CHARS]
    cut_before, cut_after = mark.start() > _LINE_CHARS, len(said) > mark.end() + _LINE_CHARS
    head, tail = before.rpartition("\n"), after.partition("\n")
    begins = (head[1] or not cut_before) and (not head[2].strip(" \t*_>#-") or head[2].rstrip().endswith("|>"))
    return bool(begins or ((tail[1] or not cut_after) and not tail[0].strip()))
