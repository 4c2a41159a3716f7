"""What the recipe `in_the_wild` says: which networks stand where the published system has its own, and how it samples.

Its name says what stood in and which settings are not the published ones, so that no table shows other numbers under
the published name. That alone would be bare: of AudioCLIP, which is not here, no setting has it.
"""

import csv
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from eval.suites.config import LocalPath
from sonify.config.inputs import Model, Section
from sonify.stores import expand_user

FILES = ("captions", "act", "act_words", "wav2clip")
FOLDERS = ("stable_diffusion", "captioner", "clip")
JUDGES = {"clip", "clip_revision", "wav2clip"}  # which nothing needs that is kept before it is optimised
NOT_TOLD = {"kind", "env", "timeout_s_per_image", "trained_on"}  # of the recipe, and nothing of the system
# What the published system is known to have, and what it samples by.
STABLE_DIFFUSION = ("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b")
CLIP = ("openai/clip-vit-base-patch32", "c237dc49a33fc61debc9276459120b7eac67e7ef")
KEPT, STEPS, GUIDANCE = 9, 40, 7.5
Weights = Annotated[
    str, AfterValidator(lambda path: str(expand_user(path).absolute()))
]  # may be not needed, and not there


class InTheWild(Section):
    """The system's recipe. One of `captions`, `captioner` and `act` says where captions come from."""

    kind: Literal["in_the_wild"]
    stable_diffusion: Model
    revision: str | None = None
    captions: LocalPath | None = None  # CSV with the columns id, caption and, if known, probabilities and nouns
    captioner: Model | None = None  # a Whisper that was trained to caption
    captioner_revision: str | None = None
    captioner_prompt: str = ""
    act: LocalPath | None = None  # ACT's weights as safetensors
    act_words: LocalPath | None = None  # its vocabulary, a word a line
    optimise: int = Field(default=10, ge=0, le=1000)  # pictures, the weights changed between one and the next; 0: one
    image_of_step: int | None = Field(default=None, ge=0)  # from 0; null: the last
    clip: Model | None = None  # CLIP ViT-B/32 of transformers, for the two terms of the loss
    clip_revision: str | None = None
    wav2clip: Weights | None = None  # stands for AudioCLIP; null: the term is left out
    steps: int = Field(default=40, ge=4, le=1000)
    guidance: float = Field(default=7.5, ge=1, le=100)
    checkpointing: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trained_on: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    timeout_s_per_image: float = Field(default=3600, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "InTheWild":
        sources = [name for name in ("captions", "captioner", "act") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError(
                "expected one of captions=FILE.csv, captioner=DIR and act=FILE.safetensors, which say where captions"
                f" come from, found {' and '.join(sources) or 'none'}"
            )
        if (self.act is None) != (self.act_words is None):
            raise ValueError("act and act_words go together: the weights, and the vocabulary with a word a line")
        if self.is_optimised and self.clip is None:
            raise ValueError(f"optimise is {self.optimise}, and its loss needs `clip`; name one, or set optimise=0")
        if self.image_of_step is not None and self.image_of_step >= self.pictures:
            raise ValueError(
                f"image_of_step is {self.image_of_step}, counted from 0, and optimise={self.optimise} makes"
                f" {self.pictures}: set it to at most {self.pictures - 1}, or null"
            )
        return self

    @property
    def pictures(self) -> int:
        """How many are drawn for one that is kept."""
        return max(self.optimise, 1)

    @property
    def chosen(self) -> int:
        """Which of them is kept; the published program keeps all ten, and does not say which counts."""
        return self.pictures - 1 if self.image_of_step is None else self.image_of_step

    @property
    def is_optimised(self) -> bool:
        """Whether what is kept was drawn with weights that were changed."""
        return self.chosen > 0

    @property
    def name(self) -> str:
        """What tables call it: the published name, and what is not as published, or not known to be: a network that is
        a folder, or another revision, may have any weights."""
        optimised = self.is_optimised
        departs = {
            "captions": self.captions is not None,
            "captioner": self.captioner is not None,
            "nouns": not self._has_all_nouns(),
            "wav2clip": optimised and self.wav2clip is not None,
            "no_audio": optimised and self.wav2clip is None,
            "not_optimised": not optimised,
            f"kept{self.chosen}": optimised and self.chosen != KEPT,
            "sd": (self.stable_diffusion, self.revision) != STABLE_DIFFUSION,
            "clip": optimised and (self.clip, self.clip_revision) != CLIP,
            f"steps{self.steps}": self.steps != STEPS,
            f"guidance{self.guidance:g}": self.guidance != GUIDANCE,
        }
        return f"in_the_wild[{'+'.join(name for name, does in departs.items() if does)}]"

    def _has_all_nouns(self) -> bool:
        """Whether the file of captions scores the nouns of each caption; else a closed list does, where it does not."""
        if self.captions is None:
            return False
        # a file that cannot be read is refused by the program, which reads all of it
        with suppress(OSError, ValueError, csv.Error), self.captions.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            return all((row.get("nouns") or "").strip() for row in rows if (row.get("caption") or "").strip())
        return False

    @property
    def hears_sound(self) -> bool:
        """Whether the sound itself has a part, beside what its caption says."""
        return self.is_optimised and self.wav2clip is not None

    def words(self) -> list[str]:
        """All settings as `key=value`, so that a manifest that holds the command holds them."""
        unused = {} if self.is_optimised else dict.fromkeys(JUDGES)
        told = self.model_dump(mode="json", exclude=NOT_TOLD) | {"image_of_step": self.chosen} | unused
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in told.items()]

    def files(self) -> Iterator[Path]:
        """Every file of this machine that the pictures depend on."""
        unused = set() if self.is_optimised else JUDGES
        named = {name: getattr(self, name) for name in (*FILES, *FOLDERS) if name not in unused}
        yield from (Path(path) for name, path in named.items() if name in FILES and path is not None)
        for name in FOLDERS:
            if (model := named.get(name)) is not None and (folder := Path(model)).is_dir():
                yield from sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
