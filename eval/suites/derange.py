"""Who is given the picture of another: a seeded permutation of items in which nobody meets itself or its like."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from eval.suites.suite import Item
from sonify.errors import InputError


def derange(items: Sequence[Item], seed: int, across: Literal["labels", "recordings"] = "labels") -> dict[str, str]:
    """The donor of each item, by id: always of another recording, and of other labels where `across` says so. An item
    with the same sound or a common picture is no other.

    Each item gives once and is given once. Items without labels are like nobody. The outcome depends on the ids and the
    seed, not on the items' order.

    Raises:
        InputError: there is no such permutation, as where a label is that of more than half of the items.
    """
    circle = sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{item.id}".encode()).digest())
    given = _match(circle, across)
    if len(given) < len(circle):
        raise InputError(_why_none(circle, across))
    return {circle[taker].id: circle[donor].id for taker, donor in sorted(given.items())}


def _match(circle: Sequence[Item], across: str) -> dict[int, int]:
    """The largest matching of takers with donors, begun with each one's next in the circle (Kuhn's algorithm)."""
    count = len(circle)
    files = [_files_of(item) for item in circle]
    labels = [frozenset(item.labels) if across == "labels" else frozenset[str]() for item in circle]

    def may_give(taker: int, donor: int) -> bool:
        other = circle[taker].recording != circle[donor].recording
        return other and labels[taker].isdisjoint(labels[donor]) and files[taker].isdisjoint(files[donor])

    given = {n: (n + 1) % count for n in range(count) if may_give(n, (n + 1) % count)}
    taken = {donor: taker for taker, donor in given.items()}

    def find_for(first: int) -> None:
        asked: dict[int, int] = {}
        queue = [first]
        for taker in queue:
            for donor in ((taker + step) % count for step in range(1, count)):
                if donor in asked or not may_give(taker, donor):
                    continue
                asked[donor] = taker
                if donor not in taken:
                    _hand_on(donor, asked, given, taken)
                    return
                queue.append(taken[donor])

    for taker in range(count):
        if taker not in given:
            find_for(taker)
    return given


def _files_of(item: Item) -> frozenset[str]:
    return frozenset([item.sound.sha256, *(reference.sha256 for reference in item.references)])


def _hand_on(donor: int, asked: dict[int, int], given: dict[int, int], taken: dict[int, int]) -> None:
    """Give a free donor to who asked for it, that one's former donor to who asked for that, and so on."""
    free: int | None = donor
    while free is not None:
        taker = asked[free]
        before = given.get(taker)
        given[taker], taken[free] = free, taker
        free = before


def _why_none(items: Sequence[Item], across: str) -> str:
    kinds = {"recording": Counter(item.recording for item in items)}
    if across == "labels":
        kinds["label"] = Counter(label for item in items for label in set(item.labels))
    kinds["file"] = Counter(sha256 for item in items for sha256 in _files_of(item))
    most = {what: named.most_common(1)[0] for what, named in kinds.items() if named}
    what, (name, count) = max(most.items(), key=lambda each: each[1][1], default=("recording", ("", 0)))
    return (
        f"{len(items)} items cannot all be given the picture of another recording"
        f"{' of other labels' if across == 'labels' else ''}: {count} of them are of the {what} {name[:40]!r}; expected"
        " that none has more than half of them"
    )
