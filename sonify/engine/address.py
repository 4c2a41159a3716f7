"""Which cluster a run joins, known without Ray: so that what is wrong with it is said before any work."""

import os
from pathlib import Path

from sonify.config import Config, Engine
from sonify.errors import InputError


def named_address(engine: Engine) -> str | None:
    """The cluster to join, by the config or by RAY_ADDRESS (which a job finds set); None where Ray is started here."""
    address = engine.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


def check_run_dir(config: Config) -> None:
    """Workers of a cluster that is joined run in directories of their own, and those of a job in a copy.

    Raises:
        InputError: the run directory is relative.
    """
    address = named_address(config.engine) if config.engine.kind == "ray" else None
    if address and isinstance(config.run_dir, Path) and not config.run_dir.is_absolute():
        raise InputError(
            f"run_dir: the workers of the cluster at {address} run in other directories (a job's in a temporary copy"
            f" of its working directory): expected an absolute path that all nodes see or s3://..., found"
            f" {config.run_dir}"
        )
