import hashlib
from pathlib import Path

import pytest
from huggingface_hub import constants

from sonify.dataset.card import CARD, write_card
from sonify.dataset.format import CHECKSUMS, RECORD
from sonify.dataset.push import plan_push, push
from sonify.errors import InputError, TransientError
from tests.dataset.folders import record, seal, small_folder
from tests.dataset.hub import TOKEN, Hub, logged_in, plainly, sha256

REPO = "me/set"


@pytest.fixture
def out(tmp_path) -> Path:
    folder = small_folder(tmp_path / "set")
    (folder / RECORD).write_text("{}")
    write_card(folder, record(), "other")
    seal(folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with logged_in(monkeypatch, tmp_path) as hub:
        yield hub


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_all_of_the_folder_goes(out, hub: Hub):
    sent = push(out, REPO)
    assert hub.files == contents(out)
    assert hub.validated == [(out / CARD).read_text()]
    assert hub.created == [{"name": "set", "organization": "me", "type": "dataset"}]
    assert hub.committed_to == [f"/api/datasets/{REPO}/commit/main"]
    assert {one.path: (one.size_bytes, one.sha256) for one in sent} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in contents(out).items()
    }


def test_a_dry_run_says_the_same_and_asks_nobody(out, hub: Hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    planned = push(out, REPO, dry_run=True)
    assert (hub.requests, hub.files) == (0, {})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert push(out, REPO) == planned


def test_the_same_command_sends_only_what_is_not_there(out, hub: Hub):
    push(out, REPO)
    push(out, REPO)
    assert len(hub.commits) == 1
    (out / RECORD).write_text('{"a": 1}')
    seal(out)
    push(out, REPO)
    assert hub.commits[1:] == [[CHECKSUMS, RECORD]]


def test_a_place_that_cannot_be_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        push(tmp_path / ("n" * 300), REPO, dry_run=True)


def test_an_upload_that_broke_off_goes_on(out, hub: Hub):
    hub.refuse = {"/commit/": 403}
    with pytest.raises(InputError, match="403"):
        push(out, REPO)
    assert hub.files == {}
    hub.refuse = {}
    push(out, REPO)
    assert hub.files == contents(out)


@pytest.fixture
def plain_hub(hub: Hub, monkeypatch):
    with plainly(monkeypatch):
        yield hub


def test_a_large_file_that_arrived_before_the_line_broke_is_not_sent_again(out, plain_hub: Hub):
    hub = plain_hub
    hub.large = (".parquet",)
    hub.closes_after = 1
    with pytest.raises(TransientError, match=r"the hub is not to be reached .*; the same command goes on") as broken:
        push(out, REPO)
    assert "\n" not in str(broken.value)
    assert (hub.files, len(hub.stored)) == ({}, 1)
    hub.closes_after = None
    push(out, REPO)
    assert hub.files == contents(out)
    large = sorted(sha256(data) for name, data in contents(out).items() if name.endswith(".parquet"))
    assert sorted(hub.sent_large) == large
    push(out, REPO)
    assert len(hub.sent_large) == len(large)


def test_a_large_file_that_is_refused_is_one_line(out, plain_hub: Hub):
    plain_hub.large = (".parquet",)
    plain_hub.refuse = {"/large/": 403}
    with pytest.raises(InputError, match="the hub answers 403") as refused:
        push(out, REPO)
    assert "\n" not in str(refused.value)
    assert plain_hub.files == {}


def test_a_storage_that_refuses_is_one_line(out, hub: Hub):
    hub.large = (".parquet",)
    hub.refuse = {"/xet-write-token/": 403}
    with pytest.raises(TransientError, match=r"the hub is not to be reached .*403 Forbidden") as refused:
        push(out, REPO)
    assert "\n" not in str(refused.value)
    assert hub.files == {}


def test_what_was_taken_down_leaves_and_what_is_not_ours_stays(out, hub: Hub):
    others = {"data/train-gone.parquet": b"x", "LICENSE": b"mine", ".gitattributes": b"y"}
    hub.files = dict(others)
    push(out, REPO)
    assert hub.files == contents(out) | {name: others[name] for name in ("LICENSE", ".gitattributes")}


def test_a_private_upload_into_a_public_repository_is_refused(out, hub: Hub):
    with pytest.raises(InputError, match="it is there and public"):
        push(out, REPO, private=True)
    assert hub.commits == []
    hub.private = True
    push(out, REPO, private=True)
    assert hub.created[-1]["visibility"] == "private"
    assert hub.files == contents(out)


def change(out: Path) -> str:
    path = out / "clips/esc50-0.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    return "clips/esc50-0.parquet: is not what"


def remove(out: Path) -> str:
    (out / "data/train-u.parquet").unlink()
    return "data/train-u.parquet: is not there"


def add(out: Path) -> str:
    (out / "data/.env").write_text("secret")
    return r"data/.env: is not of the publication"


def link(out: Path) -> str:
    path = out / "clips/esc50-0.parquet"
    path.rename(out.parent / "elsewhere")
    path.symlink_to(out.parent / "elsewhere")
    return "clips/esc50-0.parquet: is a link"


def unseal(out: Path) -> str:
    (out / CHECKSUMS).unlink()
    return "not a folder of a publication"


def scribble(out: Path) -> str:
    (out / CHECKSUMS).write_text("nothing\n")
    return "expected a sha256 and a name in each line"


def lead_out(out: Path) -> str:
    (out.parent / "secret").write_text("x")
    (out / CHECKSUMS).write_text((out / CHECKSUMS).read_text() + f"{hashlib.sha256(b'x').hexdigest()}  ../secret\n")
    return r"\.\./secret: is not there"


@pytest.mark.parametrize("damage", [change, remove, add, link, unseal, scribble, lead_out])
def test_a_folder_that_is_not_as_it_was_published_is_refused(out, hub: Hub, damage):
    said = damage(out)
    for dry_run in (True, False):
        with pytest.raises(InputError, match=said) as refused:
            push(out, REPO, dry_run=dry_run)
        assert "\n" not in str(refused.value)
    assert hub.requests == 0


@pytest.mark.parametrize("repo", ["", "a/b/c", "../x", "me/s e t"])
def test_a_repository_that_cannot_be_is_refused(out, repo):
    with pytest.raises(InputError, match="expected a repository such as"):
        push(out, repo, dry_run=True)


def test_without_a_token_nobody_is_asked(out, hub: Hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="no token of the hub is here"):
        push(out, REPO)
    assert hub.requests == 0


def test_a_wrong_token_is_refused_and_not_repeated(out, hub: Hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="the hub answers 401") as refused:
        push(out, REPO)
    assert "hf_wrong" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("status", [403, 404, 409])
def test_what_the_hub_refuses_is_one_line(out, hub: Hub, status):
    hub.refuse = {"/preupload/": status}
    with pytest.raises(InputError, match=f"the hub answers {status} \\(not today: never no such licence\\)") as refused:
        push(out, REPO)
    assert "\n" not in str(refused.value)


def test_a_card_that_the_hub_does_not_take_is_one_line(out, hub: Hub):
    hub.refuse = {"/api/validate-yaml": 400}
    with pytest.raises(InputError, match=r"Invalid metadata in README\.md\. - no such licence$"):
        push(out, REPO)
    assert hub.commits == []


def test_a_page_of_somebody_between_is_no_fault_of_the_input(out, hub: Hub):
    hub.behind_a_proxy = True
    with pytest.raises(TransientError, match="not the hub's own answer"):
        push(out, REPO)


def test_a_hub_that_fails_or_is_away_is_no_fault_of_the_input(out, hub: Hub, monkeypatch):
    hub.refuse = {"/api/repos/create": 503}
    with pytest.raises(TransientError, match="the hub answers 503"):
        push(out, REPO)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransientError, match="not to be reached"):
        push(out, REPO)


def test_an_offline_library_says_so(out, hub: Hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        push(out, REPO)


def test_the_plan_is_sorted(out):
    paths = [one.path for one in plan_push(out)]
    assert paths == sorted(contents(out))
