"""Which stages a run has, in order: what each depends on, and with what resources it runs.

A stage's `settings` are everything of the configuration that its bytes depend on; their digest names its commits.
Raise `version` when a change to a stage's code changes its bytes.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonify.config import CaptionsExtractor, Config
from sonify.engine.commits import Commit, digest_of
from sonify.engine.job import Job
from sonify.stages import concepts, embeddings, pair, pool, render


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """One stage of one run.

    `listing` names the frozen listing that its units follow. `upstream` are stages whose commit of the same unit it
    reads, `upstream_whole` those of which it reads every unit. `part` tells a stage's extractors apart. `check` raises
    `InputError` where the stage must not start; `rows_expected` says how many rows the upstream commits of a unit hold.
    """

    name: str
    version: int
    listing: str
    settings: Mapping[str, Any]
    load: Callable[[], Job]
    part: str = ""
    upstream: tuple[str, ...] = ()
    upstream_whole: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None
    rows_expected: Callable[[Sequence[Commit]], int | None] = lambda _upstream: None
    num_cpus: float = 1
    num_gpus: float = 0

    @property
    def key(self) -> str:
        """The stage's name in messages and in `run.json`."""
        return f"{self.name}/{self.part}" if self.part else self.name

    @property
    def digest(self) -> str:
        """What the stage's commits stand under."""
        identity = {"stage": self.key, "version": self.version, "settings": dict(self.settings)}
        return digest_of(identity)[:16]


# The commands that run a part of the job, and the stages each stands for.
COMMAND_STAGES = {
    "pool": ("pool", "embeddings"),
    "concepts": ("concepts",),
    "pair": ("pair",),
    "render": ("render",),
}


def stages_of(config: Config) -> tuple[Stage, ...]:
    """All stages of a run, each after what it depends on."""
    extractors = tuple(_concepts(config, extractor) for extractor in config.concepts.extractors)
    return (
        Stage(
            name="pool",
            version=1,
            listing="pool",
            settings=_pick(config, "seed", "audio") | {"audio.exclude": _content(config.audio.exclude)},
            load=lambda: pool.load(config),
        ),
        Stage(
            name="embeddings",
            version=1,
            listing="pool",
            settings=_pick(config, "retrieval.encoder"),
            load=lambda: embeddings.load(config),
            upstream=("pool",),
            rows_expected=lambda upstream: upstream[0].clips.rows_out if upstream[0].clips else None,
        ),
        *extractors,
        Stage(
            name="pair",
            version=1,
            listing="concepts",
            settings=_pick(config, "seed", "retrieval", "mix.lufs", "mix.max_gain_db", "render.scenes")
            | _pick(config, "images.validation", "concepts.discard_words", "concepts.discard_match")
            | {"images.exclude": _content(config.images.exclude)}
            | {"concepts.extractors": [extractor.name for extractor in config.concepts.extractors]}
            | {"threads": pair.THREADS},
            load=lambda: pair.load(config),
            check=lambda: pair.check_splits(config),
            upstream=tuple(extractor.key for extractor in extractors),
            upstream_whole=("embeddings",),
            # several extractors overlap in images: only one alone says how many there are
            rows_expected=lambda upstream: (
                upstream[0].rows.rows_out * len(config.scenes) if len(upstream) == 1 else None
            ),
        ),
        Stage(
            name="render",
            version=1,
            listing="concepts",
            settings=_pick(config, "render.image", "render.audio", "mix.peak_dbfs"),
            load=lambda: render.load(config),
            upstream=("pair",),
            upstream_whole=("pool",),
            rows_expected=lambda upstream: upstream[0].rows.rows_out,
        ),
    )


def _concepts(config: Config, extractor: CaptionsExtractor) -> Stage:
    sampling = _pick(config, "seed") if config.images.sample is not None else {}
    images = _pick(config, "images")
    for late in (
        "images.validation",
        "images.exclude",
    ):  # applied by `pair`, so that a VLM is never paid twice
        images.pop(late)
    return Stage(
        name="concepts",
        part=extractor.name,
        version=1,
        listing="concepts",
        settings=sampling
        | images
        | _pick(config, "concepts.max_concepts")
        | {f"concepts.extractors.{key}": value for key, value in extractor.model_dump(mode="json").items()}
        | {"concepts.extractors.file": _content(extractor.file)},
        load=lambda: concepts.load(config, extractor),
        check=lambda: pair.check_splits(config),
    )


def _pick(config: Config, *keys: str) -> dict[str, Any]:
    """Parts of the configuration as flat dotted keys, one level below each section."""
    picked: dict[str, Any] = {}
    for key in keys:
        value: Any = config.model_dump(mode="json")
        for part in key.split("."):
            value = value[part]
        if isinstance(value, dict):
            picked |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            picked[key] = value
    return picked


def _content(path: Path | None) -> str:
    """The identity of a list's file: its content, not its name."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""
