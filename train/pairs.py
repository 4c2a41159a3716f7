"""Pairs of one's own as training data: images that have a sound each, in a folder or named in a table.

    python -m train.pairs FOLDER --out runs/pairs [key=value ...]
    python -m train.pairs pairs.csv --out runs/pairs size=256 validation=0.05

FOLDER holds `name.jpg` beside `name.wav`, in any format that `sonify` reads; the table names `image` and `sound`
relative to its own folder, and may have `label`, `caption`, `recording`, `split` and `start_sec`. RUN gets what `sonify
features` writes: any trainer takes it in `data.runs`, beside runs of `sonify`. The same command resumes.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("train.pairs", extra="train"))

import logging
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, product, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sonify import layout
from sonify.config import Config, Features, FolderImages, make_config, make_settings
from sonify.config.loader import apply_override
from sonify.config.models import AST_SAMPLE_RATE_HZ
from sonify.config.problems import explain_option, explain_word
from sonify.engine.job import Job, RejectTable, Stage
from sonify.engine.plan import plan_stage
from sonify.engine.progress import StageProgress, open_display
from sonify.engine.record import RunRecord, read_record, start_record, with_stage, with_unit, write_record
from sonify.engine.worker import LocalExecutor
from sonify.errors import DiskFull, InputError, WorkError, require
from sonify.features.samples import FeatureSample, FeatureSink, make_sample
from sonify.installed import spell
from sonify.io.commits import Count, commit_files, read_commit, total
from sonify.io.tables import count_rows
from sonify.io.write import Transaction, check_replaceable, naming_full_disk
from sonify.keys import uniform
from sonify.media.audio import UnreadableSound
from sonify.media.clips import CutRules, cut_recording
from sonify.media.mixing import gain_to_target_db, measure_loudness, mix_clips
from sonify.media.pixels import UnreadableImage, decode_square, inspect_image
from sonify.pool import ClipText
from sonify.rows import ImageRef, Reason, Rejected
from sonify.running import open_run
from sonify.sources.images import read_images
from sonify.stages.features import fetch_features
from sonify.stages.table import stages_of
from sonify.terminal import Parser, run_command, stop_if_asked
from train.pair_list import NAME, PAIRED, PairRef, PairSettings, freeze_pairs, is_of_pairs, list_pairs, read_pairs

if TYPE_CHECKING:
    from sonify.features.batches import FeatureNetworks

log = logging.getLogger(__name__)

# Where a run says what the settings were that are not of `features`.
RECORDED = {
    "seed": "seed",
    "validation": "audio.validation",
    "clip_seconds": "audio.clip_seconds",
    "windows": "retrieval.draws",
    "lufs": "mix.lufs",
    "heif": "images.heif",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The (H, W, 3) uint8 square of an image; of its scenes the clips' names and (S,) int16 samples."""

    caption: str
    pixels: np.ndarray
    clips: tuple[str, ...]
    sounds: tuple[np.ndarray, ...]
    silent: tuple[Rejected, ...]  # windows in which nothing is heard


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSample:
    """A finished training sample, and the windows of its sound that left."""

    sample: FeatureSample
    num_windows: int
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a run of pairs holds: pairs in, out and rejected, and the samples of each split."""

    rows: Count
    samples: Mapping[str, int]


def make_pairs(source: Path, out: Path, settings: PairSettings) -> Made:
    """Make pairs into a run with features; what is done is skipped.

    Raises:
        InputError: there are no pairs, they are not named as expected, or `out` holds another run or something else.
        WorkError: no pair could be used, units were given up, the disk is full, or something is damaged.
    """
    config = run_config(source, out, settings)
    refs = list_pairs(source, settings)
    if not (out / layout.RUN).exists():  # what a run has before its record
        check_replaceable(out, "a run of pairs", {layout.LOCK, layout.TEMPORARY, layout.UNITS}, {})
    with open_run(out), naming_full_disk(out):
        record = read_record(out)
        stage = pairs_stage(config)
        _check_same(out, record, config, stage)
        models = {**(record.models if record else {}), **stage.fetch()}
        record = replace(with_stage(start_record(config, record), stage), models=models)
        freeze_pairs(out, refs, settings.shard_size)
        write_record(out, record)
        _do(out, record, stage)
        return _count(out, stage)


def run_config(source: Path, out: Path, settings: PairSettings) -> Config:
    """The configuration that run.json keeps: that of a run of which only the features were made."""
    if not source.exists():
        raise InputError(
            f"{source}: expected a folder of images and sounds, or a table (image,sound); nothing is there"
        )
    folder = source if source.is_dir() else source.parent
    plain = settings.model_dump(mode="json")
    raw = {
        "run_dir": str(out),
        "seed": settings.seed,
        "images": {"kind": "folder", "path": str(folder), "validation": settings.validation, "heif": settings.heif},
        "audio": {
            "sources": [{"kind": "folder", "path": str(folder), "name": NAME}],
            "clip_seconds": settings.clip_seconds,
            "sample_rate": AST_SAMPLE_RATE_HZ,
            "validation": settings.validation,
        },
        "concepts": {"extractors": [{"kind": "captions", "name": NAME}]},
        "retrieval": {"encoder": {"kind": "text"}, "draws": settings.windows},
        "mix": {"lufs": plain["lufs"]},
        "features": {name: plain[name] for name in Features.model_fields},
        "engine": {"kind": "local"},
    }
    return make_config(raw, "train.pairs", check_paths=source.is_dir())


def pairs_stage(config: Config) -> Stage:
    """The stage of `sonify features`, which reads pairs here in the place of shards. Accounting counts pairs."""
    features = config.features
    assert features is not None
    (stage,) = [stage for stage in stages_of(config) if stage.name == PAIRED]
    return replace(
        stage,
        listing=PAIRED,
        upstream=(),
        rows_expected=lambda _upstream: None,
        load=lambda: pairs_job(config, features),
        fetch=lambda: fetch_features(features),
    )


def pairs_job(config: Config, features: Features) -> Job:
    """Pairs to training samples."""
    from sonify.features.batches import FeatureNetworks  # noqa: PLC0415 - torch takes seconds to import

    stage = PairStage(FeatureNetworks(features), config, features)
    return Job(
        read=lambda unit: read_pairs(Path(str(config.run_dir)), unit),
        begin=stage.begin,
        process=stage,
        open_sink=PairSink,
        batch_rows=features.batch_size,
        close=stage.close,
    )


class PairStage:
    """Decodes a window of pairs ahead in threads, and encodes them to training samples."""

    def __init__(self, networks: "FeatureNetworks", config: Config, features: Features) -> None:
        self._networks = networks
        self._config = config
        self._size = features.size
        self._threads = ThreadPoolExecutor(features.cpus)

    def begin(self, rows: Sequence[PairRef]) -> Sequence[tuple[PairRef, "Future[Decoded | Rejected]"]]:
        """Start to decode a window."""
        return [(row, self._threads.submit(self._decode, row)) for row in rows]

    def __call__(
        self, begun: Sequence[tuple[PairRef, "Future[Decoded | Rejected]"]]
    ) -> Sequence[PairSample | Rejected]:
        results = [(row, future.result()) for row, future in begun]
        decoded = [(row, one) for row, one in results if isinstance(one, Decoded)]
        if not decoded:
            return [one for _, one in results if isinstance(one, Rejected)]
        latents = self._networks.look(np.stack([one.pixels for _, one in decoded]))
        heard = self._networks.listen(np.stack([sound for _, one in decoded for sound in one.sounds]))
        heard = heard.reshape(len(decoded), -1, *heard.shape[1:])
        made = iter(
            self._sample(row, one, {name: arrays[n] for name, arrays in latents.items()}, heard[n])
            for n, (row, one) in enumerate(decoded)
        )
        return [one if isinstance(one, Rejected) else next(made) for _, one in results]

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _decode(self, ref: PairRef) -> Decoded | Rejected:
        image_ref = ImageRef(uri=ref.image, caption=ref.caption.encode())
        (image,) = read_images(self._config.images, [image_ref], self._config.seed)
        if isinstance(image, Rejected):
            return replace(image, key=ref.key)
        try:
            inspect_image(image.data)
            pixels = decode_square(image.data, self._size)
            windows = self._windows(ref)
        except (UnreadableImage, UnreadableSound) as error:
            what = "sound" if isinstance(error, UnreadableSound) else "image"
            return Rejected(key=ref.key, reason=error.reason, detail=f"{what}: {error.detail}")
        audible = [(clip, samples, lufs) for clip, samples, lufs in windows if math.isfinite(lufs)]
        silent = [
            Rejected(key=clip, reason=Reason.SILENT, detail="no block above the absolute gate of -70 LUFS")
            for clip, _, lufs in windows
            if not math.isfinite(lufs)
        ]
        if not audible:
            return Rejected(key=ref.key, reason=Reason.SILENT, detail=f"sound: {silent[0].detail}")
        scenes = [(scene, *audible[n % len(audible)]) for n, scene in enumerate(self._config.scenes)]
        return Decoded(
            caption=" ".join((image.caption or b"").decode("utf-8", "replace").split()),
            pixels=pixels,
            clips=tuple(clip for _, clip, _, _ in scenes),
            sounds=tuple(self._levelled(ref, scene, samples, lufs) for scene, _, samples, lufs in scenes),
            silent=tuple(silent),
        )

    def _windows(self, ref: PairRef) -> list[tuple[str, np.ndarray, float]]:
        """Name, (S,) int16 samples and loudness of the windows from where the pair begins, at most one a scene."""
        assert isinstance(self._config.images, FolderImages)
        sound = Path(str(self._config.images.path)) / ref.sound
        cut = cut_windows(sound, ref.start_sec, len(self._config.scenes), self._config.audio.clip_seconds)
        return [
            (f"{ref.sound}#{start_sec:g}", samples, measure_loudness(samples, AST_SAMPLE_RATE_HZ))
            for start_sec, samples in cut
        ]

    def _levelled(self, ref: PairRef, scene: str, samples: np.ndarray, loudness_lufs: float) -> np.ndarray:
        """As a scene of one source sounds in a run of `sonify`."""
        mix = self._config.mix
        low, high = mix.lufs
        target_lufs = round(low + (high - low) * uniform("loudness", self._config.seed, ref.key, scene), 4)
        gain_db = gain_to_target_db(loudness_lufs, target_lufs, mix.max_gain_db)
        return mix_clips([samples], [gain_db], mix.peak_dbfs).samples

    def _sample(self, ref: PairRef, one: Decoded, latents: Mapping[str, np.ndarray], heard: np.ndarray) -> PairSample:
        source = {"concept": ref.label, "description": ref.label}
        scenes = [
            {"scene": scene, "caption": one.caption, "sources": [source | {"clip": clip}]}
            for scene, clip in zip(self._config.scenes, one.clips, strict=True)
        ]
        record = {"key": ref.key, "split": ref.split, "image_uri": ref.image, "scenes": scenes}
        texts = {clip: ClipText(label=ref.label, recording=ref.recording) for clip in one.clips}
        sample = make_sample(record, latents, heard, texts)
        return PairSample(sample=sample, num_windows=len(texts), rejected=one.silent)


def cut_windows(sound: Path, start_sec: float, most: int, clip_seconds: float) -> list[tuple[float, np.ndarray]]:
    """The first windows of a recording from a time on, each with where it starts; the last may be padded with silence.

    A tail under one second is no window, but a whole recording that short is one.

    Raises:
        UnreadableSound: not a file that is read, or it ends before `start_sec`.
    """
    rules = CutRules()
    size = round(clip_seconds * AST_SAMPLE_RATE_HZ)
    first, offset = divmod(round(start_sec * AST_SAMPLE_RATE_HZ), size)
    clips = cut_recording(sound, AST_SAMPLE_RATE_HZ, clip_seconds, replace(rules, min_tail_sec=0.0))
    parts = [
        clip.samples[: round(clip.duration_sec * AST_SAMPLE_RATE_HZ)] for clip in islice(clips, first, first + most + 1)
    ]
    signal = np.concatenate([np.zeros(0, np.int16), *parts])[offset:]
    if not signal.size:
        raise UnreadableSound(Reason.TOO_SHORT, f"it ends before start_sec, which is {start_sec:g}")
    least = round(rules.min_tail_sec * AST_SAMPLE_RATE_HZ)
    starts = [at for at in range(0, min(signal.size, most * size), size) if at == 0 or signal.size - at >= least]
    return [(start_sec + at / AST_SAMPLE_RATE_HZ, _padded(signal[at : at + size], size)) for at in starts]


def _padded(samples: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([samples, np.zeros(size - samples.size, np.int16)])


class PairSink:
    """Writes the training samples of a unit, and counts the windows of their sounds."""

    def __init__(self, unit: str, transaction: Transaction, rejects: RejectTable) -> None:
        self._samples = FeatureSink(transaction, unit)
        self._rejects = rejects
        self._heard = 0
        self._silent = 0

    def write(self, row: PairSample) -> None:
        """Add one sample."""
        self._samples.write(row.sample)
        for rejected in row.rejected:
            self._rejects.write(rejected)
        self._heard += row.num_windows
        self._silent += len(row.rejected)

    def close(self) -> Count:
        """Finish archives and indexes."""
        self._samples.close()
        rejected = {str(Reason.SILENT): self._silent} if self._silent else {}
        return Count(rows_in=self._heard + self._silent, rows_out=self._heard, rejected=rejected)


def _check_same(out: Path, record: RunRecord | None, config: Config, stage: Stage) -> None:
    """Refuse to mix pairs made under different settings, or pairs and a run of `sonify`."""
    if record is None:
        return
    if not is_of_pairs(record):
        raise InputError(f"{out}: is a run of `sonify`, and not of pairs: choose another --out")
    now = config.model_dump(mode="json")
    before = record.stages.get(PAIRED)
    settings = {name: (_value(record.config, key), _value(now, key)) for name, key in RECORDED.items()}
    if before is not None and before.digest != stage.digest:
        names = sorted({*before.settings, *stage.settings})
        settings |= {
            name.removeprefix(f"{PAIRED}."): (before.settings.get(name), stage.settings.get(name)) for name in names
        }
    for name, (then, is_now) in settings.items():
        if then != is_now:
            raise InputError(
                f"{out}: was made under another configuration: {name} was {then!r} then, is {is_now!r} now; choose"
                " another --out, or the settings of then"
            )


def _value(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _do(out: Path, record: RunRecord, stage: Stage) -> None:
    """Do the units that are to do; each is committed whole."""
    plan = plan_stage(out, stage, {})
    if plan.stale:
        raise InputError(f"{out}: {plan.stale}")
    executor = LocalExecutor(out, [stage])
    progress = StageProgress(NAME, len(plan.done), len(plan.done) + len(plan.tasks))
    given_up: list[str] = []
    try:
        with open_display() as display:
            display.start(progress)
            for outcome in executor(stage, plan.tasks):
                stop_if_asked()
                if outcome.disk_full:
                    raise DiskFull(outcome.error)
                if outcome.commit is None:
                    log.error("unit %s given up: %s", outcome.unit, outcome.error)
                    given_up.append(f"{outcome.unit}: {outcome.error.strip().splitlines()[-1]}")
                    continue
                record = with_unit(record, stage, executor.held_by(stage), outcome)
                write_record(out, record)
                progress.add(outcome.commit.rows)
                display.update(progress)
            display.finish(progress)
    finally:
        executor.close()
    if given_up:
        raise WorkError(
            f"{out}: {len(given_up)} units were given up and stay undone ({given_up[0]}); the same command tries them"
            " again"
        )


def _count(out: Path, stage: Stage) -> Made:
    commits = [read_commit(place).commit for place in commit_files(out, PAIRED, stage.digest)]
    rows = total([commit.rows for commit in commits])
    if not rows.rows_out:
        raise WorkError(f"{out}: no pair could be used ({_reasons(rows)}); `{spell('rejects', out)}` names each")
    samples: Counter[str] = Counter(dict.fromkeys(layout.SPLITS, 0))
    for split, commit in product(layout.SPLITS, commits):
        index = out / layout.feature_index(split, commit.unit)
        samples[split] += count_rows(index) if index.is_file() else 0
    return Made(rows=rows, samples=samples)


def _reasons(rows: Count) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in rows.rejected.items())


def read_settings(overrides: Sequence[str]) -> PairSettings:
    """The settings that `key=value` give."""
    raw: dict[str, Any] = {}
    for override, following in zip_longest(overrides, overrides[1:], fillvalue=""):
        if "=" not in override:
            raise InputError(explain_word(override, following, PairSettings))
        apply_override(raw, override)
    return make_settings(raw, PairSettings, "train.pairs")


def main(argv: Sequence[str] | None = None, prog: str = "train.pairs") -> int:
    """Run the command and return its exit code."""
    parser = Parser(
        prog=prog,
        description="Make images and sounds that belong together into training data; the same command resumes.",
        explain=explain_option(PairSettings),
    )
    parser.add_argument("source", type=Path, metavar="FOLDER|TABLE", help="folder of pairs, or a table (image,sound)")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run that is made, or goes on")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="vae, ast, size, validation, windows, ...")
    arguments = parser.parse_intermixed_args(argv)
    return run_command(prog, lambda: _run(arguments.source, arguments.out, arguments.overrides))


def _run(source: Path, out: Path, overrides: Sequence[str]) -> None:
    settings = read_settings(overrides)
    if settings.heif:
        require("pillow_heif", extra="heif")
    made = make_pairs(source, out, settings)
    left = f"; left: {_reasons(made.rows)} (`{spell('rejects', out)}` names each)" if made.rows.rejected else ""
    splits = ", ".join(f"{n:,} {split}" for split, n in made.samples.items())
    sys.stdout.write(f"{out}: {made.rows.rows_out:,} of {made.rows.rows_in:,} pairs ({splits}){left}\n")
