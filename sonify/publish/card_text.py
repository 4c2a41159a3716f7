"""The words of a card that are the same for every dataset."""

WITH_AUDIO = "The mixed sounds lie in `audio`; images are not in this folder."
WITHOUT_AUDIO = "Neither images nor sounds are in this folder: who has copies of them renders it again."

LOADING = """
```python
import datasets

pairs = datasets.load_dataset("DIR", "pairs")  # this folder, or its name on the hub
```

| table | a row |
|---|---|
| `pairs` | a scene of an image: its sounds, their loudness, the sha256 of the mix, the conditions of its use |
| `clips` | a clip that is heard: corpus, file, start, loudness, text, licence, attribution, sha256, fingerprint |
| `shards` | a rendered archive with its sha256, to compare a rendering with; not where `complete` is false, \
since some of its images are not published |
"""

STAGES = """The method is that of the paper "Seeing Sound" (arXiv 2501.05413), as `sonify` does it:

1. Recordings are cut into clips, brought to one rate and one channel, and their loudness (BS.1770) is measured.
2. An extractor names the concepts that can be heard in each image: a vision-language model that is asked, or the
   sounds that a caption names.
3. For each concept, the clips nearest to its description are the candidates, and one is drawn.
4. Each clip is brought to a target loudness, and the clips of a scene are summed.

Everything random follows from the seed and the row, so that the same inputs give the same bytes.
"""

CONDITIONS = """It does not cover the images
and the recordings, which have their own. The `conditions` of a scene are the union over its clips and its image; its
clips' licences are in `clips`, credits in [ATTRIBUTION.md](ATTRIBUTION.md). They were sorted by a program from what the
corpora state: `unknown` is what it did not recognise, and nothing here is legal advice.

| condition | what it means for a mix |
|---|---|
| BY | credit the recordings |
| NC | no commercial use |
| SA, NC-SA | pass it on under the same licence: of BY-SA, of BY-NC-SA; the two exclude each other |
| ND | no mixes are passed on |
| research only, no redistribution, unknown | no mix is passed on; each user renders it from a copy of their own |

`pairs.filter(lambda row: row["redistributable"])` keeps what could be passed on, `"NC" not in row["conditions"]` what
may be used commercially as far as NC goes.
"""

REPUBLISHED = """It is another rendering of a dataset that was published before, which decided images, concepts, clips
and loudness: the one whose `checksums.sha256` has the sha256
`{digest}`.
"""

COPIES = """Of {sounds:,} sounds, {exact:,} are the published clips themselves, {equivalent:,} are other encodings of
them (`copy` in `sources` is `equivalent`), and {repaired:,} are other recordings in the place of lost ones
(`repaired`).
"""

LIMITS = """- Nobody listened where the images were taken: which sounds belong to an image was said by models or
  captions, and which recording stands for a concept was found by comparison. No step asks a person.
- Drawings, statues and pictures of things are taken for things that sound.
- Sounds are mixed at drawn loudness, without the distance, the room or the direction that the image shows."""
LIMIT_VLM = "- Vision-language models invent sounds by association: the paper reports seagulls at any beach."
LIMIT_FACES = "- In SA-1B faces are blurred, which hides from models who speaks or sings."
LIMIT_NEAREST = "- A concept for which the pool has no good recording gets the nearest one."
LIMIT_COSINE = (
    "- A concept is dropped where the nearest clip's cosine is below {min_cosine}; what is above may be wrong."
)
LIMIT_UNMEASURED = "- The share of wrong concepts and of wrong recordings in this dataset is not measured."

RENDERING = """## Render it

With this folder, the images and the recordings (where to find each: `image_uri` in `pairs`, `corpus`, `recording` and
`file` in `clips`), write what lies where into a file:

{config}

and let `sonify` render:

    hf download NAME --repo-type dataset --local-dir DIR       # NAME on the hub; not needed where DIR is here
    sonify render --from DIR --config mine.yaml

It says first, by corpus, what is missing or different. `--missing skip` leaves out the images that lost a clip, and
`--missing repair` draws another candidate from the recordings that are there, and says so in the pair. The same
library versions on the same CPU family give the bytes whose sha256 are in `shards`; else compare `mix_sha256`.
"""

TAKEDOWNS = """## Takedowns

Who holds rights in an image or a recording, or is seen or heard in one, asks for its removal in a discussion on this
dataset's page, naming its `image`, or its `recording` or `clip`. Publishing again with `--exclude` leaves it out, with
every scene that it is part of; earlier revisions on a hub stay until their history is deleted.
"""
