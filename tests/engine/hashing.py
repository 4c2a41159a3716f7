"""The hash of everything in a run that is promised to be the same."""

from sonify import layout
from sonify.io.places import files_below
from sonify.io.write import sha256_of
from sonify.stores import Place

PROMISED = (
    "pool", layout.ANSWERS, layout.CONCEPTS, layout.CHECKS, layout.PAIRS, layout.RENDERS, layout.SHARDS,
    layout.FEATURES, layout.REJECTS, layout.COMMITS,
)  # fmt: skip


def hash_run(run_dir: Place) -> dict[str, str]:
    """The sha256 of each file under the promised folders, by path."""
    files = (f"{folder}/{name}" for folder in PROMISED for name in files_below(run_dir / folder))
    return {path: sha256_of(run_dir / path) for path in files}
