"""Features like an Inception network's, by the recipes of the golden numbers: exact on every machine."""

import json
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str) -> dict[str, Any]:
    """The numbers that the peers' own programs gave, with their versions."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def relu_features(seed: int, count: int, width: int, shift: float) -> np.ndarray:
    """Non-negative correlated float32 features (count, width)."""
    draw, base = np.random.RandomState(seed), np.random.RandomState(99).standard_normal((8, width))
    common = draw.standard_normal((count, 8)) @ base / np.sqrt(8) * 0.5
    return np.maximum(common + draw.standard_normal((count, width)) * 0.3 + shift, 0).astype(np.float32)


def unit_features(seed: int, count: int, shift: float, width: int = 768) -> np.ndarray:
    """Unit float32 vectors about a direction."""
    rows = np.random.RandomState(seed).standard_normal((count, width))
    rows += shift * np.random.RandomState(5).standard_normal(width)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def with_copies() -> np.ndarray:
    """400 made pictures of which the first 60 are training ones (`relu_features(3, 500, 64, 0.0)`) but for a little."""
    noise = 0.01 * np.random.RandomState(77).standard_normal((60, 64)).astype(np.float32)
    return np.concatenate([relu_features(3, 500, 64, 0.0)[:60] + noise, relu_features(4, 400, 64, 0.2)[60:]])
