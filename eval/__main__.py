"""The studies by name: `sonify eval STUDY ...`, which is `python -m eval.STUDY ...`; alone it lists them."""

import sys
from collections.abc import Sequence

from sonify.errors import did_you_mean
from sonify.terminal import run_module

STUDIES = {
    "prepare": "a suite of sounds and reference pictures, from a corpus or one's own files",
    "semantic_mixing": "does a mixture of two sounds give a picture of both?",
    "loudness": "does the louder of two sounds show more in the picture?",
    "separation": "do two sources show better when they are heard one after the other?",
    "reverberation": "what does the room in which a sound is heard change in the picture?",
    "ast_loudness": "how much loudness do AST's features keep, against HuBERT's?",
}


def main(argv: Sequence[str] | None = None, prog: str = "python -m eval") -> int:
    """Run a study, or list them, and return the exit code."""
    study, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if study in ("--help", "-h"):
        lines = (f"  {name:16} {text}" for name, text in STUDIES.items())
        sys.stdout.write("\n".join([f"usage: {prog} STUDY ... (STUDY --help: what it takes)\n", *lines, ""]))
        return 0
    if study not in STUDIES:
        hint = did_you_mean(study, STUDIES) or f": {', '.join(STUDIES)}"
        sys.stderr.write(f"{prog}: no such study: {study!r}{hint}\n")
        return 2
    return run_module(f"eval.{study}", words, extra="eval", name=f"{prog} {study}")


if __name__ == "__main__":
    sys.exit(main())
