"""The words of answers: keys, headings, what is said where nothing sounds; names brought to one form and compared."""

import re

from sonify.captions.words import plural, tokenize

MAX_NAME_WORDS = 5
MAX_NAME_CHARS = 50


def words_of(text: str) -> frozenset[str]:
    """A set of words, written as text."""
    return frozenset(text.split())


# Keys and headings, in lower case, with spaces for underscores and without numbers.
CAPTION_KEYS = frozenset(
    ("caption", "image caption", "photo caption", "image description", "scene description", "scene", "captions")
)
NAME_KEYS = words_of("name concept label object thing source entity item element") | {
    "sound source", "sounding concept", "sounding object", "sound concept",
}  # fmt: skip
DESCRIPTION_KEYS = words_of("description sound sounds desc audio query") | {
    "sound description", "audio description", "sound query", "clap query", "what it sounds like",
}  # fmt: skip
PROMINENCE_KEYS = words_of("prominence position placement layer role level depth type")
# What a model says for itself in JSON of its own, where it is text: what is listed below them is its answer.
REASONING_KEYS = words_of("thinking thought thoughts reasoning rationale analysis explanation cot scratchpad") | {
    "chain of thought", "thought process", "thinking process", "reasoning process", "reasoning content",
}  # fmt: skip
BOX_KEYS = frozenset(("bbox", "bbox 2d", "box", "box 2d", "bounding box", "boundingbox", "coordinates"))
PROMINENCES = {
    "foreground": "foreground", "background": "background", "ambience": "ambience", "ambient": "ambience",
    "ambiance": "ambience", "ambient sound": "ambience", "ambient sounds": "ambience",
    "foreground sounds": "foreground", "background sounds": "background", "in the foreground": "foreground",
    "in the background": "background", "foreground sound": "foreground", "background sound": "background",
}  # fmt: skip

# What stands before a colon and names nothing that sounds: headings, remarks, errors.
_HEADINGS = words_of(
    """
    concepts sounds names list answer output response result results note notes error warning code message status
    detail details summary overall conclusion explanation reasoning setting location place time weather mood season
    lighting colors colours color composition style medium objects object items example examples format disclaimer
    image photo picture scene title question prompt user assistant system nothing none n/a silence silent
    description caption name prominence audible things elements sources analysis observation context atmosphere
    date exception traceback content-type content-length http https bbox box area confidence
    sure certainly ok okay yes no hint tip important remember instructions instruction task role keywords tags
    subject background foreground ambience step text language total count number visible inaudible id type
    url file version data
    """
)
_HEADING_WORDS = words_of(
    """
    concepts concept sounds sound sounding audible visible present present: list in the image of and potential
    possible objects object items things elements sources source that can be heard here are acoustic scene now right
    names name descriptions description following identified detected your answer final output for with json photo
    """
)
# A line that begins so is a sentence, whatever colon it has.
_SENTENCE_STARTS = words_of(
    """
    i i'm i've you your we it it's its there there's this these those that here here's based as if since however
    although because please let sure certainly what which how why when where who note in on at from overall
    additionally finally also given unfortunately sorry looking considering while to not no nothing first second
    lastly for with thank thanks hope ignore therefore thus hence
    moreover furthermore regarding
    """
)

UNSEEN = re.compile(
    r"\b(?:not (?:directly |actually |currently )?(?:visible|seen|shown|present|pictured|in (?:the )?(?:image|frame))"
    r"|off[- ]?(?:camera|screen|frame)|out of (?:the )?(?:frame|view|shot)|unseen|invisible"
    r"|outside (?:of )?(?:the |this )?(?:image|frame|picture|photo)|absent)\b",
    re.IGNORECASE,
)
SILENT = re.compile(
    r"\b(?:silent(?:ly)?|soundless|noiseless|inaudible|no (?:audible |apparent |discernible )?(?:sounds?|noise)"
    r"|without (?:a |any )?(?:sounds?|noise)|not (?:audible|sounding|heard)"
    r"|(?:not|n't|cannot|never) (?:make|making|produce|producing|emit|emitting|making|generate|generating) "
    r"(?:any |a |much )?(?:sounds?|noise)|nothing (?:to hear|is heard|can be heard))\b"
    r"|^(?:none|n/a|nothing|null|silence)\W*$",
    re.IGNORECASE,
)
_NOTHING_ALONE = frozenset(
    ("none", "nothing", "n/a", "na", "null", "silence", "no sounds", "no sound", "no concepts", "[]", "{}")
)
_NOTHING_SAID = re.compile(
    r"\b(?:no|none|nothing|(?:n't|not) (?:contain |have |show |depict )?any\w*)\b"
    r"[^.]{0,120}\b(?:sound|sounds|sounding|audible|heard|hear|noise|noises)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"(?:\bi(?:'m| am) (?:so |very |really )?sorry\b|\bi apologi[sz]e|\bmy apologies\b|\bsorry,? (?:but )?i\b"
    r"|\bi (?:can ?not|can't|am unable|'m unable|am not able|'m not able|do not have|don't have|won't|will not)\b"
    r"|\bi'm (?:unable|not able)\b|\bunable to (?:assist|help|process|analy[sz]e|view|see|identify|comply|provide)"
    r"|\bas an? (?:ai|language|text|vision|large)\b|\bi must decline|\bagainst my\b|\bcontent policy\b"
    r"|\bno image (?:was |is |has been )?(?:provided|attached|uploaded)"
    r"|\bplease (?:provide|upload|attach|share) (?:the|an) "
    r"|\blo siento\b|\bje suis désolée?|\bdésolée?,|\bes tut mir leid|\bentschuldig|\bich kann (?:leider )?nicht"
    r"|\bmi dispiace\b|\bdesculpe\b|\bsinto muito\b|\bhet spijt me\b|\bprzepraszam\b|извините|прошу прощения|не могу"
    r"|抱歉|对不起|對不起|无法|無法|申し訳|できません|죄송|آسف|عذرا|क्षमा|माफ़)",
    re.IGNORECASE,
)
# Words that hold sentences together, in English and, without accents, in other languages of Latin letters. Words that
# English shares with them (in, die, van, met, no, do) tell nothing.
_ENGLISH = words_of("the of and with is are while sound sounds from by its or as to at being that there")
_FOREIGN = words_of(
    """
    el la los las un una unos del por que esta mientras sonido le les des une et avec dans est pendant bruit chien der
    das ein eine einen und mit ist im auf wahrend gerausch il lo gli che nel della di sono rumore suono os um uma dos
    em enquanto het een op geluid ett och pa ljud av jest sie na dzwiek oraz lyd og bir ve sesi yang suara
    """
)

# Bullets, numbers, headings and boxes to tick before a line's text.
_MARKS = re.compile(r"(?:[-+•‣◦▪●○■–—·>#*]++\s*+|\(?\d{1,3}+[.):](?!\d)\s*+|\(?[a-zA-Z][.)]\s++|\[[ xX]\]\s*+)++")
_EMPHASIS = re.compile(r"[*`]++|(?<!\w)_++|_++(?!\w)")
_PARENTHESES = re.compile(r"\([^()]*+\)|\[[^\[\]]*+\]")
_LATIN = re.compile(r"[a-z\u00c0-\u024f0-9]++(?:(?: ?[&/'’-] ?|,? |\. )[a-z\u00c0-\u024f0-9]++)*+['’]?")
_LETTER = re.compile(r"[A-Za-z]")
_IN_ANY_LETTERS = re.compile(r"\w[\w\s&/'’.,\u0300-\u036f\u0900-\u0dff\u0e00-\u0eff-]*+")
_NOT_IN_KEYS = words_of(
    "a an the some several many few two three four five six seven eight nine ten one multiple various"
)


def is_heading(name: str) -> bool:
    """Whether what stands before a colon is a heading or the beginning of a sentence and not the name of a thing."""
    words = name.lower().split()
    return (
        not words
        or name.lower() in _HEADINGS
        or words[0] in _SENTENCE_STARTS
        or all(word in _HEADING_WORDS or word in _HEADINGS for word in words)
    )


def says_nothing_sounds(line: str) -> bool:
    """Whether a line says that nothing can be heard."""
    return line.lower().strip(" .!\"'()*-_`") in _NOTHING_ALONE or bool(_NOTHING_SAID.search(line))


def says_sorry(text: str) -> bool:
    """Whether a text without any concept refuses, in one of a dozen languages."""
    return bool(_REFUSAL.search(text[:1000].replace("’", "'")))


def is_foreign(tokens: list[str]) -> bool:
    """Whether more words of a text hold sentences of other languages together than English ones."""
    foreign = sum(token in _FOREIGN for token in tokens)
    return foreign >= 2 and foreign > sum(token in _ENGLISH for token in tokens)


def strip_marks(line: str) -> tuple[str, bool]:
    """A line without emphasis and without what makes it an item of a list, and whether it was one."""
    match = _MARKS.match(line)
    text = line
    # a heading in bold begins with the bullet's star
    if match is not None and not (match.group().startswith("**") and not match.group()[2:].strip("*")):
        text = line[match.end() :]
    bulleted = len(text) < len(line)
    text = _EMPHASIS.sub("", text).strip()
    inner = _MARKS.match(text)  # **1. Dog**
    return (text[inner.end() :].strip(), True) if inner is not None else (text, bulleted)


def clean_name(raw: str, *, english: bool = True) -> str:
    """A name in lower case, without article, quotes, brackets and number; empty where it is none.

    Where another language than English was asked for it may be in any letters.
    """
    plain = _EMPHASIS.sub("", _PARENTHESES.sub(" ", raw[:200]))
    words = plain.strip(" \t.,;:!?\"'“”‘’*_-–—|").lower().split()
    while len(words) > 1 and words[0] in {"a", "an", "the", "some"}:
        words = words[1:]
    while len(words) > 1 and words[-1].strip("#").isdigit():
        words = words[:-1]
    while words and not any(c.isalnum() for c in words[0]):  # an emoji before it
        words = words[1:]
    name = " ".join(words)
    has_letters = _LETTER.search(name) if english else any(c.isalpha() for c in name)
    if not (_LATIN if english else _IN_ANY_LETTERS).fullmatch(name) or not has_letters:
        return ""
    return name if len(words) <= MAX_NAME_WORDS and len(name) <= MAX_NAME_CHARS else ""


def name_key(name: str) -> tuple[str, ...]:
    """The words that tell one name from another: no articles, numbers, accents and case."""
    tokens = tuple(t for t in tokenize(name) if t not in _NOT_IN_KEYS and not t.isdigit())
    return tokens or tuple(tokenize(name)) or tuple(name.lower().split())


def same_name(one: str, other: str) -> bool:
    """Whether two names are one: `A dog`, `dogs`, `Dog 2`."""
    ours, theirs = name_key(one), name_key(other)
    return 0 < len(ours) == len(theirs) and all(map(_same_word, ours, theirs))


def _same_word(one: str, other: str) -> bool:
    return one == other or plural(one) == other or plural(other) == one
