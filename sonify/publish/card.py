"""README.md of a published folder, the dataset's card: what it is, how it was made, and what may be done with it."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard

from sonify.errors import InputError
from sonify.publish import card_text
from sonify.publish.card_data import make_card_data
from sonify.publish.markdown import code_block, counts, escape, table
from sonify.publish.plots import plot
from sonify.publish.rows import AUDIO, PublishedRecord

CARD = "README.md"
MOST_CONCEPTS = 20
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_NAMES = {"sa1b": "Sonified SA-1B"}
# What of the configuration says how a sound came into a scene, as the README of sonify names it.
_SHOWN = ("seed", "images", "audio", "concepts", "retrieval", "mix", "render")


def check_licence(licence: str) -> None:
    """Refuse what the hub takes for no licence.

    Raises:
        InputError: it does not look like one of the hub's names.
    """
    if not _LICENCE.fullmatch(licence):
        raise InputError(
            f"licence: expected the hub's name of the metadata's licence, such as cc-by-4.0 or other, found {licence!r}"
        )


def write_card(out: Path, record: PublishedRecord, licence: str) -> None:
    """Write the card of a folder in which all tables and plots lie; `licence` is that of the metadata.

    Raises:
        InputError: the licence is not a name that the hub knows how to write.
    """
    check_licence(licence)
    name = name_of(record)
    sections = (
        _head(out, name, record),
        _making(record),
        _figures(record),
        _licences(record, licence),
        _limits(record),
        _rendering(record),
        card_text.TAKEDOWNS,
    )
    head = make_card_data(out, record, licence, name).to_yaml()
    card = DatasetCard(f"---\n{head}\n---\n\n" + "\n".join(sections))
    (out / CARD).write_text(str(card), encoding="utf-8", newline="\n")


def name_of(record: PublishedRecord) -> str:
    """The name of the dataset, by the images that it is about."""
    return _NAMES.get(record.config["images"]["kind"], "Sonified images")


def _head(out: Path, name: str, record: PublishedRecord) -> str:
    statistics = record.statistics
    audio = card_text.WITH_AUDIO if (out / AUDIO).is_dir() else card_text.WITHOUT_AUDIO
    images, scenes = sum(statistics.images.values()), sum(statistics.scenes.values())
    splits = [(split, statistics.images[split], statistics.scenes[split]) for split in statistics.images]
    again = card_text.REPUBLISHED.format(digest=record.rendered_from) if record.rendered_from else ""
    return f"""# {name}

What could be heard in {images:,} images: {scenes:,} soundscapes, each a list of recordings with the loudness at which
they are mixed. {audio}

{table(("split", "images", "scenes"), splits)}

Scenes of each image: {", ".join(escape(scene) for scene in record.scenes)}.
{_paragraph(again)}{_paragraph(_copies(statistics.copies))}{card_text.LOADING}"""


def _paragraph(text: str) -> str:
    return f"\n{text}" if text else ""


def _copies(copies: Mapping[str, int]) -> str:
    exact, equivalent, repaired = (copies.get(copy, 0) for copy in ("exact", "equivalent", "repaired"))
    sounds = sum(copies.values())
    if exact == sounds:
        return ""
    return card_text.COPIES.format(sounds=sounds, exact=exact, equivalent=equivalent, repaired=repaired)


def _making(record: PublishedRecord) -> str:
    settings = {key: record.config[key] for key in _SHOWN if key in record.config}
    models = table(("model", "revision, or digest of its files"), record.models.items())
    return f"""## How it was made

{card_text.STAGES}
{f"Models:{chr(10)}{chr(10)}{models}" if record.models else "No model was loaded from files."}

{_extractors(record.config["concepts"]["extractors"])}

{_prompts(record.prompts)}

<details><summary>All settings</summary>

{code_block(json.dumps(settings, indent=1, ensure_ascii=False))}

</details>

<details><summary>Versions</summary>

{table(("library", "version"), record.versions.items())}

</details>
"""


def _extractors(extractors: Iterable[Mapping[str, Any]]) -> str:
    named = [(one["name"], one["kind"], one.get("model") or "none", one.get("revision") or "") for one in extractors]
    return f"Who said what could be heard:\n\n{table(('name', 'kind', 'model', 'revision'), named)}"


def _prompts(prompts: Mapping[str, str]) -> str:
    asked = [f"{escape(name)} was asked:\n\n{code_block(prompt)}" for name, prompt in prompts.items()]
    return "\n\n".join(asked) or "No model was asked in words."


def _figures(record: PublishedRecord) -> str:
    statistics = record.statistics
    pictures = {
        "concepts": "how often each of the most frequent concepts is heard",
        "sources": "scenes by the number of sounds in them",
        "loudness": "sounds by target loudness",
        "clip_use": "clips by how often they are heard",
    }
    corpora = [(name, statistics.recordings.get(name, 0), clips) for name, clips in statistics.clips.items()]
    return f"""## Figures

{table(("corpus", "recordings heard", "clips heard"), corpora)}

The most frequent of {statistics.distinct_concepts:,} concepts:

{table(("concept", "times heard"), list(statistics.concepts.items())[:MOST_CONCEPTS])}

{chr(10).join(f"![{text}]({plot(name)})" for name, text in pictures.items())}
{_left_out(statistics.left_out)}"""


def _left_out(left_out: Mapping[str, int]) -> str:
    named = ", ".join(f"{escape(reason)}: {scenes:,}" for reason, scenes in left_out.items() if scenes)
    return f"\nScenes of the run that are not published, by reason: {named}.\n" if named else ""


def _licences(record: PublishedRecord, licence: str) -> str:
    statistics = record.statistics
    scenes = sum(statistics.scenes.values())
    against = (
        f"\nConditions that exclude each other, so that a mix must not be passed on:\n\n"
        f"{counts(('contradiction', 'scenes'), statistics.contradictions)}\n"
        if statistics.contradictions
        else ""
    )
    return f"""## Conditions and licences

The licence of the metadata is `{licence}`. {card_text.CONDITIONS}
Of {scenes:,} scenes, {statistics.redistributable:,} could be passed on as sound under the conditions listed here.

{counts(("conditions of a scene", "scenes"), statistics.conditions)}
{against}
Of the clips that are heard, as their corpora state it:

{counts(("licence", "clips"), statistics.licences)}
"""


def _limits(record: PublishedRecord) -> str:
    config = record.config
    lines = [card_text.LIMITS]
    if any(one["kind"] == "vlm" for one in config["concepts"]["extractors"]):
        lines.append(card_text.LIMIT_VLM)
    if config["images"]["kind"] == "sa1b":
        lines.append(card_text.LIMIT_FACES)
    min_cosine = config["retrieval"]["min_cosine"]
    lines.append(card_text.LIMIT_COSINE.format(min_cosine=min_cosine) if min_cosine > 0 else card_text.LIMIT_NEAREST)
    return "## Limits\n\n" + "\n".join((*lines, card_text.LIMIT_UNMEASURED)) + "\n"


def _rendering(record: PublishedRecord) -> str:
    images = record.config["images"]["kind"]
    sources = [f"    - {{kind: {one['kind']}, name: {one['name']}, path: ...}}" for one in _sources(record)]
    config = "\n".join(
        ["run_dir: runs/mine", f"images: {{kind: {images}, path: ...}}", "audio:", "  sources:", *sources]
    )
    return card_text.RENDERING.replace("{config}", code_block(config))


def _sources(record: PublishedRecord) -> Iterable[Mapping[str, Any]]:
    """The corpora that are heard."""
    return [one for one in record.config["audio"]["sources"] if one["name"] in record.statistics.clips]
