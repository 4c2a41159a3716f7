"""The instruments: an ear that hears the sounds, and an eye that looks at the pictures.

YAMNet's scores of each window of a sound are the condition, in the place of AST's features. MobileNet v2, trained on
ImageNet and on nothing of ours, says which of the six classes a picture shows.

T  windows, D  YAMNet's 521 classes, K  the six classes, F  width of MobileNet's last features
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.learning.collection import CLASSES, Photo
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


SIDE = 224
# ImageNet's kinds that stand together in its list; vehicles and what is seen at sea are the photographs' own labels.
RANGES: Mapping[str, Sequence[tuple[int, int]]] = {
    "cat": [(281, 293)],
    "chirping_birds": [(7, 24), (80, 100), (127, 146)],
    "dog": [(151, 268)],
    "insects": [(300, 320)],
}
LOGITS = "top/SpatialSqueeze/Reshape"  # how the name of the tensor before the softmax ends
POOLED = "top/Reshape/Reshape/shape1"  # and that of the mean over places of the last features


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the eye makes of a picture: the logarithm of each class's mean probability, and features of length 1."""

    classes_K: np.ndarray  # noqa: N815 - shape suffix
    features_F: np.ndarray  # noqa: N815 - shape suffix


class Eye:
    """(H, W, 3) uint8 pixels to the logarithm of each class's mean probability, (6,) float64, in the order of CLASSES.

    The mean over a class's kinds, and not their sum: there are 118 dogs and 13 cats, and by their sum a formless
    picture is a dog (59 of 60 of noise, measured). From the logits, since the network's own probabilities come in steps
    of 1/256: those of a blurred picture are all zero.
    """

    def __init__(self, folder: Path, photos: Sequence[Photo]) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType  # noqa: PLC0415 - prints when imported

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the memory that keeping the logits takes
            self._interpreter = Interpreter(
                str(folder / "tf2_mobilenet_v2_1.0_224_ptq.tflite"),
                experimental_preserve_all_tensors=True,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        tensors = self._interpreter.get_tensor_details()
        (self._logits,) = [one for one in tensors if one["name"].endswith(LOGITS)]
        (self._pooled,) = [one for one in tensors if one["name"].endswith(POOLED)]
        labels = (folder / "imagenet_labels.txt").read_text().splitlines()[1:]  # the first is the background
        self._members = [class_members(name, labels, photos) for name in CLASSES]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return self.look(pixels).classes_K

    def look(self, pixels: np.ndarray) -> Look:
        """See the classes, and keep the features by which pictures are compared."""
        image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        self._interpreter.set_tensor(self._input, np.asarray(image)[None])
        self._interpreter.invoke()
        logits = self._read(self._logits)[1:]  # the first is the background
        features_F = self._read(self._pooled)
        return Look(
            classes_K=np.array([np.logaddexp.reduce(logits[rows]) - np.log(len(rows)) for rows in self._members]),
            features_F=(features_F / np.linalg.norm(features_F)).astype(np.float32),
        )

    def _read(self, tensor: Mapping) -> np.ndarray:
        scale, zero = tensor["quantization"]
        return (self._interpreter.get_tensor(tensor["index"]).reshape(-1).astype(np.float64) - zero) * scale


def class_members(name: str, labels: Sequence[str], photos: Sequence[Photo]) -> list[int]:
    """The positions of a class's kinds among ImageNet's thousand."""
    if name in RANGES:
        return [number for first, last in RANGES[name] for number in range(first, last + 1)]
    wanted = {photo.label for photo in photos if photo.name == name}
    return [n for n, label in enumerate(labels) if wanted & {one.strip().lower() for one in label.split(",")}]
