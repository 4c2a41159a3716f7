"""Each kind of model on one thing to look at or six to hear, by the functions that the stages call."""

import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sonify import layout
from sonify.config import Audio, Confirm, Features, Retrieval, Tagger, TransformersVlm, VlmExtractor
from sonify.config.models import AST_SAMPLE_RATE_HZ, Requests
from sonify.doctor.findings import Finding, Outcome, one_line
from sonify.doctor.specimens import SOUNDS, HeardSound, Picture, laid_out_sounds
from sonify.io.tables import write_rows
from sonify.media.mixing import FULL_SCALE
from sonify.media.pixels import decode_for_model, decode_square
from sonify.models.fetch import VAE_FILES, VLM_FILES, fetch_model
from sonify.retrieval.confirm import Ear, read_tags
from sonify.retrieval.encoders import query_of, query_text
from sonify.rows import Clip, Concept, HeardClip, Reason
from sonify.stages.concepts import read_concepts, schema_of
from sonify.stages.embeddings import ClipToEmbed, EmbeddingStage
from sonify.stages.listen import ClipToHear, EndpointHearing, Hearing, ListenerName, TaggerHearing
from sonify.vlm.backends import load_vlm
from sonify.vlm.check import parse_check
from sonify.vlm.questions import Answer, NoAnswer, Question, check_question, concepts_prompt, foils_for
from sonify.vlm.repair import Unusable

Asked = TypeVar("Asked", bound=VlmExtractor | Confirm)

# A server that fails is asked again no longer than this, whatever `max_wait_sec` allows a run.
PATIENCE_SEC = 10.0
MOST_LINES, MOST_CHARS = 8, 110
# Of six: chance gives a CLAP four of its rows with a probability of 0.009.
FEWEST_WON = 4
# A VAE whose pictures are further from what went in hardly knows it. Published ones reach 24 dB and more.
DIM_DB = 20.0
THING = Concept(concept="car", description="a car passing by")  # in the drawing, and in many pictures
UNIT = "000000"


def try_vlm(about: str, extractor: VlmExtractor, max_concepts: int, picture: Picture) -> Finding:
    """Ask what can be heard in a picture, and read the answer."""
    prompt = concepts_prompt(max_concepts, extractor.answers, extractor.language)
    size, answer, facts = _ask(extractor, picture, prompt, max_concepts)
    if isinstance(answer, NoAnswer):
        return _refused(about, answer, facts)
    parsed = read_concepts(extractor, max_concepts, answer.text, answer.finished, size)
    shown = _shown(answer.text)
    if isinstance(parsed, Unusable):
        facts |= {"answer": answer.text, "finished": answer.finished, "reason": parsed.reason}
        if parsed.reason == Reason.NO_CONCEPTS:
            found = f"an answer in form, and nothing that sounds is named in {picture.name}"
            return Finding(about=about, outcome=Outcome.NOTE, found=found, shown=shown, facts=facts)
        found = f"the answer about {picture.name} holds no concept that can be read: {_reason_of(parsed)}"
        todo = (
            "compare it with the form that docs/models.md asks for; take a model that was trained to chat, or another"
        )
        return Finding(about=about, outcome=Outcome.FAULT, found=found, todo=todo, shown=shown, facts=facts)
    names = [concept.concept for concept in parsed.concepts]
    facts |= {"answer": answer.text, "finished": answer.finished, "concepts": names}
    read = tuple(f"-> {concept.concept}: {concept.description}" for concept in parsed.concepts)
    return Finding(
        about=about,
        outcome=Outcome.OK if answer.finished else Outcome.NOTE,
        found=f"hears {', '.join(names)} in {picture.name}; {_times(facts)}",
        todo="" if answer.finished else f"the answer was cut: raise max_new_tokens ({extractor.max_new_tokens})",
        shown=shown + read,
        facts=facts,
    )


def try_checker(about: str, checker: VlmExtractor, picture: Picture) -> Finding:
    """Ask whether something is in a picture, with two foils as the check has them."""
    names = (THING.concept, *foils_for([THING], "doctor", 0))
    _, answer, facts = _ask(checker, picture, check_question(names), None)
    if isinstance(answer, NoAnswer):
        return _refused(about, answer, facts)
    shown = _shown(answer.text)
    facts["answer"] = answer.text
    check = parse_check(answer.text, names, answer.finished)
    if isinstance(check, Unusable):
        found = f"the answer to the check of {picture.name} cannot be read: {_reason_of(check)}"
        return Finding(about=about, outcome=Outcome.FAULT, found=found, shown=shown, facts=facts)
    confirmed = [verdict.concept for verdict in check.verdicts if verdict.confirmed]
    facts |= {"medium": check.medium, "concepts": confirmed}
    told = f"calls {picture.name} {check.medium or 'no known medium'}, and of {', '.join(names)} confirms"
    found = f"{told} {', '.join(confirmed) or 'none'}; {_times(facts)}"
    return Finding(about=about, outcome=Outcome.OK, found=found, shown=shown, facts=facts)


def _ask(
    vlm: VlmExtractor, picture: Picture, prompt: str, max_concepts: int | None
) -> tuple[tuple[int, int], Answer | NoAnswer, dict[str, Any]]:
    """Load a model as a worker does, ask once and end it; the picture's size, what was said, and how long it took."""
    info, image = decode_for_model(picture.data, vlm.image_size)
    schema = None if max_concepts is None else schema_of(vlm, max_concepts)
    if isinstance(vlm, TransformersVlm):
        import sonify.vlm.in_process  # noqa: F401, PLC0415 - takes seconds, which are not the model's
    # kept where anything fails: the message names the engine's log in it
    logs = Path(tempfile.mkdtemp(prefix="sonify-doctor-"))
    started = time.monotonic()
    loaded = load_vlm(_impatient(vlm), logs)
    try:
        ready = time.monotonic()
        [answer] = loaded([Question(image=image, prompt=prompt, schema=schema)])
        answered = time.monotonic()
    finally:
        loaded.close()
    shutil.rmtree(logs)
    facts: dict[str, Any] = {
        "picture": picture.name,
        "picture_sha256": sha256(picture.data).hexdigest(),
        "load_sec": round(ready - started, 2),
        "answer_sec": round(answered - ready, 2),
    }
    if isinstance(answer, Answer) and isinstance(vlm, TransformersVlm):
        facts["tokens_per_sec"] = round(_count_tokens(vlm, answer.text) / max(answered - ready, 1e-3), 1)
    return (info.width, info.height), answer, facts


def _impatient(asked: Asked) -> Asked:
    """The same model, asked again for some seconds only where its server fails."""
    if not isinstance(asked, Requests):
        return asked
    return asked.model_copy(update={"max_wait_sec": min(asked.max_wait_sec, PATIENCE_SEC)})


def _count_tokens(vlm: TransformersVlm, text: str) -> int:
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds to import

    from sonify.models.loading import load_part  # noqa: PLC0415

    return len(load_part(AutoTokenizer, fetch_model(vlm.model, vlm.revision, VLM_FILES)).encode(text))


def _times(facts: dict[str, Any]) -> str:
    rate = f", {facts['tokens_per_sec']} tokens/s" if "tokens_per_sec" in facts else ""
    return f"loaded in {facts['load_sec']:.1f} s, answered in {facts['answer_sec']:.1f} s{rate}"


def _refused(about: str, answer: NoAnswer, facts: dict[str, Any]) -> Finding:
    found = f"no answer: {answer.detail or answer.reason}"
    return Finding(about=about, outcome=Outcome.FAULT, found=one_line(found), facts=facts | {"reason": answer.reason})


def _reason_of(unusable: Unusable) -> str:
    return one_line(f"{unusable.reason}{unusable.detail and f' ({unusable.detail})'}")


def _shown(text: str) -> tuple[str, ...]:
    """The first lines of what a model said."""
    lines = [line for line in text.splitlines() if line.strip()] or ["(nothing)"]
    cut = [f"| {one_line(line, MOST_CHARS)}" for line in lines[:MOST_LINES]]
    return tuple(cut) if len(lines) <= MOST_LINES else (*cut, f"| ... {len(lines) - MOST_LINES} more lines")


# --- what hears


def try_clap(about: str, retrieval: Retrieval, audio: Audio) -> Finding:
    """Embed six recordings and six texts as the embeddings stage and a query would be: does each find its own?"""
    started = time.monotonic()
    with laid_out_sounds(audio) as (here, heard):
        stage = EmbeddingStage(Path(), here, retrieval)
        loaded = time.monotonic()
        place, part = next((n, part) for n, part in enumerate(stage.parts) if part.hears)
        embedded = stage([_to_embed(one, retrieval) for one in heard])
        sounds = np.stack([row.vectors[place] for row in embedded])
    texts = part.encoder([query_text(sound.concept, retrieval.query) for sound in SOUNDS])
    cosines = sounds @ texts.T
    rows, columns = count_won(cosines), count_won(cosines.T)
    few = min(rows, columns)
    return Finding(
        about=about,
        outcome=Outcome.OK if few == len(SOUNDS) else Outcome.NOTE if few >= FEWEST_WON else Outcome.FAULT,
        found=f"{rows} of 6 recordings are nearest to their own text, {columns} of 6 texts to their own recording",
        todo=""
        if few == len(SOUNDS)
        else "the recordings are synthesised, and a good CLAP may mishear one"
        if few >= FEWEST_WON
        else "it does not tell six plain sounds apart: take the published weights, or fetch them again",
        shown=_table(cosines),
        facts={
            "rows_won": rows,
            "columns_won": columns,
            "sounds": [sound.file for sound in SOUNDS],
            "cosines": [[round(float(value), 4) for value in row] for row in cosines],
            "dimension": part.encoder.dimension,
            "load_sec": round(loaded - started, 2),
            "hear_sec": round(time.monotonic() - loaded, 2),
        },
    )


def _to_embed(one: HeardSound, retrieval: Retrieval) -> ClipToEmbed:
    samples = one.samples if retrieval.hears == "clip" else None
    return ClipToEmbed(clip=one.clip, known=None, samples=samples)


def count_won(cosines: np.ndarray) -> int:
    """In how many rows the diagonal is above all else; what is equal wins nothing."""
    others = cosines.copy()
    np.fill_diagonal(others, -np.inf)
    return int((np.diag(cosines) > others.max(axis=1)).sum())


def _table(cosines: np.ndarray) -> tuple[str, ...]:
    """Recordings by texts; the best text of each recording has a star."""
    names = [sound.concept.concept for sound in SOUNDS]
    width = max(map(len, names))
    head = " " * width + "".join(f"  {name:>{width}}" for name in names)
    lines = [head]
    for name, row in zip(names, cosines, strict=True):
        cells = (f"{value:.2f}{'*' if n == int(np.argmax(row)) else ' '}" for n, value in enumerate(row))
        lines.append(f"{name:>{width}}" + "".join(f"  {cell:>{width}}" for cell in cells).rstrip())
    return tuple(lines)


def try_listener(about: str, retrieval: Retrieval, audio: Audio) -> Finding:
    """Have six recordings heard as the pool's clips are, and ask by the run's own rule whether they are confirmed."""
    confirm = retrieval.confirm
    assert confirm is not None
    started = time.monotonic()
    hearing = _hearing_of(confirm, audio)
    loaded = time.monotonic()
    try:
        with laid_out_sounds(audio) as (_, heard):
            rows = [ClipToHear(clip=one.clip, samples=one.samples, known=None) for one in heard]
            said = hearing.collect(hearing.begin(rows))
    finally:
        hearing.close()
    refused = [one.refused for one in said if one.refused]
    confirmed = _confirmed(retrieval, [row.clip for row in rows], said)
    shown = tuple(f"{sound.concept.concept}: {_heard(one)}" for sound, one in zip(SOUNDS, said, strict=True))
    facts = {
        "confirmed": [sound.concept.concept for sound, yes in zip(SOUNDS, confirmed, strict=True) if yes],
        "load_sec": round(loaded - started, 2),
        "hear_sec": round(time.monotonic() - loaded, 2),
    }
    count = sum(confirmed)
    outcome = Outcome.OK if count == len(SOUNDS) else Outcome.NOTE if count else Outcome.FAULT
    found = f"hears {count} of 6 recordings as what they are" + (f"; {len(refused)} not answered" if refused else "")
    todo = "" if count == len(SOUNDS) else "the recordings are synthesised, and a good listener may mishear one"
    if not count:
        todo = "`retrieval.confirm` would refuse what it is asked for: take another model, or set it to null"
    return Finding(about=about, outcome=outcome, found=found, todo=todo, shown=shown, facts=facts)


def _hearing_of(confirm: Confirm, audio: Audio) -> Hearing:
    name = ListenerName(id="doctor", name=confirm.model, identity="")
    if isinstance(confirm, Tagger):
        from sonify.features.taggers import load_tagger  # noqa: PLC0415 - of what a tagger needs

        return TaggerHearing(load_tagger(confirm), audio, name)
    return EndpointHearing(_impatient(confirm), audio, name)


def _confirmed(retrieval: Retrieval, clips: Sequence[Clip], said: Sequence[HeardClip]) -> list[bool]:
    """Whether each clip would stay a candidate for its own concept."""
    assert retrieval.confirm is not None
    with tempfile.TemporaryDirectory(prefix="sonify-doctor-") as folder:
        tables = ((layout.clips(UNIT), Clip, clips), (layout.tags("doctor", UNIT), HeardClip, said))
        for path, row_type, rows in tables:
            (Path(folder) / path).parent.mkdir(parents=True)
            with (Path(folder) / path).open("wb") as file:
                write_rows(file, row_type, rows)
        ear = Ear(read_tags(Path(folder), "doctor", retrieval.confirm.model, False), retrieval.confirm, None)
    return [
        not one.refused and bool(ear.judge(query_of(sound.concept, retrieval.query), np.array([n])).confirmed[0])
        for n, (sound, one) in enumerate(zip(SOUNDS, said, strict=True))
    ]


def _heard(one: HeardClip) -> str:
    tags = ", ".join(f"{tag.name} {tag.score:.2f}" for tag in one.tags[:3])
    return one_line(one.refused or tags or "nothing", MOST_CHARS)


# --- the networks of features


def try_vae(about: str, features: Features, picture: Picture) -> Finding:
    """Encode a picture at the size of the training samples, and decode it again."""
    from sonify.features.vae import decode, encode, load_vae  # noqa: PLC0415 - torch takes seconds to import
    from sonify.models.loading import choose_device, choose_dtype, computing  # noqa: PLC0415

    started = time.monotonic()
    device = choose_device(features.device)
    fetched = fetch_model(features.vae, features.vae_revision, VAE_FILES)
    vae = load_vae(fetched, device, choose_dtype(features.dtype, device))
    loaded = time.monotonic()
    pixels = decode_square(picture.data, features.size)
    with computing(features.cpus):
        latents = encode(vae, pixels[None]).mean_BCHW
        back = decode(vae, latents)[0]
    stored = latents[0].cpu().numpy()
    psnr, plain = _psnr_db(pixels, back), _psnr_db(pixels, np.broadcast_to(pixels.mean((0, 1)), pixels.shape))
    facts = {
        "shape": list(stored.shape),
        "psnr_db": round(psnr, 2),
        "picture_sha256": sha256(picture.data).hexdigest(),
        "load_sec": round(loaded - started, 2),
        "both_ways_sec": round(time.monotonic() - loaded, 2),
    }
    if not _fits_half(stored):
        found = "gives NaN, infinity or more than float16 holds: its weights are damaged, or need dtype: float32"
        return Finding(about=about, outcome=Outcome.FAULT, found=found, facts=facts | {"psnr_db": None})
    shape = " x ".join(map(str, stored.shape))
    found = f"latents of {shape}; decoded again, {picture.name} has a PSNR of {psnr:.1f} dB"
    if psnr <= plain:
        todo = f"its mean colour alone has {plain:.1f} dB: random weights, as `train.tiny`'s are, or damaged ones"
        return Finding(about=about, outcome=Outcome.NOTE, found=found, todo=todo, facts=facts)
    outcome = Outcome.OK if psnr >= DIM_DB else Outcome.NOTE
    todo = "" if psnr >= DIM_DB else f"below {DIM_DB:.0f} dB: nothing that is trained on such latents is sharper"
    return Finding(about=about, outcome=outcome, found=found, todo=todo, facts=facts)


def _psnr_db(before: np.ndarray, after: np.ndarray) -> float:
    """Of 8-bit pictures; those that are the same have 99 dB."""
    error = float(np.square(before.astype(np.float64) - after).mean())
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


def try_ear(about: str, features: Features, audio: Audio) -> Finding:
    """Listen to one recording."""
    from sonify.features.batches import load_ear  # noqa: PLC0415 - torch takes seconds to import
    from sonify.models.loading import choose_device, computing  # noqa: PLC0415

    started = time.monotonic()
    hears = load_ear(features, choose_device(features.device))
    loaded = time.monotonic()
    with laid_out_sounds(audio.model_copy(update={"sample_rate": AST_SAMPLE_RATE_HZ})) as (_, heard):
        waveform = heard[0].samples / np.float32(FULL_SCALE)
    with computing(features.cpus):
        features_of_sound = hears(waveform[None]).cpu().numpy()[0]
    shape = " x ".join(map(str, features_of_sound.shape))
    facts: dict[str, Any] = {
        "shape": list(features_of_sound.shape),
        "load_sec": round(loaded - started, 2),
        "hear_sec": round(time.monotonic() - loaded, 2),
    }
    if not _fits_half(features_of_sound):
        found = "gives NaN, infinity or more than float16 holds: its weights are damaged, or need dtype: float32"
        return Finding(about=about, outcome=Outcome.FAULT, found=found, facts=facts)
    facts |= {"mean": round(float(features_of_sound.mean()), 4), "deviation": round(float(features_of_sound.std()), 4)}
    seconds = len(waveform) / AST_SAMPLE_RATE_HZ
    found = f"features of {shape} for {seconds:g} s of sound, all finite"
    return Finding(about=about, outcome=Outcome.OK, found=found, facts=facts)


def _fits_half(values: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values.astype(np.float16)).all())
