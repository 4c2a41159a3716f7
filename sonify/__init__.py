"""Give any image set a soundscape; see README.md.

A notebook calls `sonify.load_config` and `sonify.run`; docs/api.md has them all.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# What is documented, and where it is: nothing is imported before it is asked for. `__init__.pyi` says the same to
# editors and type checkers.
_PLACES = {
    "load_config": "sonify.config.loader",
    "make_config": "sonify.config.loader",
    "run": "sonify.running",
    "plan_run": "sonify.running",
    "read_status": "sonify.report.status",
    "build_gallery": "sonify.report.gallery",
    "open_shards": "sonify.shards",
    "InputError": "sonify.errors",
    "WorkError": "sonify.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sonify' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
