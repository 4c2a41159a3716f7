"""`sonify demo`: the whole job on the embedded sample, with the default settings and without a download.

The sample: photographs that scikit-image ships, captions of our own, and the recordings in `sounds/`, whose README.md
says how they were made.
"""

import csv
import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from sonify.config import Config, make_config
from sonify.errors import missing
from sonify.io.write import naming_full_disk, naming_place
from sonify.report.gallery import build_gallery
from sonify.running import plan_run, run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture in scikit-image's wheel; source, licence and attribution as its documentation states them."""

    file: str
    caption: str
    source: str
    licence: str
    attribution: str


PHOTOS = (
    Photo(
        "astronaut.png",
        "An astronaut in an orange suit smiles in front of a flag while a radio beeps and a woman is speaking.",
        "https://flic.kr/p/r9qvLn",
        "public domain",
        "NASA",
    ),
    Photo(
        "brick.png",
        "A brick wall with footsteps passing by, a bicycle bell, and a siren far away.",
        "https://cc0textures.com/view.php?tex=Bricks25",
        "CC0-1.0",
        "CC0 Textures",
    ),
    Photo(
        "camera.png",
        "A man in a coat takes pictures in a windy park, birds chirping and the camera shutter going.",
        "https://github.com/scikit-image/scikit-image/issues/3927",
        "CC0-1.0",
        "Lav Varshney",
    ),
    Photo(
        "chelsea.png",
        "A tabby cat looks to the side, purring and now and then meowing.",
        "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.chelsea",
        "CC0-1.0",
        "Stefan van der Walt",
    ),
    Photo(
        "clock_motion.png",
        "A blurred wall clock, ticking in a quiet room while rain falls.",
        "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.clock",
        "public domain",
        "Stefan van der Walt",
    ),
    Photo(
        "coffee.png",
        "A cup of coffee on a wooden table in a busy café, its spoon clinking.",
        "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.coffee",
        "CC0-1.0",
        "Rachel Michetti",
    ),
    Photo(
        "coins.png",
        "Rows of ancient coins on a dark tray, in a hall full of visitors talking.",
        "https://www.brooklynmuseum.org/opencollection/archives/image/51611",
        "no known copyright restrictions",
        "Brooklyn Museum",
    ),
    Photo(
        "grass.png",
        "Grass and clover in a meadow full of crickets and buzzing bees, in a light wind.",
        "https://www.deviantart.com/linolafett/art/Grass-01-434853879",
        "CC0-1.0",
        "linolafett",
    ),
    Photo(
        "gravel.png",
        "Loose grey gravel under somebody's footsteps, with a stream of water nearby.",
        "https://cc0textures.com/view.php?tex=Gravel04",
        "CC0-1.0",
        "CC0 Textures",
    ),
    Photo(
        "horse.png",
        "The black silhouette of a horse; it is neighing, and its hooves go clip-clop.",
        "http://openclipart.org/detail/158377/horse-by-marauder",
        "CC0-1.0",
        "Andreas Preuss (marauder)",
    ),
    Photo(
        "hubble_deep_field.jpg",
        "Distant galaxies seen by a space telescope, with radio static and beeps.",
        "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        "public domain",
        "NASA",
    ),
    Photo(
        "motorcycle_left.png",
        "A red motorcycle in a garage full of boxes, its engine revving while a dog barks.",
        "http://vision.middlebury.edu/stereo/data/scenes2014/",
        "not stated",
        "D. Scharstein and others, Middlebury Stereo Datasets 2014",
    ),
    Photo(
        "page.png",
        "A printed page with a line of program code, the paper rustling while somebody is typing on a keyboard.",
        "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.page",
        "BSD-3-Clause",
        "the scikit-image team",
    ),
    Photo(
        "rocket.jpg",
        "A rocket on its launch pad at dusk, about to lift off with a roar, a helicopter near and the wind blowing.",
        "https://www.flickr.com/photos/spacexphotos/16511594820/in/photostream/",
        "public domain",
        "SpaceX",
    ),
)


def run_demo(run_dir: Path) -> Path:
    """Write the sample beside the run, do all stages, and return the gallery's page.

    Raises:
        InputError: scikit-image, whose photographs the sample uses, is not installed; or the folder holds another run.
    """
    sample = run_dir / "sample"
    with naming_place(sample), naming_full_disk(sample):
        write_sample(sample)
    config = demo_config(run_dir)
    if all(plan.complete and not plan.stale for plan in plan_run(config)):
        log.info("nothing to do: the demo in %s is done already; remove that folder to see it made again", run_dir)
    run(config)
    return build_gallery(run_dir) / "index.html"


def demo_config(run_dir: Path) -> Config:
    """What `configs/sonify/demo.yaml` says as well; the sample must be there."""
    sample = run_dir / "sample"
    # a sample of ninety recordings is too small to keep a part of it for validation
    return make_config(
        {
            "run_dir": str(run_dir),
            "images": {"kind": "folder", "path": str(sample / "photos"), "shard_size": 8, "validation": 0},
            "audio": {"sources": [{"kind": "folder", "path": str(sample / "sounds")}], "validation": 0},
            "retrieval": {"min_cosine": 0.2},  # the text encoder gives unrelated sounds about 0.1
            "engine": {"workers": 2},
        },
        where="demo",
    )


def write_sample(folder: Path) -> None:
    """Write `photos/` and `sounds/` with their tables; the same bytes each time."""
    write_photos(folder / "photos")
    write_sounds(folder / "sounds")


def write_photos(folder: Path) -> None:
    """Copy the photographs, with `captions.csv` (what is in them) and `sources.csv` (whose they are)."""
    shipped = shipped_pictures()
    folder.mkdir(parents=True, exist_ok=True)
    for photo in PHOTOS:
        shutil.copyfile(shipped / photo.file, folder / photo.file)
    _write_table(folder / "captions.csv", ("file", "caption"), ((p.file, p.caption) for p in PHOTOS))
    sources = ((p.file, p.source, p.licence, p.attribution) for p in PHOTOS)
    _write_table(folder / "sources.csv", ("file", "source", "licence", "attribution"), sources)


def write_sounds(folder: Path) -> None:
    """Copy the recordings, with `metadata.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (files("sonify.demo") / "sounds").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


def shipped_pictures() -> Path:
    """The folder of scikit-image's own pictures.

    Raises:
        InputError: it is not installed.
    """
    spec = find_spec("skimage")  # its `data` package would import much and fetch what is missing
    if spec is None or not spec.submodule_search_locations:
        raise missing("skimage", "sample", "the demo's photographs")
    return Path(spec.submodule_search_locations[0]) / "data"


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
