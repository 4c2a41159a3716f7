"""When a run stops by itself: too many faults, no concept anywhere, no image with a sound."""

from sonify.engine.job import Stage
from sonify.errors import WorkError
from sonify.io.commits import Count
from sonify.rows import NOT_FAULTS, Reason

# Fewer rows than this say nothing about a share of faults.
ROWS_BEFORE_FAULT_LIMIT = 1000
HINT_NO_CAPTIONS = (
    "put a captions.csv (file,caption) in the image folder, or a .txt or .json beside each image, or name a table with"
    " concepts.extractors.0.file, then `--redo concepts`"
)


def check_faults(stage: Stage, rows: Count, max_fault_ratio: float) -> None:
    """Stop a stage that mostly breaks.

    Raises:
        WorkError: after 1,000 rows, the share of faults is above the limit, or no row at all has a concept.
    """
    if rows.rows_in < ROWS_BEFORE_FAULT_LIMIT:
        return
    faults = {reason: n for reason, n in rows.rejected.items() if Reason(reason) not in NOT_FAULTS}
    share = sum(faults.values()) / rows.rows_in
    if share > max_fault_ratio:
        worst = max(faults, key=lambda reason: faults[reason])
        raise WorkError(
            f"{stage.key}: {share:.1%} of {rows.rows_in:,} rows are faults (most: {worst}), above"
            f" engine.max_fault_ratio = {max_fault_ratio:.1%}; look at rejects/{stage.name}, mend the cause and"
            f" `--redo {stage.name}`, or raise the limit"
        )
    check_any_concept(stage, rows)


def check_any_concept(stage: Stage, rows: Count) -> None:
    """Stop where an extractor hears nothing in any image: a broken model must not burn the budget.

    Raises:
        WorkError: rows came in and none has a concept.
    """
    if stage.name == "concepts" and rows.rows_in and not rows.rows_out:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in rows.rejected.items())
        hint = HINT_NO_CAPTIONS if rows.rejected.get(Reason.NO_CAPTION) else "look at rejects/concepts"
        raise WorkError(f"{stage.key}: no image has a sounding concept ({reasons}); {hint}")


def check_any_left(stage: Stage, rows: Count) -> None:
    """Stop where no image can be checked or gets a sound: an empty dataset is no success.

    Raises:
        WorkError: rows came in and none came out.
    """
    if stage.name == "checks" and rows.rows_in and not rows.rows_out:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in rows.rejected.items())
        raise WorkError(f"{stage.key}: no image could be checked ({reasons}); look at rejects/checks")
    if stage.name == "pair" and rows.rows_in and not rows.rows_out:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in rows.rejected.items())
        raise WorkError(
            f"pair: no image got a sound ({reasons}); look at rejects/pair and at retrieval.min_cosine, mend the cause"
            " and `--redo pair`"
        )
