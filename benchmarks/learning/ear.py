"""YAMNet: what is heard in each window of a sound. Its scores are the condition, in the place of AST's features.

T  windows, D  its 521 classes
"""

from pathlib import Path

import numpy as np

from sonify.media.mixing import FULL_SCALE

WINDOW, HOP = 15_600, 7_680  # 0.975 s and 0.48 s at 16 kHz
# Scores are between 0 and 1 and nearly all of them near 0: the root lifts the faint ones. It leaves a vector of length
# about 1; times 16 it is as long as the vectors of an AST, for which the projection's first weights are meant.
SCALE = 16.0


class Ear:
    """(S,) int16 samples at 16 kHz to the (T, D) float32 condition; 9 windows in 5 s."""

    def __init__(self, folder: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - prints when it is imported

        self._interpreter = Interpreter(str(folder / "yamnet.tflite"))
        self._interpreter.allocate_tensors()
        details = self._interpreter.get_input_details()[0]
        self._input, self._shape = details["index"], details["shape"]
        self._scores = self._interpreter.get_output_details()[0]["index"]

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(samples / np.float32(FULL_SCALE), WINDOW)[::HOP]
        return SCALE * np.sqrt(np.stack([self._score(window) for window in windows]))

    def _score(self, window: np.ndarray) -> np.ndarray:
        self._interpreter.set_tensor(self._input, window.astype(np.float32).reshape(self._shape))
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._scores).reshape(-1)


def nearest_class(audio_TD: np.ndarray, known: np.ndarray, names: list[str]) -> str:
    """The class whose mean sound is most like this one, by cosine: how much the condition itself tells.

    Args:
        audio_TD: a condition.
        known: (N, D) conditions of the training recordings, each the mean over time.
        names: the N classes.
    """
    classes = sorted(set(names))
    means = np.stack([known[[name == one for name in names]].mean(axis=0) for one in classes])
    cosines = means @ audio_TD.mean(axis=0) / np.linalg.norm(means, axis=1)
    return classes[int(cosines.argmax())]
