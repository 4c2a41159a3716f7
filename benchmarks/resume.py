"""A finished run, run again, against the run itself.

    python -m benchmarks.resume

Both with the Ray engine and two workers, Ray's start included where it is needed. Prints one JSON line; floor 50.
"""

import tempfile
from pathlib import Path

from benchmarks.inputs import config_for, write_photos, write_sounds
from benchmarks.measure import interleaved, report
from sonify.io.write import remove
from sonify.running import run

IMAGES, UNIT, WORKERS = 4000, 64, 2


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root / "photos", IMAGES)
        write_sounds(root / "sounds")
        engine = {"kind": "ray", "workers": WORKERS}
        finished, fresh = (config_for(root, name, UNIT, engine) for name in ("finished", "fresh"))
        run(finished)

        def whole() -> None:
            remove(fresh.run_dir)
            run(fresh)

        ours_sec, theirs_sec = interleaved(lambda: run(finished), whole)
        report("resume", 1 / ours_sec, 1 / theirs_sec, "runs/s", images=IMAGES, seconds=round(ours_sec, 3))


if __name__ == "__main__":
    main()
