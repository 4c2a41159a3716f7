"""Whether a folder of jobs would run: that each thing its files use is provided by something in the same folder.

What reads: `text` (YAML with lines, comments, shell), `images` (Dockerfiles), `pods` (Kubernetes, KubeRay, Ray's
launcher), `scripts` (Slurm), `commands` (our own, with their configuration); `folder` makes one set of them. What
asks: `formats` (what each format refuses), `runs` (our commands), `supplies` (what is used and provided), `hosts`
(where and how the work is started).
"""

from collections.abc import Iterator
from pathlib import Path

from sonify.doctor.findings import Finding, Outcome
from sonify.doctor.jobs.folder import JobSet, read_folder
from sonify.doctor.jobs.formats import ask_formats
from sonify.doctor.jobs.hosts import ask_of_hosts
from sonify.doctor.jobs.runs import ask_of_runs, load_all
from sonify.doctor.jobs.supplies import ask_for_supplies
from sonify.doctor.jobs.text import FileKind, Source

MAX_SHOWN = 200  # findings of one folder; nobody reads more


def examine_jobs(folder: Path) -> Iterator[Finding]:
    """Look into every file of a folder; one `ok` for each in which nothing is wrong. No command of a file is run."""
    if not folder.is_dir():
        yield Finding(about=str(folder), outcome=Outcome.FAULT, found="no such folder", todo="--jobs DIR, such as jobs")
        return
    jobs, unread = read_folder(folder)
    seen: set[tuple[str, str]] = set()
    troubled: set[str] = set()
    untold: list[Outcome] = []
    for finding in (*unread, *_ask(jobs)):
        # a container's mistake that three pods share by an alias is one mistake
        if (finding.about, finding.found) in seen:
            continue
        seen.add((finding.about, finding.found))
        if finding.outcome is Outcome.FAULT:
            troubled.add(finding.about.rpartition(":")[0])
        if len(seen) <= MAX_SHOWN:
            yield finding
        else:
            untold.append(finding.outcome)
    if untold:
        faults = untold.count(Outcome.FAULT)
        what = f"{len(untold)} further findings are not shown, {faults} of them faults"
        outcome = Outcome.FAULT if faults else Outcome.NOTE  # which the exit code goes by
        yield Finding(about=str(folder), outcome=outcome, found=what, todo="mend those above, and ask again")
    for source in jobs.sources:
        if source.name not in troubled and source.kind is not FileKind.OTHER:
            yield Finding(about=source.name, outcome=Outcome.OK, found=_describe(jobs, source))
    if not jobs.sources and not unread:
        yield Finding(about=str(folder), outcome=Outcome.FAULT, found="holds no file", todo="--jobs DIR, such as jobs")


def _ask(jobs: JobSet) -> Iterator[Finding]:
    yield from ask_formats(jobs)
    loaded, wrong = load_all(jobs)
    yield from wrong
    yield from ask_of_runs(jobs, loaded)
    yield from ask_for_supplies(jobs)
    yield from ask_of_hosts(jobs, loaded)


def _describe(jobs: JobSet, source: Source) -> str:
    """What was looked at in a file."""
    held = {"command": jobs.commands, "pod": jobs.pods, "node type": jobs.nodes, "stage": jobs.stages}
    counts = {noun: sum(each.source is source for each in rows) for noun, rows in held.items()}
    told = (f"{count} {noun}{'s' * (count != 1)}" for noun, count in counts.items() if count)
    return ", ".join([source.kind.value, *told])
