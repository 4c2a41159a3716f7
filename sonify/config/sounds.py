"""The kinds of sound collections."""

from typing import Annotated, Literal

from pydantic import Field

from sonify.config.sections import InputPath, Name, Section


class FolderSounds(Section):
    """Sounds in a folder, recursively; `metadata.csv` has file and any of text, licence, attribution, recording."""

    kind: Literal["folder"]
    path: InputPath
    name: Name = "folder"


class Esc50Sounds(Section):
    """The ESC-50 folder, with `meta/esc50.csv` and `audio/`."""

    kind: Literal["esc50"]
    path: InputPath
    name: Name = "esc50"


class AudioSetSounds(Section):
    """AudioSet: a segment list, the class labels, and a folder of sounds (or tars of them) named by YouTube id.

    Segments without a file are counted as `missing`; so are rows of the other corpora that come with a table.
    """

    kind: Literal["audioset"]
    path: InputPath
    segments: InputPath
    labels: InputPath
    name: Name = "audioset"


class Fsd50kSounds(Section):
    """The FSD50K folder, as its archives unpack; `dev` is the part that is not for evaluation."""

    kind: Literal["fsd50k"]
    path: InputPath
    part: Literal["dev", "eval", "both"] = "dev"
    name: Name = "fsd50k"


class BbcSounds(Section):
    """BBC sound effects: WAV files in a folder, and `BBCSoundEffects.csv` there or elsewhere."""

    kind: Literal["bbc"]
    path: InputPath
    table: InputPath | None = None
    name: Name = "bbc"


class WebDatasetSounds(Section):
    """Tar archives of sounds with a `.json` or `.txt` beside each (LAION-Audio).

    `licence` is that of recordings whose JSON names none.
    """

    kind: Literal["webdataset"]
    path: InputPath
    name: Name = "webdataset"
    licence: str = "unknown"


class ParquetSounds(Section):
    """Parquet files with a Hugging Face audio column (`bytes` or `path`) and a text column (WavCaps, AudioCaps).

    `licence` is that of rows without one in a column of that name.
    """

    kind: Literal["parquet"]
    path: InputPath
    audio_column: str = "audio"
    text_column: str = "text"
    name: Name = "parquet"
    licence: str = "unknown"


Sounds = Annotated[
    FolderSounds | Esc50Sounds | AudioSetSounds | Fsd50kSounds | BbcSounds | WebDatasetSounds | ParquetSounds,
    Field(discriminator="kind"),
]
