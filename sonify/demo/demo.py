"""`sonify demo`: the whole job on the embedded sample, with the default settings and without a download."""

from pathlib import Path

from sonify.config import Config, make_config
from sonify.demo.sample import write_sample
from sonify.report.gallery import build_gallery
from sonify.run import run


def run_demo(run_dir: Path) -> Path:
    """Write the sample beside the run, do all stages, and return the gallery's page.

    Raises:
        InputError: scikit-image, whose photographs the sample uses, is not installed; or the folder holds another run.
    """
    write_sample(run_dir / "sample")
    run(demo_config(run_dir))
    return build_gallery(run_dir) / "index.html"


def demo_config(run_dir: Path) -> Config:
    """What `configs/sonify/demo.yaml` says as well; the sample must be there."""
    sample = run_dir / "sample"
    # a sample of ninety recordings is too small to keep a part of it for validation
    return make_config(
        {
            "run_dir": str(run_dir),
            "images": {"kind": "folder", "path": str(sample / "photos"), "shard_size": 8, "validation": 0},
            "audio": {"sources": [{"kind": "folder", "path": str(sample / "sounds")}], "validation": 0},
            "retrieval": {"min_cosine": 0.2},  # the text encoder gives unrelated sounds about 0.1
            "engine": {"workers": 2},
        },
        where="demo",
    )
