"""Slurm scripts: the options in their #SBATCH lines, read as strictly as sbatch does, and their variables."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sonify.doctor.jobs.text import FileKind, Source

_NUMBER = r"\d+"
_TIME = r"(?:\d+-\d{1,2}(?::\d{1,2}){0,2}|\d+(?::\d{1,2}){0,2}|infinite|unlimited)"
_MEMORY = r"\d+[KMGT]?"
_GRES = r"[A-Za-z][\w.-]*(?::[A-Za-z][\w.-]*)?(?::\d+)?(?:,[\w.:-]+)*"
_GPUS = r"(?:[A-Za-z][\w.-]*:)?\d+"
_ANY = r"\S.*"
_NONE = ""
# Source: sbatch(1) of Slurm 25.05; the values that an option may have, empty where it has none.
OPTIONS: Mapping[str, str] = {
    "account": _ANY, "acctg-freq": _ANY, "array": r"[\d,:%-]+", "batch": _ANY, "begin": _ANY, "chdir": _ANY,
    "cluster-constraint": _ANY, "clusters": _ANY, "comment": _ANY, "constraint": _ANY, "container": _ANY,
    "contiguous": _NONE, "core-spec": _NUMBER, "cores-per-socket": _NUMBER, "cpu-freq": _ANY, "cpus-per-gpu": _NUMBER,
    "cpus-per-task": _NUMBER, "deadline": _ANY, "dependency": _ANY, "distribution": _ANY, "error": _ANY,
    "exclude": _ANY, "exclusive": r"(?:user|mcs|topo)?", "export": _ANY, "export-file": _ANY, "extra": _ANY,
    "extra-node-info": _ANY, "get-user-env": r".*", "gid": _ANY, "gpu-bind": _ANY, "gpu-freq": _ANY, "gpus": _GPUS,
    "gpus-per-node": _GPUS, "gpus-per-socket": _GPUS, "gpus-per-task": _GPUS, "gres": _GRES, "gres-flags": _ANY,
    "hint": r"compute_bound|memory_bound|multithread|nomultithread", "hold": _NONE, "ignore-pbs": _NONE,
    "input": _ANY, "job-name": _ANY, "kill-on-invalid-dep": r"yes|no", "licenses": _ANY, "mail-type": _ANY,
    "mail-user": _ANY, "mcs-label": _ANY, "mem": _MEMORY, "mem-bind": _ANY, "mem-per-cpu": _MEMORY,
    "mem-per-gpu": _MEMORY, "mincpus": _NUMBER, "network": _ANY, "nice": r"-?\d*", "no-kill": r"(?:off)?",
    "no-requeue": _NONE, "nodefile": _ANY, "nodelist": _ANY, "nodes": r"\d+[kKmM]?(?:-\d+[kKmM]?)?", "ntasks": _NUMBER,
    "ntasks-per-core": _NUMBER, "ntasks-per-gpu": _NUMBER, "ntasks-per-node": _NUMBER, "ntasks-per-socket": _NUMBER,
    "open-mode": r"append|truncate", "output": _ANY, "overcommit": _NONE, "oversubscribe": _NONE, "parsable": _NONE,
    "partition": _ANY, "power": _ANY, "prefer": _ANY, "priority": r"\d+|TOP", "profile": _ANY, "propagate": r".*",
    "qos": _ANY, "quiet": _NONE, "reboot": _NONE, "requeue": _NONE, "reservation": _ANY,
    "signal": r"(?:[RB]{1,2}:)?(?:\d+|(?:SIG)?[A-Z]+\d?)(?:@\d+)?", "sockets-per-node": _NUMBER, "spread-job": _NONE,
    "stepmgr": _NONE, "switches": _ANY, "test-only": _NONE, "thread-spec": _NUMBER, "threads-per-core": _NUMBER,
    "time": _TIME, "time-min": _TIME, "tmp": _MEMORY, "tres-bind": _ANY, "tres-per-task": _ANY, "uid": _ANY,
    "use-min-nodes": _NONE, "verbose": _NONE, "wait": _NONE, "wait-all-nodes": r"0|1", "wckey": _ANY, "wrap": _ANY,
}  # fmt: skip
LETTERS: Mapping[str, str] = {
    "A": "account", "a": "array", "b": "begin", "C": "constraint", "c": "cpus-per-task", "D": "chdir",
    "d": "dependency", "e": "error", "G": "gpus", "H": "hold", "i": "input", "J": "job-name", "k": "no-kill",
    "L": "licenses", "M": "clusters", "m": "distribution", "N": "nodes", "n": "ntasks", "O": "overcommit",
    "o": "output", "p": "partition", "Q": "quiet", "q": "qos", "s": "oversubscribe", "S": "core-spec", "t": "time",
    "v": "verbose", "W": "wait", "w": "nodelist", "x": "exclude",
}  # fmt: skip
# What Slurm gives a batch script, what every shell has, and what `set -u` never stumbles over.
GIVEN = re.compile(
    r"SLURM_\w+|SLURMD_\w+|SBATCH_\w+|BASH\w*|PATH|HOME|PWD|OLDPWD|USER|LOGNAME|UID|EUID|SHELL|HOSTNAME|RANDOM|SECONDS|"
    r"LINENO|IFS|OPTARG|OPTIND|FUNCNAME|PPID|LANG|TERM|_"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """One option of an #SBATCH line."""

    name: str
    value: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmScript:
    """A batch script; `wrong` are the lines that sbatch would refuse or not see, with the reason."""

    source: Source
    directives: tuple[Directive, ...]
    wrong: tuple[tuple[int, str], ...]

    def value(self, name: str, default: str = "") -> str:
        """The value of an option; the last one counts."""
        return next((each.value for each in reversed(self.directives) if each.name == name), default)

    def has(self, name: str) -> bool:
        """Whether an option is given."""
        return any(each.name == name for each in self.directives)

    def line(self, name: str) -> int:
        """The line of an option, or of the first one, where it would stand."""
        first = self.directives[0].line if self.directives else 1
        return next((each.line for each in reversed(self.directives) if each.name == name), first)

    def variables(self, num_nodes: int) -> dict[str, str]:
        """What Slurm sets in a job of so many nodes."""
        tasks = self.value("ntasks-per-node", "1")
        return {
            "SLURM_JOB_NUM_NODES": str(num_nodes),
            "SLURM_NNODES": str(num_nodes),
            "SLURM_NTASKS_PER_NODE": tasks,
            "SLURM_NTASKS": str(num_nodes * int(tasks)) if tasks.isdigit() else tasks,
            "SLURM_CPUS_PER_TASK": self.value("cpus-per-task", "1"),
            "SLURM_GPUS_ON_NODE": str(self.gpus_per_node),
        }

    @property
    def gpus_per_node(self) -> int:
        """GPUs of each node, by `--gpus-per-node` or `--gres`."""
        said = self.value("gpus-per-node") or next(
            (part for part in self.value("gres").split(",") if part.startswith("gpu")), ""
        )
        found = re.search(r"(\d+)$", said)
        return int(found.group(1)) if found else int(bool(said))


def read_slurm(source: Source) -> SlurmScript | None:
    """A script's #SBATCH lines; None for a file that has none."""
    if source.kind is not FileKind.SHELL or not re.search(r"^\s*#\s*SBATCH", source.text, re.MULTILINE):
        return None
    directives: list[Directive] = []
    wrong: list[tuple[int, str]] = []
    begun = False
    for number, line in enumerate(source.text.splitlines(), 1):
        if re.match(r"\s*#\s+SBATCH|\s+#SBATCH|#sbatch", line):
            wrong.append((number, "sbatch does not see this line: it must begin with #SBATCH"))
        if line.startswith("#SBATCH"):
            if begun:
                wrong.append((number, "sbatch does not see options behind the first command"))
                continue
            for name, value, why in _options_of(line.removeprefix("#SBATCH")):
                if why:
                    wrong.append((number, why))
                directives.append(Directive(name=name, value=value, line=number))
        elif line.strip() and not line.lstrip().startswith("#"):
            begun = True
    return SlurmScript(source=source, directives=tuple(directives), wrong=tuple(wrong))


def _options_of(text: str) -> Iterator[tuple[str, str, str]]:
    """The options of a line, each with what is wrong with it."""
    words = re.sub(r"\s#.*", "", text).split()
    if not words:
        yield "", "", "no option behind #SBATCH"
    while words:
        word, *words = words
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        elif len(word) >= 2 and word[0] == "-" and word[1] in LETTERS:
            name, value = LETTERS[word[1]], word[2:].lstrip("=")
            equals = value
        else:
            yield word, "", f"{word[:60]!r} is no option of sbatch"
            continue
        if name in OPTIONS and not equals and not re.fullmatch(OPTIONS[name], "") and words:
            value, *words = words
        yield name, value, _wrong(name, value.strip("'\""))


def _wrong(name: str, value: str) -> str:
    if name not in OPTIONS:
        return f"sbatch has no option --{name[:60]}"
    if not re.fullmatch(OPTIONS[name], value, re.IGNORECASE if name == "time" else 0):
        expected = "no value" if OPTIONS[name] == _NONE else f"a value of the form {OPTIONS[name]}"
        return f"--{name}: expected {expected if len(expected) < 60 else 'another value'}, found {value[:60]!r}"
    return ""


def variables_set(source: Source) -> dict[str, str]:
    """The variables that a script gives a value, in whatever way; the value where it can be told."""
    found = {name: value for command in source.commands if not command.comment for name, value in command.set.items()}
    text = re.sub(r"^\s*#.*", "", source.text, flags=re.MULTILINE)
    for words in re.findall(r"\b(?:read(?: -\w+)*|local|declare(?: -\w+)*|readonly|mapfile(?: -\w+)*) ([\w ]+)", text):
        found |= dict.fromkeys(words.split(), "") | found
    for name in re.findall(r"\b(?:for|select) (\w+)|\(\( *(\w+) *=|\bgetopts \S+ (\w+)|-v (\w+)", text):
        found |= dict.fromkeys((part for part in name if part), "") | found
    return found


def variables_used(source: Source) -> Iterator[tuple[str, int, bool]]:
    """The variables that a script reads, the line, and whether it goes on without them (`${NAME:-...}`)."""
    for number, line in enumerate(source.text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        code = re.sub(r"\\\$", "", line)
        code = re.sub(r"(?<=awk )'[^']*'|(?<=sed )'[^']*'", "", code)
        for name, bare_name, rest in re.findall(r"\$\{[!#]?([A-Za-z_]\w*)([^}]*)\}|\$([A-Za-z_]\w*)", code):
            yield (name or rest), number, bool(re.match(r":?[-+?=]", bare_name))
