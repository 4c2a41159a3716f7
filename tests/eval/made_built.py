"""What a model made for a suite, as a folder with its manifest: any pictures will do."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.pictures import Made, read_made
from eval.suites.suite import Suite
from train.manifest import GeneratedImage, OutsideSettings, write_manifest


def make_made(
    suite: Suite, folder: Path, pictures: Mapping[str, Sequence[bytes]], model: str = "a model", **settings: float
) -> Made:
    """A folder with the given pictures (PNG) of each item, of the seeds from 0 on; `settings` such as guidance."""
    (folder / "images").mkdir(parents=True)
    of = {item.id: item for item in suite.items}
    rows: list[GeneratedImage] = []
    for name, made in pictures.items():
        for seed, data in enumerate(made):
            image = f"images/{name}-{seed}.png"
            (folder / image).write_bytes(data)
            row = GeneratedImage(
                image=image,
                sound=str(suite.folder / of[name].sound.file),
                mixed_with=(),
                sound_sha256=(of[name].sound.sha256,),
                start_sec=0.0,
                seed=seed,
                model=model,
                model_sha256=hashlib.sha256(model.encode()).hexdigest(),
                settings=OutsideSettings(
                    kind="outside",
                    command=("paint",),
                    repository=None,
                    commit=None,
                    heard=None,
                    image_px=None,
                    guidance=settings.get("guidance"),
                    steps=None,
                ),
            )
            rows.append(row)
    write_manifest(folder, rows)
    return read_made(suite, folder)
