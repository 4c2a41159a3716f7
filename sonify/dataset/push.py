"""Uploads a published folder to the Hugging Face hub; the same command goes on where an upload was broken off."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, errors, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from sonify.dataset.card import plain
from sonify.dataset.format import CHECKSUMS, RECORD, files_of, read_checksums
from sonify.errors import InputError, TransientError
from sonify.installed import spell
from sonify.io.write import FileRecord, sha256_of

# What an earlier publication left there and this one has not: what was taken down must not stay in the newest revision.
OURS = ["data/*", "clips/*", "shards/*", "plots/*", "audio/*"]
MESSAGE = "Publish with sonify"


def push(out: Path, repo: str, dry_run: bool = False, private: bool = False) -> tuple[FileRecord, ...]:
    """Upload a published folder into a data set's repository, which is made where it is not there; say what goes.

    What is there already is not sent again, and what an earlier publication left there is removed. `dry_run` touches
    no network; `private` refuses a repository that others can see.

    Raises:
        InputError: the folder is no publication or is damaged, or the hub refuses the token or the repository.
        TransientError: the hub is not to be reached, or broke off.
    """
    try:
        validate_repo_id(repo if "/" in repo else "")
    except HFValidationError as error:
        raise InputError(f"--push {repo}: expected a repository such as you/sonified-images") from error
    planned = plan_push(out)
    if not dry_run:
        _upload(out, repo, private)
    return planned


def plan_push(out: Path) -> tuple[FileRecord, ...]:
    """The files of a publication, each hashed and found as it is listed."""
    listed = _read_checksums(out)
    there = frozenset(files_of(out)) - {CHECKSUMS}
    for name in sorted(listed.keys() ^ there):
        what = "is not there" if name in listed else f"is not of the publication: {CHECKSUMS} does not list it"
        raise InputError(f"{out}/{name}: {what}; `sonify publish` makes the folder again")
    changed = next((name for name, sha256 in sorted(listed.items()) if sha256_of(out / name) != sha256), None)
    if changed is not None:
        raise InputError(f"{out}/{changed}: is not what {CHECKSUMS} says; `sonify publish` makes the folder again")
    everything = {**listed, CHECKSUMS: sha256_of(out / CHECKSUMS)}
    return tuple(
        FileRecord(path=name, size_bytes=(out / name).stat().st_size, sha256=sha256)
        for name, sha256 in sorted(everything.items())
    )


def _read_checksums(out: Path) -> Mapping[str, str]:
    path = out / CHECKSUMS
    try:
        listed = read_checksums(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}): not a published folder;"
            f" `{spell('publish', 'RUN', '--out', 'DIR')}` makes one"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    if RECORD not in listed:
        raise InputError(f"{path}: names no {RECORD}: not the whole of what `sonify publish` writes")
    return listed


def _upload(out: Path, repo: str, private: bool) -> None:
    token = get_token()
    if token is None:
        raise InputError(f"--push {repo}: no token of the hub is here: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token)
    with _naming_refusals(repo):
        url = api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
        if private and not api.dataset_info(url.repo_id).private:
            raise InputError(f"--push {repo}: it is there and public: choose another, or make it private on its page")
        api.upload_folder(
            repo_id=url.repo_id,
            repo_type="dataset",
            folder_path=out,
            commit_message=MESSAGE,
            delete_patterns=OURS,
        )


@contextmanager
def _naming_refusals(repo: str) -> Iterator[None]:
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise InputError(f"--push {repo}: HF_HUB_OFFLINE is set: unset it to upload") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        said = f"--push {repo}: the hub answers {status} ({_one_line(error.server_message or error)})"
        if status == 429 or status >= 500:
            raise TransientError(f"{said}; the same command goes on") from error
        hint = "; is the token allowed to write there? see `hf auth whoami`" if status in (401, 403, 404) else ""
        raise InputError(f"{said}{hint}") from error
    except json.JSONDecodeError as error:
        raise TransientError(f"--push {repo}: not the hub's own answer ({error}); the same command goes on") from error
    except ValueError as error:  # of the card's head, which the hub checks first
        raise InputError(f"--push {repo}: {_one_line(error)}") from error
    except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage] - httpx of either version
        what = f"{type(error).__name__}: {_one_line(error)}"
        raise TransientError(
            f"--push {repo}: the hub is not to be reached ({what}); the same command goes on"
        ) from error


def _one_line(said: object) -> str:
    return plain(str(said), longest=500)
