"""Machines as people have them: where the cluster is not, where sockets do not fit, where CPUs are others'."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from sonify.config import make_config
from sonify.config.sections import Engine
from sonify.engine.cluster import BELOW_RAY, check_seen_by_workers, connect, named_address
from sonify.io.machine import MAX_SOCKET_PATH_BYTES
from sonify.terminal import INPUT_ERROR
from tests.builders import hash_run, refused, small_config, small_input
from tests.servers import serving_files

LOOPBACK = "127.0.0.1"
HARMLESS = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _no_address(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
