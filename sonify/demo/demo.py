"""`sonify demo`: the whole job on the embedded sample, with the default settings and without a download."""

from pathlib import Path

from sonify.config import make_config
from sonify.demo.sample import write_sample
from sonify.report.gallery import build_gallery
from sonify.run import run


def run_demo(run_dir: Path) -> Path:
    """Write the sample beside the run, do all stages, and return the gallery's page.

    Raises:
        InputError: scikit-image, whose photographs the sample uses, is not installed; or the folder holds another run.
    """
    sample = run_dir / "sample"
    write_sample(sample)
    # a sample of ninety recordings is too small to keep a part of it for validation
    config = make_config(
        {
            "run_dir": str(run_dir),
            "images": {"kind": "folder", "path": str(sample / "photos"), "shard_size": 8, "validation": 0},
            "audio": {"sources": [{"kind": "folder", "path": str(sample / "sounds")}], "validation": 0},
            "retrieval": {"min_cosine": 0.2},  # the text encoder gives unrelated sounds about 0.1
            "engine": {"workers": 2},
        },
        where="demo",
    )
    run(config)
    return build_gallery(run_dir) / "index.html"
