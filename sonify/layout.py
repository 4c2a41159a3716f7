"""Where everything lies in a run directory: the contract, as paths relative to it."""

RUN = "run.json"
LOCK = "lock"
TEMPORARY = "tmp"
SEARCHED = "tmp/searched"  # the pool's vectors as a machine's workers share them; on a disk gone when the command ends
COMMITS = "commits"
UNITS = "units"
CLIPS = "pool/clips"
AUDIO = "pool/audio"
EMBEDDINGS = "pool/embeddings"
TAGS = "pool/tags"
SOUND_HASHES = "pool/duplicates"
DUPLICATES = "pool/duplicates.parquet"  # the recordings that are copies of each other
ANSWERS = "answers"
CONCEPTS = "concepts"
CHECKS = "checks"
COPIES = "copies"
PUBLISHED = "published"  # in the place of an extractor: what a published dataset says
PAIRS = "pairs"
RENDERS = "renders"
SHARDS = "shards"
FEATURES = "features"
REJECTS = "rejects"
GALLERY = "gallery"
LOGS = "logs"

SPLITS = ("train", "validation")

# What a stage writes besides commits and rejects.
STAGE_FOLDERS = {
    "pool": (CLIPS, AUDIO),
    "embeddings": (),
    "listen": (),
    "duplicates": (SOUND_HASHES, DUPLICATES),
    "concepts": (CONCEPTS,),
    "checks": (CHECKS,),
    "copies": (COPIES,),
    "pair": (PAIRS,),
    "render": (RENDERS, SHARDS),
    "features": (FEATURES,),
}
# What models were asked for stays when a stage is redone, and is used again where it still answers the question;
# redoing it by its own name forgets it.
RECORDED = {"answers": ANSWERS, "embeddings": EMBEDDINGS, "tags": TAGS}


def listing(stage: str, unit: str) -> str:
    """The frozen input of a unit."""
    return f"{UNITS}/{stage}/{unit}.parquet"


def clips(unit: str) -> str:
    """A pool unit's clips."""
    return f"{CLIPS}/{unit}.parquet"


def audio(unit: str) -> str:
    """The samples of those clips, row for row."""
    return f"{AUDIO}/{unit}.npy"


def embeddings(encoder: str, unit: str) -> str:
    """The embeddings of those clips, row for row, in the space of one part of an encoder."""
    return f"{EMBEDDINGS}/{encoder}/{unit}.npy"


def embedding_keys(encoder: str, unit: str) -> str:
    """What each of those embeddings was made from."""
    return f"{EMBEDDINGS}/{encoder}/{unit}.parquet"


def tags(listener: str, unit: str) -> str:
    """What one listener heard in a pool unit's clips."""
    return f"{TAGS}/{listener}/{unit}.parquet"


def sound_hashes(unit: str) -> str:
    """The hashes of those clips, row for row, by which copies are found."""
    return f"{SOUND_HASHES}/{unit}.npy"


def concepts(extractor: str, unit: str) -> str:
    """What one extractor heard in a unit's images."""
    return f"{CONCEPTS}/{extractor}/{unit}.parquet"


def answers(name: str, unit: str) -> str:
    """What a model said of a unit's images, unparsed."""
    return f"{ANSWERS}/{name}/{unit}.parquet"


def checks(extractor: str, unit: str) -> str:
    """What the check found of one extractor's concepts."""
    return f"{CHECKS}/{extractor}/{unit}.parquet"


def copies(unit: str) -> str:
    """What of a published unit's clips the pool holds."""
    return f"{COPIES}/{unit}.parquet"


def pairs(unit: str) -> str:
    """What is heard in a unit's images."""
    return f"{PAIRS}/{unit}.parquet"


def renders(unit: str) -> str:
    """What rendering did to a unit's scenes."""
    return f"{RENDERS}/{unit}.parquet"


def shard(split: str, unit: str) -> str:
    """A unit's WebDataset archive."""
    return f"{SHARDS}/{split}/{unit}.tar"


def features(split: str, unit: str) -> str:
    """A unit's archive of training samples."""
    return f"{FEATURES}/{split}/{unit}.tar"


def feature_index(split: str, unit: str) -> str:
    """Where in that archive each sample lies, with its sha256."""
    return f"{FEATURES}/{split}/{unit}.parquet"


def rejects(stage: str, part: str, unit: str) -> str:
    """The rows of a unit that left, and why; `part` tells a stage's extractors apart."""
    return f"{REJECTS}/{stage}/{unit}{'.' + part if part else ''}.parquet"


def commit(stage: str, digest: str, unit: str) -> str:
    """A unit's commit record."""
    return f"{COMMITS}/{stage}/{digest}/{unit}.json"
