"""Reports as `eval.run` writes them, of any numbers: nothing was judged."""

import csv
from typing import Any

import numpy as np

from eval.measures import Score
from eval.report import VERSION, Report, report_bytes
from eval.statistics import jackknife, mean_estimate

SHA = {"clip_b32": "1" * 64, "wav2clip": "2" * 64}


def mean_score(metric, values, recordings, **changes):
    """The score that follows from the items' values, as a report has it; None among them is no value."""
    by_recording = {}
    for value, recording in zip(values, recordings, strict=True):
        if value is not None:
            by_recording.setdefault(recording, []).append(value)
    means = [np.mean(found) for found in by_recording.values()]
    settings = {
        "metric": metric,
        "definition": f"what {metric} is",
        "better": "higher",
        "estimate": mean_estimate(means, 0) if means else None,
        "reason": "" if means else "no sound of it can be heard",
        "images": len(values),
        "items": len(values),
        "recordings": len(means),
        "seeds": 1,
        "towers": SHA,
        "preprocessing": ("bicubic 224",),
        "pool_sha256": "3" * 64,
    }
    return Score(**{**settings, **changes})


def distance_score(metric, value, replicates, **changes):
    score = mean_score(metric, [1.0], ["a"], **{"better": "lower", "pool_sha256": None, **changes})
    return Score(
        **{**{name: getattr(score, name) for name in Score.__slots__}, "estimate": jackknife(value, replicates)}
    )


def write_report(
    folder, values, *, scores=(), recordings=None, images: Any = 1, levels: Any = None, changed: Any = (), **record
):
    """A report folder of items `item 0`, ...: `values` by metric, a value an item."""
    count = len(next(iter(values.values())))
    levels = levels or ["unknown"] * count
    recordings = recordings or [f"recording {i}" for i in range(count)]
    per_item = [images] * count if isinstance(images, int) else images
    means = [mean_score(metric, given, recordings, **dict(changed)) for metric, given in values.items()]
    settings: dict[str, Any] = {
        "version": VERSION,
        "suite": "landscapes",
        "suite_folder": "/suites/landscapes",
        "suite_digest": "a" * 64,
        "wanted": count,
        "found": count,
        "missing_in_suite": {},
        "model": f"/models/{folder.name}",
        "model_sha256": "b" * 64,
        "manifest": f"/made/{folder.name}",
        "pictures_sha256": "5" * 64,
        "items_without_picture": (),
        "unusable": {},
        "failed": 0,
        "identical": 0,
        "settings": {},
        "heard": "window",
        "image_px": (32, 32),
        "met": {},
        "trained_on": (),
        "said_of_training": (),
        "domain": (),
        "towers": {},
        "vectors": None,
        "metrics": (),
        "seed": 0,
        "libraries": {},
        "scores": (*scores, *means),
        **record,
    }
    folder.mkdir(parents=True)
    (folder / "report.json").write_bytes(report_bytes(Report(**settings)))
    with (folder / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "recording", "group", "labels", "level", "images", *values])
        for i in range(count):
            cells = ["" if given[i] is None else repr(float(given[i])) for given in values.values()]
            writer.writerow([f"item {i}", recordings[i], "", "dog;rain", levels[i], per_item[i], *cells])
    return folder
