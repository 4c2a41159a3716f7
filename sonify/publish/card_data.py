"""The head of a dataset's card: what loads it, what its columns are, and how much there is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from sonify import layout
from sonify.io.tables import schema_of
from sonify.publish import rows
from sonify.publish.rows import PublishedClip, PublishedPair, PublishedRecord, PublishedShard

# The hub's steps: https://huggingface.co/docs/hub/datasets-cards
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
SIZES |= {10**8: "10M<n<100M", 10**9: "100M<n<1B", 10**10: "1B<n<10B", 10**11: "10B<n<100B", 10**12: "100B<n<1T"}
_DTYPES = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64"}
_DTYPES |= {pa.bool_(): "bool", pa.binary(): "binary"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What `load_dataset(DIR, name)` gives: `files` are patterns in DIR by split, `features` as a card writes them."""

    name: str
    files: Mapping[str, str]
    features: list[dict[str, Any]]


def tables_of(out: Path, record: PublishedRecord) -> list[Table]:
    """The tables that are in a folder; a split without a file would not load, and is not named."""
    audio = _audio_features(record.config["audio"]["sample_rate"])
    listed = [
        Table(name="pairs", files=_by_split(rows.DATA), features=_features(PublishedPair)),
        Table(name="clips", files={"train": f"{rows.CLIPS}/*.parquet"}, features=_features(PublishedClip)),
        Table(name="shards", files={"train": rows.SHARDS}, features=_features(PublishedShard)),
        Table(name=rows.AUDIO, files=_by_split(rows.AUDIO), features=audio),
    ]
    there = [
        Table(name=one.name, files={s: p for s, p in one.files.items() if any(out.glob(p))}, features=one.features)
        for one in listed
    ]
    return [one for one in there if one.files]


def _by_split(folder: str) -> dict[str, str]:
    return {split: f"{folder}/{split}-*.parquet" for split in layout.SPLITS}


def _features(row_type: type) -> list[dict[str, Any]]:
    return [_feature(field) for field in schema_of(row_type)]


def _feature(field: pa.Field) -> dict[str, Any]:
    if not pa.types.is_list(field.type):
        return {"name": field.name, "dtype": _DTYPES[field.type]}
    of = field.type.value_type
    element = [_feature(inner) for inner in of] if pa.types.is_struct(of) else _DTYPES[of]
    return {"name": field.name, "list": element}


def _audio_features(sample_rate_hz: int) -> list[dict[str, Any]]:
    plain = [{"name": name, "dtype": "string"} for name in ("image", "scene")]
    return [*plain, {"name": "audio", "dtype": {"audio": {"sampling_rate": sample_rate_hz}}}]


def make_card_data(out: Path, record: PublishedRecord, licence: str, name: str) -> DatasetCardData:
    """The head. The hub wants no more than a name for a licence that is not one of its own."""
    tables = tables_of(out, record)
    other: dict[str, Any] = {"license_name": "see-the-card"} if licence == "other" else {}
    info = [_info(out, table) for table in tables]
    scenes = sum(split["num_examples"] for split in info[0]["splits"])
    return DatasetCardData(
        license=licence,
        **other,
        pretty_name=name,
        size_categories=next(size for above, size in SIZES.items() if scenes < above),
        task_categories=["any-to-any"],  # the hub has no task between image and sound
        tags=["audio", "image", "image-to-audio", "audio-to-image", "soundscapes", "sonify"],
        configs=[_config(table) for table in tables],
        dataset_info=info,
    )


def _config(table: Table) -> dict[str, Any]:
    files = [{"split": split, "path": path} for split, path in table.files.items()]
    return {"config_name": table.name, "data_files": files} | ({"default": True} if table.name == "pairs" else {})


def _info(out: Path, table: Table) -> dict[str, Any]:
    splits = [_split(name, out.glob(path)) for name, path in table.files.items()]
    return {
        "config_name": table.name,
        "features": table.features,
        "splits": splits,
        "download_size": sum(file.stat().st_size for path in table.files.values() for file in out.glob(path)),
        "dataset_size": sum(split["num_bytes"] for split in splits),
    }


def _split(name: str, files: Iterable[Path]) -> dict[str, Any]:
    """`num_bytes` is of the rows in memory, as `datasets` counts them."""
    num_bytes = num_rows = 0
    for file in files:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches():
                num_bytes += batch.nbytes
                num_rows += batch.num_rows
    return {"name": name, "num_bytes": num_bytes, "num_examples": num_rows}
