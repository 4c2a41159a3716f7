"""Programs that stand for the entry points of other people's models: they speak the protocol, well or badly."""

import sys
from pathlib import Path
from typing import Any

import yaml

WORDS = ("--list", "{sounds}", "--out", "{out}", "--seed", "{seed}", "--seeds", "{seeds}")
# Reads its list, skips what is there, and makes pictures of a colour of their own, answering as it goes.
GOOD = """
import argparse, csv, hashlib, json, os, sys, time
from pathlib import Path
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("--list", type=Path)
parser.add_argument("--out", type=Path)
parser.add_argument("--seed", type=int)
parser.add_argument("--seeds", type=int)
arguments = parser.parse_args()
out = arguments.out
rows = list(csv.DictReader(arguments.list.open(encoding="utf-8")))
pairs = [(row, seed) for row in rows for seed in range(arguments.seed, arguments.seed + arguments.seeds)]


def answer(**line):
    with (out / "outputs.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\\n")


def picture(row, seed, size=(32, 32)):
    digest = hashlib.sha256(f"{row['sha256']} {seed}".encode()).digest()
    return Image.frombytes("RGB", (4, 4), (digest * 2)[:48]).resize(size)


def make(row, seed):
    name = f"images/{row['id']}-{seed}.png"
    if (out / name).exists():
        return
    assert Path(row["sound"]).is_file(), row
    picture(row, seed).save(out / name)
    answer(id=row["id"], seed=seed, image=name)


(out / "images").mkdir(exist_ok=True)
"""
ALL = "for row, seed in pairs:\n    make(row, seed)\n"
BUT_FIRST = "for row, seed in pairs[1:]:\n    make(row, seed)\n"
# Makes one, and waits for a file before it makes the others.
SLOW = (
    """
print(os.getpid(), flush=True)
make(*pairs[0])
for _ in range(1200):
    if (out / "go").exists():
        break
    time.sleep(0.05)
"""
    + ALL
)
# Does not heed SIGTERM.
_DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
CHILD = f"import subprocess\nchild = subprocess.Popen([sys.executable, '-c', {_DEAF!r}])\n"
HANGS = "print('loading', flush=True)\ntime.sleep(600)\n"
ALIKE = """
for row, seed in pairs:
    name = f"images/{row['id']}-{seed}.png"
    Image.new("RGB", (32, 32), (0, 0, seed)).save(out / name)
    answer(id=row["id"], seed=seed, image=name)
"""


def first_is(image: str, before: str = "") -> str:
    """A program that names this expression as its first picture, and makes the others well."""
    return f"first = picture(*pairs[0])\n{before}\nanswer(id='s000', seed=0, image={image})\n{BUT_FIRST}"


def then(line: str) -> str:
    """A program that makes all well, and then does this."""
    return f"{ALL}{line}\n"


def write_recipe(folder: Path, body: str = ALL, **keys: Any) -> Path:
    """A recipe whose program is `GOOD` with this at its end; it lies in a working folder of its own."""
    home = folder / "model"
    home.mkdir(parents=True, exist_ok=True)
    (home / "run.py").write_text(GOOD + body)
    recipe: dict[str, Any] = {
        "name": "standin",
        "command": [sys.executable, "run.py", *WORDS],
        "cwd": str(home),
        "takes": "sounds.csv",
        "timeout_s_per_image": 5,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | keys))
    return path
