"""MobileNet v2, trained on ImageNet and on nothing of ours: which of the six classes does a picture show?"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.learning.collection import CLASSES, Photo

SIDE = 224
# ImageNet's kinds that stand together in its list; vehicles and what is seen at sea are the photographs' own labels.
RANGES: Mapping[str, Sequence[tuple[int, int]]] = {
    "cat": [(281, 293)],
    "chirping_birds": [(7, 24), (80, 100), (127, 146)],
    "dog": [(151, 268)],
    "insects": [(300, 320)],
}
LOGITS = "top/SpatialSqueeze/Reshape"  # how the name of the tensor before the softmax ends


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
        (logits,) = [one for one in self._interpreter.get_tensor_details() if one["name"].endswith(LOGITS)]
        self._logits = logits["index"]
        self._scale, self._zero = logits["quantization"]
        labels = (folder / "imagenet_labels.txt").read_text().splitlines()[1:]  # the first is the background
        self._members = [class_members(name, labels, photos) for name in CLASSES]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        self._interpreter.set_tensor(self._input, np.asarray(image)[None])
        self._interpreter.invoke()
        quantised = self._interpreter.get_tensor(self._logits)[0].astype(np.float64)
        logits = (quantised[1:] - self._zero) * self._scale
        return np.array([np.logaddexp.reduce(logits[rows]) - np.log(len(rows)) for rows in self._members])


def class_members(name: str, labels: Sequence[str], photos: Sequence[Photo]) -> list[int]:
    """The positions of a class's kinds among ImageNet's thousand."""
    if name in RANGES:
        return [number for first, last in RANGES[name] for number in range(first, last + 1)]
    wanted = {photo.label for photo in photos if photo.name == name}
    return [n for n, label in enumerate(labels) if wanted & {one.strip().lower() for one in label.split(",")}]
