"""Real recordings under the names and in the forms of a corpus."""

import json
from pathlib import Path

import soundfile

from sonify.config import Audio
from sonify.rows import SoundRef
from sonify.sources.sounds import list_sounds
from tests.builders import sound_bytes


def real_recording(test_data: Path, number: int, ending: str = "flac") -> bytes:
    """The bytes of one of the real recordings, as FLAC or in another of libsndfile's formats."""
    path = sorted((test_data / "sounds").glob("*.flac"))[number]
    if ending == "flac":
        return path.read_bytes()
    samples, rate_hz = soundfile.read(path, dtype="int16")
    return sound_bytes(samples, rate_hz, ending.upper())


def put(path: Path, data: bytes) -> Path:
    """Write a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def audio_of(*sources: dict[str, object], **settings: object) -> Audio:
    """The configuration's section with these sources."""
    sources_json = [{key: str(value) for key, value in source.items()} for source in sources]
    return Audio.model_validate_json(json.dumps({"sources": sources_json, **settings}))


def listed(*sources: dict[str, object]) -> dict[str, SoundRef]:
    """What is listed, by file."""
    refs = list(list_sounds(audio_of(*sources)))
    assert len({(ref.corpus, ref.file) for ref in refs}) == len(refs)
    return {ref.file: ref for ref in refs}
