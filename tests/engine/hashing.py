"""The hash of everything in a run that is promised to be the same."""

from pathlib import Path

from sonify import layout
from sonify.engine.files import sha256_of

PROMISED = (
    "pool", layout.ANSWERS, layout.CONCEPTS, layout.CHECKS, layout.PAIRS, layout.RENDERS, layout.SHARDS,
    layout.FEATURES, layout.REJECTS, layout.COMMITS,
)  # fmt: skip


def hash_run(run_dir: Path) -> dict[str, str]:
    """The sha256 of each file under the promised folders, by path."""
    files = (path for folder in PROMISED for path in sorted((run_dir / folder).rglob("*")) if path.is_file())
    return {path.relative_to(run_dir).as_posix(): sha256_of(path) for path in files}
