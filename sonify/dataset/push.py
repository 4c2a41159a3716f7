"""Uploads a folder, sealed by its checksums, to the Hugging Face hub; the same command goes on where it broke off.

A published data set is one, a released model another: what they share is here, what tells them apart is an `Upload`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, errors, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from sonify.dataset.format import CHECKSUMS, RECORD, files_of, plain, read_checksums
from sonify.errors import InputError, TransientError
from sonify.installed import spell
from sonify.io.write import FileRecord, sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What is uploaded: `whole` is a file that every such folder has, `made_by` the command that makes one.

    `ours` are patterns of what an earlier upload may have left there and this one has not: what was taken down must not
    stay in the newest revision.
    """

    repo_type: str
    what: str
    whole: str
    made_by: str
    ours: tuple[str, ...]
    example: str
    message: str


DATASET = Upload(
    repo_type="dataset",
    what="publication",
    whole=RECORD,
    made_by=spell("publish", "RUN", "--out", "DIR"),
    ours=("data/*", "clips/*", "shards/*", "plots/*", "audio/*"),
    example="you/sonified-images",
    message="Publish with sonify",
)


def push(
    out: Path, repo: str, dry_run: bool = False, private: bool = False, kind: Upload = DATASET
) -> tuple[FileRecord, ...]:
    """Upload a sealed folder into a repository of the hub, which is made where it is not there; say what goes.

    What is there already is not sent again, and what an earlier upload left there is removed. `dry_run` touches no
    network; `private` refuses a repository that others can see.

    Raises:
        InputError: the folder is none of its kind or is damaged, or the hub refuses the token or the repository.
        TransientError: the hub is not to be reached, or broke off.
    """
    check_repository(repo, kind)
    planned = plan_push(out, kind)
    if not dry_run:
        _upload(out, repo, private, kind)
    return planned


def check_repository(repo: str, kind: Upload) -> None:
    """Refuse what is no repository's name."""
    try:
        validate_repo_id(repo if "/" in repo else "")
    except HFValidationError as error:
        raise InputError(f"--push {repo}: expected a repository such as {kind.example}") from error


def tell_pushed(sent: tuple[FileRecord, ...], repo: str, dry_run: bool) -> Iterator[str]:
    """What a command prints of an upload; of a dry one each file, as its checksums name it."""
    if dry_run:
        yield from (f"{file.sha256}  {file.size_bytes:>12,}  {file.path}" for file in sent)
    size_bytes = sum(file.size_bytes for file in sent)
    size = f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:,.1f} MB"
    yield f"{len(sent):,} files, {size}, {'would go' if dry_run else 'are'} in {repo}"


def plan_push(out: Path, kind: Upload = DATASET) -> tuple[FileRecord, ...]:
    """The files of a sealed folder, each hashed and found as it is listed."""
    listed = _read_checksums(out, kind)
    there = frozenset(files_of(out)) - {CHECKSUMS}
    for name in sorted(listed.keys() ^ there):
        what = "is not there" if name in listed else f"is not of the {kind.what}: {CHECKSUMS} does not list it"
        raise InputError(f"{out}/{name}: {what}; `{kind.made_by}` makes the folder again")
    linked = next((name for name in sorted(listed) if (out / name).is_symlink()), None)
    if linked is not None:
        raise InputError(f"{out}/{linked}: is a link; `{kind.made_by}` makes the folder again")
    changed = next((name for name, sha256 in sorted(listed.items()) if sha256_of(out / name) != sha256), None)
    if changed is not None:
        raise InputError(f"{out}/{changed}: is not what {CHECKSUMS} says; `{kind.made_by}` makes the folder again")
    everything = {**listed, CHECKSUMS: sha256_of(out / CHECKSUMS)}
    return tuple(
        FileRecord(path=name, size_bytes=(out / name).stat().st_size, sha256=sha256)
        for name, sha256 in sorted(everything.items())
    )


def _read_checksums(out: Path, kind: Upload) -> Mapping[str, str]:
    path = out / CHECKSUMS
    try:
        listed = read_checksums(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}): not a folder of a {kind.what}; `{kind.made_by}` makes one"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    if kind.whole not in listed:
        raise InputError(f"{path}: names no {kind.whole}: not the whole of what `{kind.made_by}` writes")
    return listed


def _upload(out: Path, repo: str, private: bool, kind: Upload) -> None:
    token = get_token()
    if token is None:
        raise InputError(f"--push {repo}: no token of the hub is here: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token)
    with _naming_refusals(repo):
        url = api.create_repo(repo, repo_type=kind.repo_type, private=private or None, exist_ok=True)
        if private and not api.repo_info(url.repo_id, repo_type=kind.repo_type).private:
            raise InputError(f"--push {repo}: it is there and public: choose another, or make it private on its page")
        api.upload_folder(
            repo_id=url.repo_id,
            repo_type=kind.repo_type,
            folder_path=out,
            commit_message=kind.message,
            delete_patterns=list(kind.ours),
        )


@contextmanager
def _naming_refusals(repo: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage] - httpx of either version
        # of a file that goes by itself, as large ones do, the library says only which it was
        cause = error.__cause__ if type(error) is RuntimeError else error
        if cause is None:
            raise
        raise _refusal(repo, cause) from error


def _refusal(repo: str, error: BaseException) -> InputError | TransientError:
    said = _one_line(error)
    match error:
        case errors.OfflineModeIsEnabled():
            return InputError(f"--push {repo}: HF_HUB_OFFLINE is set: unset it to upload")
        case errors.HfHubHTTPError():
            return _answered(repo, error)
        case json.JSONDecodeError():
            return TransientError(f"--push {repo}: not the hub's own answer ({error}); the same command goes on")
        case ValueError():  # of the card's head, which the hub checks first
            return InputError(f"--push {repo}: {said}")
    what = f"{type(error).__name__}: {said}"
    return TransientError(f"--push {repo}: the hub is not to be reached ({what}); the same command goes on")


def _answered(repo: str, error: errors.HfHubHTTPError) -> InputError | TransientError:
    status = error.response.status_code
    said = f"--push {repo}: the hub answers {status} ({_one_line(error.server_message or error)})"
    if status == 429 or status >= 500:
        return TransientError(f"{said}; the same command goes on")
    hint = "; is the token allowed to write there? see `hf auth whoami`" if status in (401, 403, 404) else ""
    return InputError(f"{said}{hint}")


def _one_line(said: object) -> str:
    return plain(str(said), longest=500)
