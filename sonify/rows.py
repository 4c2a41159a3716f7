"""What travels between the stages: frozen rows, and the reasons for which a row leaves.

A field that is written to Parquet has a plain type; `io.tables` derives the schema from the annotations. A field with
a default came later than tables that lack it: there it has its default.
"""

from dataclasses import dataclass
from enum import StrEnum

from sonify.keys import escape_key


class Reason(StrEnum):
    """Why a row left the run; each member has a test that yields it."""

    # images and sounds
    UNREADABLE = "unreadable"  # not decodable: truncated, empty, another format
    TOO_LARGE = "too_large"  # refused from the header, before decoding
    UNSUPPORTED = "unsupported"  # a kind of file or encoding that is not read
    DUPLICATE_KEY = "duplicate_key"  # a second member of the same name in one archive
    DAMAGED_ARCHIVE = "damaged_archive"  # an archive that ends early or has a bad header
    CHANGED = "changed"  # the image is no longer the one that was paired
    SILENT = "silent"  # no measurable loudness
    TOO_SHORT = "too_short"  # no samples, or a tail under one second
    BAD_SAMPLES = "bad_samples"  # NaN or infinity
    EXCLUDED = "excluded"  # named in an exclusion list
    SPEECH = "speech"  # somebody speaks in the clip, and `audio.speech` is drop
    MISSING = "missing"  # a corpus's table names it, and there is no file: videos vanish
    # captions and concepts
    NO_CAPTION = "no_caption"
    BAD_CAPTION = "bad_caption"  # not UTF-8, or longer than a caption can be
    NO_CONCEPTS = "no_concepts"
    DISCARDED = "discarded"  # a discard word in a caption
    # what a model said
    NO_ANSWER = "no_answer"  # the model or its server refuses this one image
    EMPTY_ANSWER = "empty_answer"
    REFUSAL = "refusal"  # "I'm sorry, but ..."
    LOOPING = "looping"  # the same words again and again
    BAD_ANSWER = "bad_answer"  # no text in the form that was asked for: HTML, another language, a leaked prompt
    UNCONFIRMED = "unconfirmed"  # the check confirmed none of the scene's concepts
    NOT_A_PHOTO = "not_a_photo"  # the check took the image for a drawing, a statue, a logo
    # pairing
    NO_MATCH = "no_match"
    NOT_CONFIRMED = "not_confirmed"  # what listened to the clips heard none of the scene's concepts in them
    SAME_SOURCE = "same_source"  # of a concept: another name of a sound that the scene has already
    NOT_VISIBLE = "not_visible"  # of a concept: the model said that it is implied or off screen
    NOT_SOUNDING = "not_sounding"  # of a concept: the model said that it makes no sound now
    MISSING_SCENE = "missing_scene"  # another scene of the same image is missing
    # any stage
    CRASHED = "crashed"  # this row kills or breaks its worker


# Decisions about content rather than something broken: they never trip `engine.max_fault_ratio`.
NOT_FAULTS = frozenset(
    {
        Reason.EXCLUDED,
        Reason.SPEECH,
        Reason.MISSING,
        Reason.NO_CAPTION,
        Reason.NO_CONCEPTS,
        Reason.DISCARDED,
        Reason.NO_MATCH,
        Reason.NOT_CONFIRMED,
        Reason.SAME_SOURCE,
        Reason.NOT_VISIBLE,
        Reason.NOT_SOUNDING,
        Reason.MISSING_SCENE,
        Reason.UNCONFIRMED,
        Reason.NOT_A_PHOTO,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A row that left the run. `scene` is empty where the whole image or recording left."""

    key: str
    reason: Reason
    scene: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """One line of an image unit's frozen listing: a file, or an archive of images.

    `caption` is the undecoded caption of a captions table (empty: none, look beside the image); `below` keeps
    only the keys whose sampling hash is below it (0: keep all).
    """

    uri: str
    caption: bytes = b""
    below: int = 0

    @property
    def key(self) -> str:
        """What the run knows it by, unique in the image set without a look at other units."""
        return escape_key(self.uri)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """An image as it was found. `data` is the file's bytes; `caption` is None where there is none."""

    uri: str
    data: bytes
    caption: bytes | None

    @property
    def key(self) -> str:
        """As that of its `ImageRef`."""
        return escape_key(self.uri)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundRef:
    """One line of a sound unit's frozen listing.

    `file` is a path below the corpus's folder, a member of an archive (`a.tar/b.flac`) or a row of a table
    (`a.parquet/000012`). `recording` is the original upload that clips may share, over all corpora where it has a
    public id (`youtube/...`, `freesound/...`). `refused` is a `Reason` where listing already found that there is
    nothing to read, and empty elsewhere.
    """

    corpus: str
    file: str
    recording: str
    text: str
    licence: str
    attribution: str
    refused: str = ""
    detail: str = ""

    @property
    def key(self) -> str:
        """The file, unique over all collections."""
        return f"{self.corpus}/{self.file}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A stored clip of the pool (the contract of `pool/clips`).

    `duration_sec` is before padding; `loudness_lufs` (BS.1770 integrated) and `peak_dbfs` are of the stored samples,
    and so is `sha256`.
    """

    clip: str
    recording: str
    corpus: str
    file: str
    start_sec: float
    duration_sec: float
    loudness_lufs: float
    peak_dbfs: float
    text: str
    licence: str
    attribution: str
    split: str
    sha256: str

    @property
    def key(self) -> str:
        """The clip."""
        return self.clip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A sound that a listener heard in a clip, in its own words.

    `class_id` is the class of the AudioSet ontology that it names (empty: none). `score` is the best of the listener's
    windows, `mean` the mean over all of them.
    """

    name: str
    class_id: str
    score: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardClip:
    """What a listener heard in a clip (the contract of `pool/tags`), best first.

    `sha256` is of the clip's samples, and `listener` all that the scores depend on: the model, what it computes on, the
    question. `answer` is what a model that is asked said, unparsed, and `finished` is False where the token limit cut
    it; `refused` is why it said nothing that can be used.
    """

    clip: str
    sha256: str
    listener: str
    tags: tuple[Tag, ...]
    answer: str = ""
    finished: bool = True
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A sounding concept: what is heard, and how. An empty `description` is a bare name.

    `prominence` is the model's word (`foreground`, `background`, `ambience`; empty: it said none) and `area` the share
    of the image that the sounding thing takes (0.0: not told). `presence` is `visible`, `implied` or `off_screen`
    (empty: it was not asked); `sounding` is False where the model said that it makes no sound now; `confidence` is how
    sure it said it is, from 0 to 1 (0.0: not told), and `box` where it is: left, top, right and bottom as shares of the
    image (empty: not told).
    """

    concept: str
    description: str
    prominence: str = ""
    area: float = 0.0
    presence: str = ""
    sounding: bool = True
    confidence: float = 0.0
    box: tuple[float, ...] = ()

    @property
    def is_claimed(self) -> bool:
        """Whether the model says, or does not deny, that it is visible and sounds."""
        return self.presence in ("", "visible") and self.sounding


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConcepts:
    """What one extractor heard in one image (the contract of `concepts/`); `answer` is what it said, unparsed."""

    image: str
    image_uri: str
    image_sha256: str
    width: int
    height: int
    caption: str
    answer: str
    concepts: tuple[Concept, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAnswer:
    """What a model said when it was asked about an image (the contract of `answers/`).

    `source` is a digest of the model's files, its settings and the question's form; it makes the question together with
    the image and the prompt. `finished` is False where the token limit cut the answer, `refused` why there is none.
    """

    image: str
    image_sha256: str
    model: str
    source: str
    prompt: str
    answer: str = ""
    finished: bool = False
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the check says of one thing; what the model did not say is False."""

    concept: str
    visible: bool
    real: bool
    sounding: bool

    @property
    def confirmed(self) -> bool:
        """Whether it may be heard."""
        return self.visible and self.real and self.sounding


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedImage:
    """What the check found in one image (the contract of `checks/`); `foils` are things that are not there."""

    image: str
    medium: str
    concepts: tuple[Verdict, ...]
    foils: tuple[Verdict, ...]
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A concept of a scene that is not heard, and why: a `Reason`.

    `clip` and its `cosine` are the near miss, the best clip that was refused (empty: there was none), and `heard` is
    what a listener heard in it instead.
    """

    concept: str
    description: str
    presence: str
    reason: Reason
    clip: str
    cosine: float
    heard: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceClip:
    """A clip drawn for one concept of one scene, and how loud it is to be.

    `limit` is the cosine that it had to reach (0.0: there was none). `heard_by` names the listener that was asked about
    the clip (empty: nobody), `heard` is what it heard, in its own words, `support` how sure it was of the concept,
    `purity` the share of what it heard that is the concept, and `speech` how sure it was that somebody speaks.
    `onsets_sec` is when it begins in the scene, each time; empty, it is heard once, whole and from the start. Else the
    `active_sec` seconds of it that begin at `active_start_sec` are heard.
    `role` is `foreground` or `ambience` in a scene of both whose `snr_db` was drawn, and empty elsewhere.

    `copy` is `exact`, or, in a rendering of a published dataset, `equivalent` where the clip is another encoding of the
    published one and `repaired` where it was drawn in the place of a lost one.
    """

    concept: str
    description: str
    clip: str
    cosine: float
    score: float
    threshold: float
    num_candidates: int
    target_lufs: float
    gain_db: float
    copy: str = "exact"
    limit: float = 0.0
    heard_by: str = ""
    heard: str = ""
    support: float = 0.0
    purity: float = 0.0
    speech: float = 0.0
    onsets_sec: tuple[float, ...] = ()
    active_start_sec: float = 0.0
    active_sec: float = 0.0
    role: str = ""
    snr_db: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What is heard in one scene of one image (the contract of `pairs/`), and what was named and is not: `refused`.

    `medium` and `check_answer` are the check's; both are empty where nothing was checked.
    """

    image: str
    image_uri: str
    image_sha256: str
    width: int
    height: int
    split: str
    scene: str
    caption: str
    medium: str
    check_answer: str
    sources: tuple[SourceClip, ...]
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ActedSplit:
    """What the rules of the draw came to over the clips of one split.

    `top_k` is how many of the best clips were looked at for a concept, after every cap; `clips_per_recording` of 0 is
    any number.
    """

    split: str
    clips: int
    recordings: int
    top_k: int
    clips_per_recording: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ActedRules:
    """The rules of the draw as they acted on a run's pool.

    `version` is that of the rules, `kinds` that of the kinds by which names are compared (0: none are).
    """

    version: int
    kinds: int
    splits: tuple[ActedSplit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Render:
    """What rendering one scene did (the contract of `renders/`); `mix_sha256` is of the mixed 16-bit PCM."""

    image: str
    scene: str
    mix_gain_db: float
    peak_dbfs: float
    mix_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureEntry:
    """A training sample's place in its archive: its members, with their headers, are the bytes from `offset` on.

    `recordings` are those that are heard in it, sorted; with the sha256 a sample is checked by one read.
    """

    key: str
    offset: int
    size_bytes: int
    sha256: str
    recordings: tuple[str, ...]
