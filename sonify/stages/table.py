"""Which stages a run has, in order: what each depends on, and with what resources it runs.

A stage's `settings` are everything of the configuration that its bytes depend on; their digest names its commits.
Raise `version` when a change to a stage's code changes the bytes of what was read whole. What was refused or cut short
before may be read further by a later version, in units that are new, without that: a unit that is done stays as it is.
A key that is added to the configuration gets a line in `ADDED_KEYS` with the value under which all is as before, or
every run that was made without it would be of other settings.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from sonify import layout
from sonify.config import (
    KEYS_OF_BEFORE,
    CaptionsExtractor,
    ClapEncoder,
    ClapModel,
    Config,
    Confirm,
    Encoder,
    EndpointVlm,
    Extractor,
    Features,
    Published,
    Retrieval,
    ServerVlm,
    Tagger,
    TextEncoder,
    TransformersVlm,
    VlmExtractor,
)
from sonify.engine.job import Stage
from sonify.engine.record import GONE, PLACES, RunRecord, as_recorded, pruned, read_record
from sonify.io.commits import commit_files
from sonify.io.write import sha256_of
from sonify.models.fetch import named
from sonify.retrieval import encoders
from sonify.retrieval.candidates import RULES_VERSION
from sonify.retrieval.kinds import KINDS_VERSION
from sonify.retrieval.limits import identify_limit
from sonify.sources.captions import identify_captions
from sonify.stages import checks, concepts, copies, duplicates, embeddings, features, listen, make_pool, pair, render
from sonify.stages.published import adopt_job, check_adoption, published_job
from sonify.stores import Place
from sonify.vlm.answers import PARSER_VERSION
from sonify.vlm.backends import fetch_vlm, model_name
from sonify.vlm.json_answers import JSON_PARSER_VERSION
from sonify.vlm.questions import CHECK_VERSION, JSON_PROMPT_VERSION, PROMPT_VERSION

Pick = Callable[..., dict[str, Any]]  # parts of the configuration by their keys

# Fields of an extractor that its answers do not depend on.
OPERATIONAL = {"url", "api_key_env", "concurrency", "timeout_sec", "max_wait_sec", "start_timeout_sec", "gpus"}
OPERATIONAL |= {"environment", "token_limit"}
# And those that are of the question about concepts alone: the check is always asked and answered in plain lines.
FORM = ("answers", "language")

# Fields of a tagger that act on what is drawn, and not on what is heard.
ACTING = ("of_best", "floor")

# Of a GPU, what a worker of `pair` takes at most where it encodes texts and searches on CPUs: a text tower of half a GB
# that rests while the CPU searches. On one CPU thread a text takes 39 to 105 ms, its search 2 (docs/measurements.md).
TEXTS_GPUS = 0.25

# Keys that came after runs were made, as the settings name them, each with the value under which a stage does what it
# did before the key was there: while it has that value it stays out of the settings, and the digest of such a run is
# met. Sections inside of settings are followed, and each item of a list: `retrieval.encoder.audio.KEY`,
# `audio.sources.KEY`.
ADDED_KEYS: Mapping[str, Any] = {
    "images.heif": False,
    "concepts.extractors.temperature": 0.0,
    "concepts.extractors.system": None,
    "concepts.extractors.extra_body": {},
    "concepts.extractors.template": {},
    **KEYS_OF_BEFORE,
    "audio.speech": "keep",
    "retrieval.confirm": None,
    "retrieval.purity": None,
    "mix.snr_db": None,
    "mix.events": None,
    "audio.duplicates": "keep",
    "concepts.extractors.answers": "text",
    "concepts.extractors.language": None,
    "concepts.presence": ["visible"],
    "concepts.discard_caption": None,
    "features.layers": [],
    "features.beats": None,
    "features.beats_revision": None,
}

# The commands that run a part of the job, and the stages each stands for.
COMMAND_STAGES = {
    "pool": ("pool", "embeddings", "duplicates", "listen"),
    "concepts": ("concepts", "checks"),
    "pair": ("pair",),
    "render": ("render",),
    "features": ("features",),
}
# What `sonify render --from` does: a published dataset brings no pool along.
RENDERING = ("pool", "concepts", "copies", "embeddings", "duplicates", "listen", "pair", "render")


def stages_of(config: Config, anew: Collection[str] = ()) -> tuple[Stage, ...]:
    """All stages of a run, each after what it depends on.

    What the run has of them is met wherever it, its input and its models lay when it was made (`as_recorded`), but for
    those that are made `anew`.
    """
    pick = _picker(config)
    record = read_record(config.run_dir)

    def known(stage: Stage) -> Stage:
        return _comparable(stage) if stage.key in anew else _known(config, record, stage)

    drawn = _adopted(config, pick, config.published) if config.published else _drawn(config, pick)
    rendered = known(_render(config, pick))
    featured = [_features(config, pick, config.features, rendered.digest)] if config.features else []
    stages = (*map(known, (_pool(config, pick), *drawn)), rendered, *map(known, featured))
    as_before = _as_before(stages, record)
    return tuple(replace(stage, as_before=as_before) for stage in stages)


def _as_before(stages: Collection[Stage], record: RunRecord | None) -> tuple[str, ...]:
    """What to set where a run lacks keys of today: each such key at its old value. Those of a list's items are left."""
    has = [stage.settings for stage in record.stages.values()] if record else []
    keys = dict.fromkeys(key for stage in stages for key in _later(stage.settings))
    return tuple(
        f"{key}={_spelt(ADDED_KEYS[key])}" for key in keys if not any(key in _later(settings) for settings in has)
    )


def _spelt(value: Any) -> str:
    """A value as an override is written."""
    return value if isinstance(value, str) else json.dumps(value)


def _later(settings: Mapping[str, Any]) -> list[str]:
    """The keys in settings that came later and are not at their old value, but those of a list's items."""
    found: list[str] = []

    def note(key: str, value: Any) -> bool:
        if key in ADDED_KEYS and not key.startswith("concepts.extractors.") and value != ADDED_KEYS[key]:
            found.append(key)
        return False

    pruned(settings, note)
    return found


def _comparable(stage: Stage, places: Collection[str] = PLACES) -> Stage:
    """The stage with the settings that tell it from another one: not where input lies, nor keys at their old value."""

    def drops(key: str, value: Any) -> bool:
        return key in places or (key in ADDED_KEYS and value == ADDED_KEYS[key])

    return replace(stage, settings=pruned(stage.settings, drops))


def _known(config: Config, record: RunRecord | None, stage: Stage) -> Stage:
    """The stage under the settings that the run has of it, where it is the same."""
    if record is not None and stage.key in record.stages:
        return as_recorded(_comparable(stage), record)
    # run.json is gone, or was withdrawn: what was made before places were left out is still of these settings
    before = _comparable(stage, places=())
    now = _comparable(stage)
    has_places = before.settings != now.settings
    return before if has_places and commit_files(config.run_dir, stage.name, before.digest) else now


def _drawn(config: Config, pick: Pick) -> tuple[Stage, ...]:
    """The stages between pool and shards: concepts are named, checked, and recordings drawn for them."""
    extractors = tuple(_concepts(config, pick, extractor) for extractor in config.concepts.extractors)
    checkers = tuple(
        _check(config, pick, extractor) for extractor in config.concepts.extractors if config.concepts.check
    )
    beside = (*_duplicates(config), *_listen(config))
    pair_stage = Stage(
        name="pair",
        version=RULES_VERSION,
        listing="concepts",
        settings=pick("seed", "mix.lufs", "mix.max_gain_db", "mix.prominence", "mix.snr_db", "mix.events")
        | _drawing_settings(config, pick)
        | pick("render.scenes", "images.validation", "concepts.discard_words", "concepts.discard_match")
        | pick("concepts.discard_caption")
        | pick("concepts.check", "concepts.presence", "audio.duplicates")
        | (pick("concepts.media") if config.concepts.check else {})
        | {"images.exclude": _content(config.images.exclude)}
        | {"concepts.extractors": [extractor.name for extractor in config.concepts.extractors]}
        | {"threads": pair.THREADS},
        load=lambda: pair.pair_job(config),
        **pairing_resources(config.retrieval),
        check=lambda: pair.check_pool(config),
        acted=lambda: pair.acted_rules(config),
        upstream=tuple(stage.key for stage in checkers or extractors),
        upstream_whole=("embeddings", *(stage.key for stage in beside)),
        # several extractors overlap in images: only one alone says how many there are
        rows_expected=lambda upstream: upstream[0].rows_out * len(config.scenes) if len(upstream) == 1 else None,
    )
    return (_embeddings(config, pick), *beside, *extractors, *checkers, pair_stage)


def _adopted(config: Config, pick: Pick, published: Published) -> tuple[Stage, ...]:
    """The stages in their place that render a published dataset: its scenes, its clips where they are here."""
    repairs = published.missing == "repair"
    of_folder = {"published.digest": published.digest, "published.scenes": list(published.scenes)}
    found = Stage(
        name="concepts",
        part=layout.PUBLISHED,
        version=1,
        listing="concepts",
        settings=of_folder | pick("images.kind", "images.path", "images.heif"),
        load=lambda: published_job(config),
    )
    compared = Stage(
        name="copies",
        version=1,
        listing="copies",
        settings=of_folder,
        load=lambda: copies.copies_job(config),
        upstream_whole=("pool",),
    )
    drawn = pick("seed", "audio.duplicates") | _drawing_settings(config, pick) | {"threads": pair.THREADS}
    beside = (_embeddings(config, pick), *_duplicates(config), *_listen(config)) if repairs else ()
    pair_stage = Stage(
        name="pair",
        version=RULES_VERSION,
        listing="concepts",
        settings=of_folder
        | pick("published.missing", "mix.max_gain_db")
        | {"images.exclude": _content(config.images.exclude)}
        | (drawn if repairs else {}),
        load=lambda: adopt_job(config),
        **(pairing_resources(config.retrieval) if repairs else {}),
        check=lambda: check_adoption(config),
        acted=(lambda: pair.acted_rules(config)) if repairs else None,
        upstream=(found.key,),
        upstream_whole=(compared.key, *(stage.key for stage in beside)),
        rows_expected=lambda upstream: upstream[0].rows_out,
    )
    return (found, compared, *beside, pair_stage)


def _pool(config: Config, pick: Pick) -> Stage:
    audio = pick("seed", "audio")
    for late in ("audio.speech", "audio.duplicates"):
        audio.pop(late)  # of what is drawn from a pool: it is not made again for them
    return Stage(
        name="pool",
        version=2,
        listing="pool",
        settings=audio | {"audio.exclude": _content(config.audio.exclude)},
        load=lambda: make_pool.pool_job(config.run_dir, config.audio, config.seed),
    )


def _duplicates(config: Config) -> tuple[Stage, ...]:
    """The stage by which copies are found, where they count as one."""
    if config.audio.duplicates == "keep":
        return ()
    stage = Stage(
        name="duplicates",
        version=1,
        listing="pool",
        settings={},
        load=lambda: duplicates.duplicates_job(config.run_dir, config.audio.sample_rate),
        upstream=("pool",),
        rows_expected=lambda upstream: upstream[0].clips_out,
    )
    return (stage,)


def _embeddings(config: Config, pick: Pick) -> Stage:
    return Stage(
        name="embeddings",
        version=1,
        listing="pool",
        # a hybrid's spaces are embedded apart; a text encoder hears nothing
        settings=_encoder_settings(config, "weight")
        | ({} if isinstance(config.retrieval.encoder, TextEncoder) else pick("retrieval.hears")),
        load=lambda: embeddings.embeddings_job(config.run_dir, config.audio, config.retrieval),
        **encoder_resources(config.retrieval.encoder),
        upstream=("pool",),
        rows_expected=lambda upstream: upstream[0].clips_out,
    )


def _listen(config: Config) -> tuple[Stage, ...]:
    """The stage that hears the pool's clips, where anything needs what is heard in them."""
    confirm = config.retrieval.confirm
    if confirm is None:
        return ()
    return (
        Stage(
            name="listen",
            version=1,
            listing="pool",
            settings={"retrieval.confirm": _listener_settings(confirm, *ACTING)}
            | _speech_settings(config)
            # a tagger's labels are classes; of what a model says in words, kinds tell the class
            | ({} if isinstance(confirm, Tagger) else {"kinds": KINDS_VERSION}),
            load=lambda: listen.listen_job(config),
            upstream=("pool",),
            rows_expected=lambda upstream: upstream[0].clips_out,
            models=(listen.model_of(confirm),),
            fetch=lambda: listen.fetch_listener(confirm),
            **listener_resources(confirm),
        ),
    )


def _render(config: Config, pick: Pick) -> Stage:
    return Stage(
        name="render",
        version=2,
        listing="concepts",
        settings=pick("render.image", "render.audio", "mix.peak_dbfs"),
        load=lambda: render.render_job(config),
        upstream=("pair",),
        upstream_whole=("pool",),
        rows_expected=lambda upstream: upstream[0].rows_out,
    )


def _features(config: Config, pick: Pick, settings: Features, render_digest: str) -> Stage:
    picked = pick("features")
    picked.pop("features.gpus")
    if settings.beats is not None:  # the AST is not asked
        del picked["features.ast"], picked["features.ast_revision"]
    return Stage(
        name="features",
        version=1,
        listing="concepts",
        settings=picked,
        load=lambda: features.features_job(config.run_dir, settings, config.scenes, render_digest),
        upstream=("render",),
        rows_expected=lambda upstream: upstream[0].rows_out,
        models=(named(settings.vae, settings.vae_revision), named(*settings.ear[1:])),
        fetch=lambda: features.fetch_features(settings),
        **network_resources(settings),
    )


def _concepts(config: Config, pick: Pick, extractor: Extractor) -> Stage:
    sampling = pick("seed") if config.images.sample is not None else {}
    images = pick("images")
    for late in ("images.validation", "images.exclude"):
        images.pop(late)  # applied by `pair`, so that a VLM is never paid twice
    common: dict[str, Any] = {
        "name": "concepts",
        "part": extractor.name,
        "listing": "concepts",
        "check": lambda: pair.check_splits(config.run_dir, config.images, config.seed),
    }
    settings = sampling | images | pick("concepts.max_concepts")
    if isinstance(extractor, CaptionsExtractor):
        captions = _content(extractor.file, identify_captions)
        return Stage(
            **common,
            version=2,
            settings=settings | _extractor_settings(extractor) | {"concepts.extractors.file": captions},
            load=lambda: concepts.captions_job(config, extractor),
        )
    return Stage(
        **common,
        **model_resources(extractor),
        units_answered=concepts.asked_for_concepts(extractor, config.concepts.max_concepts).units_answered,
        version=1,
        settings=settings | _extractor_settings(extractor) | _form_settings(extractor),
        load=lambda: concepts.vlm_job(config, extractor),
    )


def _check(config: Config, pick: Pick, extractor: Extractor) -> Stage:
    checker = checks.checker_of(config.concepts, extractor)
    return Stage(
        name="checks",
        part=extractor.name,
        version=1,
        listing="concepts",
        settings=pick("seed") | _extractor_settings(checker, *FORM) | {"check": CHECK_VERSION},
        load=lambda: checks.check_job(config, extractor),
        upstream=(f"concepts/{extractor.name}",),
        rows_expected=lambda upstream: upstream[0].rows_out,
        units_answered=checks.asked_in_check(extractor.name, checker, config.seed).units_answered,
        **model_resources(checker),
    )


def _extractor_settings(extractor: Extractor, *without: str) -> dict[str, Any]:
    """What an extractor's answers depend on: not where its server is, nor how hard it is driven."""
    local = {"cpus"} if isinstance(extractor, ServerVlm) else set()
    fields = extractor.model_dump(mode="json", exclude=OPERATIONAL | local | set(without))
    return {f"concepts.extractors.{key}": value for key, value in fields.items()}


def _form_settings(extractor: VlmExtractor) -> dict[str, Any]:
    """The question's words and who reads the answers, in the form that was asked for."""
    if extractor.answers == "text":
        return {"prompt": PROMPT_VERSION, "parser": PARSER_VERSION}
    return {"json_prompt": JSON_PROMPT_VERSION, "json_parser": JSON_PARSER_VERSION}


def _encoder_settings(config: Config, *without: str) -> dict[str, Any]:
    fields = config.retrieval.encoder.model_dump(mode="json", exclude={"gpus": True, "audio": {"gpus"}})
    fields = {key: value for key, value in fields.items() if key not in without}
    version = {"kinds": KINDS_VERSION} if fields.get("matching") == "kinds" else {}
    return {"retrieval.encoder": fields | version}


def _limit_settings(config: Config) -> dict[str, Any]:
    """A limit by what acts: what ships for the encoder, or the content of a file."""
    limit = config.retrieval.limit
    if limit is None:
        return {"retrieval.limit": None}
    if limit.calibration is not None and _content(limit.calibration) == GONE:
        calibration = GONE
    elif isinstance(encoder := config.retrieval.encoder, TextEncoder):
        calibration = identify_limit(limit, encoders.load_encoder(encoder).identity)
    elif limit.calibration is not None:
        calibration = _content(limit.calibration)  # a CLAP's identity takes its weights, too much for a look at a run
    else:
        calibration = ""  # of another encoder none ships: who draws says so
    return {"retrieval.limit": {"risk": limit.risk, "calibration": calibration}}


def _drawing_settings(config: Config, pick: Pick) -> dict[str, Any]:
    """What a draw depends on: every rule, and the encoder, its limit and who confirms, by what acts.

    Where the pool is searched is none of it: the draws are the same.
    """
    rules = pick("retrieval")
    rules.pop("retrieval.search")
    confirm = config.retrieval.confirm
    heard = {"retrieval.confirm": _listener_settings(confirm)} if confirm is not None else {}
    encoder = _encoder_settings(config)
    acts = pair.compares_names(config.retrieval) and "kinds" not in encoder["retrieval.encoder"]
    kinds = {"kinds": KINDS_VERSION} if acts else {}
    return rules | encoder | _limit_settings(config) | heard | kinds | _speech_settings(config)


def _listener_settings(confirm: Confirm, *without: str) -> dict[str, Any]:
    fields = confirm.model_dump(mode="json", exclude=OPERATIONAL)
    labels = {"labels": _content(confirm.labels)} if isinstance(confirm, Tagger) else {}
    return {key: value for key, value in (fields | labels).items() if key not in without}


def _speech_settings(config: Config) -> dict[str, Any]:
    """Speech that is only flagged changes nothing that is drawn."""
    return {"audio.speech": "drop"} if config.audio.speech == "drop" else {}


def listener_resources(confirm: Confirm) -> dict[str, Any]:
    """What a worker takes that hears clips; a server takes nothing of ours."""
    if not isinstance(confirm, Tagger):
        return {}
    return {"num_cpus": confirm.cpus} if confirm.is_tflite else network_resources(confirm)


def encoder_resources(encoder: Encoder) -> dict[str, Any]:
    """What a worker takes that embeds clips, and the models that it loads; nothing where words are compared."""
    clap = encoders.clap_of(encoder)
    if clap is None:
        return {}
    models = (clap.model,) if isinstance(clap, ClapEncoder) else (str(clap.checkpoint), clap.roberta)
    return {"models": models, "fetch": lambda: encoders.fetch_encoder(encoder), **network_resources(clap)}


def pairing_resources(retrieval: Retrieval) -> dict[str, Any]:
    """What encodes the texts and searches for them: a GPU where it searches, a part of one where it only encodes."""
    encoding = encoder_resources(retrieval.encoder)
    if retrieval.search.device == "cpu":
        return encoding | {"num_gpus": min(encoding.get("num_gpus", 0.0), TEXTS_GPUS)}
    clap = encoders.clap_of(retrieval.encoder)
    return encoding | {"num_gpus": clap.gpus if clap else 1.0, "gpu_optional": False}


def model_resources(vlm: VlmExtractor) -> dict[str, Any]:
    """What a worker takes that asks about images, and the model that it loads or whose engine it starts."""
    fetched: dict[str, Any] = {"models": (model_name(vlm),), "fetch": lambda: fetch_vlm(vlm)}
    if isinstance(vlm, TransformersVlm):
        return fetched | network_resources(vlm)
    return fetched if isinstance(vlm, EndpointVlm) else fetched | {"num_cpus": vlm.cpus, "num_gpus": vlm.gpus}


def network_resources(settings: ClapModel | Features | Tagger | TransformersVlm) -> dict[str, Any]:
    """What a worker with a network in it asks for; CPUs are also the threads that the network uses."""
    return {
        "num_cpus": settings.cpus,
        "num_gpus": 0.0 if settings.device == "cpu" else settings.gpus,
        "gpu_optional": settings.device == "auto",
    }


def _picker(config: Config) -> Pick:
    """Give parts of the configuration as flat dotted keys, one level below each section."""
    plain = config.model_dump(mode="json")

    def pick(*keys: str) -> dict[str, Any]:
        picked: dict[str, Any] = {}
        for key in keys:
            value: Any = plain
            for part in key.split("."):
                value = value[part]
            picked |= (
                {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
            )
        return picked

    return pick


def _content(path: Place | None, identify: Callable[[Place], str] = sha256_of) -> str:
    """The identity of a file: its content, not its name."""
    if path is None:
        return ""
    try:
        return identify(path)
    except FileNotFoundError:
        return GONE  # a run that is only looked at needs no input
