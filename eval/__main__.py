"""Evaluation and the studies by name: `sonify eval NAME ...`, which is `python -m eval.NAME ...`; alone it lists them.

`sonify eval --suite ...` is `sonify eval run --suite ...`.
"""

import sys
from collections.abc import Sequence

from sonify.errors import did_you_mean
from sonify.terminal import run_module

COMMANDS = {
    "prepare": "a suite of sounds and reference pictures, from a corpus or one's own files",
    "baseline": "have a model, or a control, make the pictures of a suite",
    "run": "score what a model made for a suite",
    "compare": "does one model differ from another on the same items, by more than chance?",
    "table": "models by suites in one table, from reports",
    "memorisation": "does a model copy its training images?",
    "audit": "which metric tells a true sound from a wrong one?",
    "met": "what was a model trained on, as ids that others can look up?",
    "reproduce": "the paper's table, as far as this machine can go",
    "family": "the three systems of this family in one table, offline, of random weights",
    "convert_weights": "published pickles of weights to safetensors",
}
STUDIES = {
    "semantic_mixing": "does a mixture of two sounds give a picture of both?",
    "loudness": "does the louder of two sounds show more in the picture?",
    "separation": "do two sources show better when they are heard one after the other?",
    "reverberation": "what does the room in which a sound is heard change in the picture?",
    "ast_loudness": "how much loudness do AST's features keep, against HuBERT's?",
    "projector_start": "does training gain by a projector that was pre-trained?",
}


def main(argv: Sequence[str] | None = None, prog: str = "python -m eval") -> int:
    """Run a command or a study, or list them, and return the exit code."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h"):
        sys.stdout.write(_usage(prog))
        return 0
    if name.startswith("--"):
        name, words = "run", [name, *words]
    known = {**COMMANDS, **STUDIES}
    if name not in known:
        hint = did_you_mean(name, known) or f": {', '.join(known)}"
        sys.stderr.write(f"{prog}: no such command or study: {name!r}{hint}\n")
        return 2
    return run_module(f"eval.{name}", words, extra="eval", name=f"{prog} {name}")


def _usage(prog: str) -> str:
    lines = [f"usage: {prog} NAME ... (NAME --help: what it takes)", "", "evaluation of a model on a suite:"]
    lines += [f"  {name:16} {text}" for name, text in COMMANDS.items()]
    lines += ["", "studies of sound control:", *(f"  {name:16} {text}" for name, text in STUDIES.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
