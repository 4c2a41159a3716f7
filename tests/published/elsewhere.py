"""A small published dataset, and another copy of all that it was made from."""

import hashlib
import shutil

from sonify.io.tables import read_rows
from sonify.publish.publish import publish
from sonify.publish.rows import CHECKSUMS
from sonify.rows import Pair, Render
from sonify.run import run
from tests.fakes import SUBJECTS, small_config, write_photos, write_sounds

TEXTS = {f"{n:03d}.flac": SUBJECTS[n % len(SUBJECTS)] for n in range(16)}
CAPTIONS = {
    f"{n:03d}.jpg": f"a photo of a {SUBJECTS[n % len(SUBJECTS)]} and a {SUBJECTS[(n + 3) % len(SUBJECTS)]}"
    for n in range(20)
}


def own(root, **sections):
    """What a renderer's configuration names: images, sounds, the folder."""
    base = {
        "images": {"kind": "folder", "path": str(root / "photos")},
        "audio": {"sources": [{"kind": "folder", "path": str(root / "sounds")}]},
    }
    return small_config(root, **(base | sections))


def published_run(root):
    """A run of two scenes an image, and what was published of it: `root/run` and `root/published`."""
    write_photos(root / "photos", CAPTIONS)
    write_sounds(root / "sounds", TEXTS)
    config = small_config(root, **own_run(root))
    run(config)
    publish(config.run_dir, root / "published")
    return root


def own_run(root):
    """The sections of the run that is published, over the input below `root`."""
    return {
        "images": {"kind": "folder", "path": str(root / "photos"), "shard_size": 8, "validation": 0.3},
        "audio": {"sources": [{"kind": "folder", "path": str(root / "sounds")}], "validation": 0.4},
        "retrieval": {"draws": 2},
        "mix": {"lufs": [-30.0, -26.0]},
        "seed": 3,
    }


def copy_of(first, root):
    """Another copy of the images, the recordings and the folder."""
    for name in ("photos", "sounds", "published"):
        shutil.copytree(first / name, root / name)
    return root


def elsewhere(root, missing="stop", **sections):
    return own(root, published={"path": str(root / "published"), "missing": missing}, **sections)


def shard_hashes(run_dir):
    return {
        path.relative_to(run_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run_dir / "shards").glob("*/*.tar"))
    }


def pairs(run_dir):
    return {(row.image, row.scene): row for path in run_dir.glob("pairs/*") for row in read_rows(path, Pair)}


def mixes(run_dir):
    rows = (row for path in run_dir.glob("renders/*") for row in read_rows(path, Render))
    return {(row.image, row.scene): row.mix_sha256 for row in rows}


def heard_files(run_dir):
    return sorted({source.clip for pair in pairs(run_dir).values() for source in pair.sources})


def remove_recording(root, run_dir):
    """Delete a recording that is heard, one of 16, and return its clip."""
    clip = heard_files(run_dir)[0]
    (root / "sounds" / clip.removeprefix("folder/").partition("#")[0]).unlink()
    return clip


def seal(folder):
    """Write checksums that hold, as a stranger would."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / CHECKSUMS).write_text("".join(lines))
