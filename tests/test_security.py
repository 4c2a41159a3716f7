"""Each numbered line of SECURITY.md has a test: here, or where it is named."""

import ast
import base64
import contextlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sonify import running
from sonify.config import Config, WebDatasetSounds, make_config
from sonify.dataset.write import PublishOptions, publish
from sonify.errors import InputError, WorkError
from sonify.io.places import load_array
from sonify.report.gallery import build_gallery
from sonify.rows import Reason
from sonify.sources.captions import json_caption
from sonify.sources.sounds.forms import list_webdataset
from sonify.sources.userfiles import read_user_table
from sonify.vlm.answers import parse_concepts
from sonify.vlm.repair import Unusable
from tests.builders import archives_in, picture, small_config, small_input, sound_bytes, tone, vlm_at, write_tar
from tests.vlm.faulty_server import Fault, numbered_image, serving

ROOT = Path(__file__).parent.parent
HERE = "tests/test_security.py"
TESTS = {
    1: (
        f"{HERE}::test_pickles_beside_images_and_sounds_are_never_opened",
        f"{HERE}::test_an_array_of_objects_is_refused",
        "tests/train/test_shards.py::test_a_foreign_member_is_refused_and_not_opened",
        "tests/test_shards.py::test_a_member_that_is_none_of_ours_is_named_and_not_opened",
        "tests/train/test_shards.py::test_an_array_that_is_none_is_refused_unopened",
    ),
    2: (
        "tests/test_models.py::test_a_folder_that_cannot_be_used_is_refused",
        "tests/retrieval/test_laion.py::test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run",
        "tests/train/test_model.py::test_weights_cut_short_or_pickled_are_refused",
    ),
    3: (
        "tests/test_models.py::test_a_download_takes_what_is_needed_and_no_code_or_pickle",
        "tests/train/test_released.py::test_no_code_of_a_release_is_run_by_us",
        "tests/train/test_release_push.py::test_no_code_of_a_release_is_fetched",
        "tests/test_models.py::test_a_processor_that_wants_its_own_code_is_refused",
    ),
    4: (
        f"{HERE}::test_a_hostile_archive_writes_and_reads_nothing_elsewhere",
        "tests/io/test_tars.py::test_any_name_is_only_a_name",
    ),
    5: (
        f"{HERE}::test_a_hostile_archive_writes_and_reads_nothing_elsewhere",
        "tests/io/test_tars.py::test_what_is_no_file_is_rejected_by_name",
        "tests/io/test_tars.py::test_sparse_files_are_rejected_and_passed_over",
    ),
    6: (
        "tests/io/test_tars.py::test_hostile_headers_are_damage",
        "tests/io/test_tars.py::test_endless_headers_take_little_memory_and_time",
        "tests/io/test_tars.py::test_a_name_of_a_megabyte_is_rejected_under_its_beginning",
        "tests/io/test_tars.py::test_every_cut_is_reported_and_nothing_complete_is_lost",
        "tests/fuzz/test_fuzz.py::test_changed_seeds_keep_the_promises",
    ),
    7: (
        "tests/media/test_pixels.py::test_bombs_are_refused_in_little_memory",
        "tests/media/test_pixels.py::test_a_jpeg_of_endless_scans_is_refused",
        "tests/media/test_pixels.py::test_a_tiff_that_libtiff_alone_knows_is_refused",
        "tests/stages/test_concepts.py::test_a_bomb_is_refused_from_its_header",
    ),
    8: (
        "tests/media/test_containers.py::test_ima_adpcm_is_never_given_to_libsndfile",
        "tests/media/test_containers.py::test_a_second_form_cannot_hide_ima_adpcm",
        "tests/media/test_audio.py::test_what_neither_library_is_to_decode_is_refused",
        "tests/media/test_audio.py::test_containers_that_are_not_listed_are_refused",
        "tests/media/test_audio.py::test_impossible_headers_are_refused",
        "tests/media/test_audio.py::test_blocks_do_not_grow_with_the_claim",
        "tests/fuzz/test_fuzz.py::test_changed_seeds_keep_the_promises",
    ),
    9: ("tests/media/test_audio.py::test_a_playlist_is_never_followed",),
    10: (
        f"{HERE}::test_urls_and_commands_in_data_are_not_followed",
        "tests/test_shards.py::test_a_name_is_the_files_own",
        "tests/sources/test_images.py::test_paths_lead_to_files_beside_the_table_and_nowhere_else",
        "tests/sources/test_forms.py::test_a_path_is_relative_to_the_table_and_leads_nowhere_else",
        "tests/sources/test_forms.py::test_a_link_beside_the_table_leads_nowhere_else",
        "tests/sources/test_captions.py::test_a_folder_of_texts_is_not_left_by_a_name",
        "tests/io/test_listing.py::test_links_are_followed_and_a_folder_linked_twice_is_there_twice",
    ),
    11: (
        f"{HERE}::test_json_of_any_depth_is_read_in_bounds",
        "tests/sources/test_images.py::test_a_caption_of_any_length_is_read_in_bounds",
        "tests/vlm/test_endpoint.py::test_an_endless_answer_does_not_fill_the_memory",
        "tests/fuzz/test_fuzz.py::test_every_seed_and_every_finding_keeps_the_promises",
    ),
    12: (
        f"{HERE}::test_a_table_that_unpacks_without_end_is_refused",
        "tests/sources/test_images.py::test_an_image_that_is_too_large_is_refused",
        "tests/sources/test_forms.py::test_memory_follows_the_row_group_and_not_the_file",
    ),
    13: (
        "tests/report/test_gallery.py::test_hostile_text_is_inert_in_the_data_files",
        "tests/report/test_gallery.py::test_hostile_text_is_shown_as_it_is",
        "tests/dataset/test_card.py::test_credits_of_others_do_nothing",
        "tests/dataset/test_card.py::test_words_of_others_do_nothing",
        "tests/eval/test_leakage.py::test_a_line_end_in_a_name_makes_no_line_of_the_list",
    ),
    14: ("tests/engine/test_on_ray.py::test_rows_that_kill_their_worker_are_found_and_rejected",),
    15: (
        "tests/dataset/test_read.py::test_a_changed_file_is_noticed",
        "tests/dataset/test_read.py::test_files_of_other_names_are_refused",
        "tests/dataset/test_read.py::test_other_columns_are_refused",
        "tests/dataset/test_read.py::test_rows_that_nobody_publishes_are_refused",
        "tests/dataset/test_render_from.py::test_a_record_names_no_file_that_is_opened_here",
    ),
    16: (
        f"{HERE}::test_a_password_in_a_configuration_is_refused_and_not_printed",
        "tests/test_config.py::test_a_key_that_stands_where_its_name_belongs_is_not_printed",
    ),
    17: (
        f"{HERE}::test_a_planted_key_is_in_no_file_and_no_output",
        "tests/vlm/test_endpoint.py::test_the_key_is_in_no_error_and_no_log",
        "tests/vlm/test_endpoint.py::test_the_key_is_in_no_answer",
    ),
    18: (
        "tests/vlm/test_endpoint.py::test_redirects_are_not_followed_and_the_key_goes_nowhere_else",
        "tests/vlm/test_endpoint.py::test_a_proxy_of_the_environment_is_not_used",
    ),
    19: ("tests/vlm/test_server.py::test_an_engine_sees_the_gpus_and_no_keys",),
    20: (
        f"{HERE}::test_a_planted_key_is_in_no_file_and_no_output",
        "tests/sources/test_remote.py::test_a_store_that_is_gone_is_transient_and_says_no_secret",
    ),
    21: (
        "tests/dataset/test_write.py::test_no_place_of_the_machine_is_in_it",
        "tests/dataset/test_about.py::test_it_holds_no_place_no_address_and_no_secret",
        "tests/train/test_release.py::test_no_place_of_the_machine_is_in_it",
        "tests/dataset/test_push.py::test_a_wrong_token_is_refused_and_not_repeated",
    ),
    22: (f"{HERE}::test_a_ray_of_ours_listens_on_loopback_only_and_logs_no_key",),
    23: (
        "tests/engine/test_on_ray.py::test_a_cluster_elsewhere_needs_a_token_and_an_absolute_run_directory",
        "tests/engine/test_cluster.py::test_a_cluster_elsewhere_must_refuse_those_without_its_token",
    ),
}


def test_every_line_has_a_test_and_every_test_is_there():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^(\d+)\. ", text, re.MULTILINE)] == list(TESTS)
    for place in {place for places in TESTS.values() for place in places}:
        path, _, name = place.partition("::")
        module = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, place


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return Path.touch, (self.canary,)


def test_pickles_beside_images_and_sounds_are_never_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = pickle.dumps(Bomb(canary))
    images = {"a.jpg": picture(), "a.txt": b"a photo of a dog", "a.pkl": bomb, "a.pyd": bomb, "a.pth": bomb}
    write_tar(tmp_path / "photos" / "0.tar", {**images, "b.jpg": bomb, "b.txt": b"a dog"})
    write_tar(tmp_path / "sounds" / "0.tar", {"a.flac": flac(1), "a.txt": b"dog", "a.pkl": bomb, "b.wav": bomb})
    counts = running.run(archives_config(tmp_path))
    assert counts["pool"].rejected == {Reason.UNREADABLE: 1}
    assert counts["concepts/captions"].rejected == {Reason.UNREADABLE: 1}
    assert counts["render"].rows_out == 1
    assert not canary.exists()
    pickle.loads(bomb)
    assert canary.exists()  # the bomb is one


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    np.save(tmp_path / "x.npy", np.array([Bomb(canary)]), allow_pickle=True)
    with pytest.raises(WorkError, match=r"x\.npy: damaged") as refused:
        load_array(tmp_path / "x.npy")
    assert "Python objects" in str(refused.value.__cause__)
    assert not canary.exists()


def test_a_hostile_archive_writes_and_reads_nothing_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "private.jpg").write_bytes(picture(7))
    kinds = {"link.jpg": tarfile.SYMTYPE, "hard.jpg": tarfile.LNKTYPE, "pipe.jpg": tarfile.FIFOTYPE}
    with tarfile.open(tmp_path / "photos" / "0.tar", "w") as archive:
        for name in ("../../up.jpg", f"{tmp_path}/absolute.jpg", "a\n\x1b[31m.jpg"):
            for path, data in ((name, picture()), (name.replace(".jpg", ".txt"), b"a photo of a dog")):
                member = tarfile.TarInfo(path)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        for name, kind in {**kinds, "zero.jpg": tarfile.CHRTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tmp_path / "private.jpg")
            archive.addfile(member)
    write_tar(tmp_path / "sounds" / "0.tar", {"../../a.flac": flac(1), "../../a.txt": b"dog"})
    before = {path for path in tmp_path.parent.rglob("*") if "run" not in path.relative_to(tmp_path.parent).parts}
    counts = running.run(archives_config(tmp_path))
    after = {path for path in tmp_path.parent.rglob("*") if "run" not in path.relative_to(tmp_path.parent).parts}
    assert after == before
    assert counts["concepts/captions"].rejected == {Reason.UNSUPPORTED: 4}
    assert counts["render"].rows_out == 3
    shard = next((tmp_path / "run" / "shards").rglob("*.tar"))
    with tarfile.open(shard) as written:
        assert all(re.fullmatch(r"[A-Za-z0-9_-]+\.[a-z.]+", member.name) for member in written)


def archives_config(root: Path) -> Config:
    audio = {"sources": [{"kind": "webdataset", "path": str(root / "sounds")}], "validation": 0}
    return small_config(root, images=archives_in(root / "photos"), audio=audio, engine={"max_fault_ratio": 1.0})


def flac(seed: int) -> bytes:
    return sound_bytes(tone(seed))


@contextlib.contextmanager
def counting_server() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that notes what it is asked for."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_urls_and_commands_in_data_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture(3))
    canary = tmp_path / "canary"
    with counting_server() as (url, seen):
        says = f"a dog at {url}/caption $(touch {canary}) `touch {canary}`; {{touch}} <img src={url}/x> ![]({url}/y)"
        paths = [f"{url}/1.jpg", f"file://{secret}", str(secret), "../secret.jpg", "https://127.0.0.1:9/2.jpg"]
        rows = [{"bytes": picture(), "path": f"{url}/0.jpg"}, *({"bytes": None, "path": path} for path in paths)]
        (tmp_path / "photos").mkdir()
        pq.write_table(pa.table({"image": rows, "caption": [says] * 6}), tmp_path / "photos" / "a.parquet")
        sounds = [{"bytes": flac(1), "path": None}, *({"bytes": None, "path": path} for path in paths)]
        (tmp_path / "sounds").mkdir()
        table = {"audio": sounds, "text": ["dog"] * 6, "licence": [says] * 6, "url": [f"{url}/z"] * 6}
        pq.write_table(pa.table(table), tmp_path / "sounds" / "a.parquet")
        images = {"kind": "parquet", "path": str(tmp_path / "photos"), "caption_column": "caption", "validation": 0}
        source = {"kind": "parquet", "path": str(tmp_path / "sounds")}
        counts = running.run(
            small_config(
                tmp_path,
                images=images,
                audio={"sources": [source], "validation": 0},
                engine={"max_fault_ratio": 1.0},
            )
        )
        publish(tmp_path / "run", tmp_path / "published", PublishOptions())
    assert seen == []
    assert not canary.exists()
    assert counts["concepts/captions"].rejected == {Reason.UNSUPPORTED: 5}
    assert counts["pool"].rejected == {Reason.UNSUPPORTED: 5}
    assert counts["render"].rows_out == 1


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"concepts":', '{"caption": "a dog", "x": '])
def test_json_of_any_depth_is_read_in_bounds(opening: str, tmp_path: Path) -> None:
    deep = opening * (2**20 // len(opening))
    start = time.process_time()
    assert json_caption(deep.encode()) == b"\xff not JSON"
    assert isinstance(parse_concepts(deep, 5), Unusable)
    assert isinstance(parse_concepts(deep[:8000], 5), Unusable)
    write_tar(tmp_path / "0.tar", {"a.flac": flac(1), "a.json": deep[:-1].encode()})
    (ref,) = list_webdataset(WebDatasetSounds(kind="webdataset", path=tmp_path))
    assert ref.refused == Reason.BAD_CAPTION
    assert time.process_time() - start < 10


def test_a_table_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonify.sources.userfiles.MAX_TABLE_BYTES", 2**28)
    numbers = pa.array([0] * 20_000, pa.int32())
    long = pa.DictionaryArray.from_arrays(numbers, pa.array(["a dog " * 2**17]))
    table = pa.table({"file": [f"{n}.jpg" for n in range(20_000)], "caption": long})
    pq.write_table(table, tmp_path / "captions.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "captions.parquet").stat().st_size < 2**17
    with pytest.raises(InputError, match="GiB of text"):
        read_user_table(tmp_path / "captions.parquet", ("file", "caption"))


@pytest.mark.parametrize("key", ["run_dir", "images.path"])
def test_a_password_in_a_configuration_is_refused_and_not_printed(key: str, tmp_path: Path) -> None:
    small_input(tmp_path, 1, 1)
    raw = small_config(tmp_path).model_dump(mode="json")
    section, _, name = key.rpartition(".")
    (raw[section] if section else raw)[name] = "s3://AKIAPLANTED:planted-password@bucket/folder"
    with pytest.raises(InputError, match=rf"{key}: expected a URL without user or password") as raised:
        make_config(raw)
    assert "planted" not in str(raised.value).lower()


KEY = "planted-key-7hG2qLx9"
STORE_KEY = "planted/store+secret=0123"

RAISES = """
from sonify.vlm.endpoint import Endpoint
def breaks(endpoint):
    raise RuntimeError("an error of ours")
Endpoint.find_model = breaks
"""


def environment(tmp_path: Path, *patches: str) -> dict[str, str]:
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "sitecustomize.py").write_text("".join(patches))
    planted = {"PLANTED_KEY": KEY, "AWS_SECRET_ACCESS_KEY": STORE_KEY, "AWS_ACCESS_KEY_ID": "planted-id"}
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    return {**os.environ, **planted, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def sonify(environ: dict[str, str], *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "sonify", *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def holds_key(data: bytes) -> bool:
    forms = [(key, quote(key, safe=""), base64.b64encode(key.encode()).decode()[:-3]) for key in (KEY, STORE_KEY)]
    return any(form.encode() in data for both in forms for form in both)


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file of a folder; of packed tables what they hold."""
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            yield path, json.dumps(pq.read_table(path).to_pylist(), default=repr).encode()
        if path.is_file() and not path.is_symlink():
            yield path, path.read_bytes()


def test_a_planted_key_is_in_no_file_and_no_output(tmp_path: Path) -> None:
    small_input(tmp_path, 1, 8)
    for number in range(8):
        numbered_image(number).save(tmp_path / "photos" / f"{number:03d}.jpg", quality=95)
    faults = (Fault("garbage", count=1), Fault("echo", number=1, status=200), Fault("echo", number=2, status=400))
    said: list[str] = []
    with serving(*faults, key=KEY) as server:
        config = tmp_path / "config.yaml"
        extractors = [vlm_at(server.url, api_key_env="PLANTED_KEY")]
        sections = {"concepts": {"extractors": extractors}, "engine": {"max_fault_ratio": 1.0}}
        config.write_text(yaml.safe_dump(small_config(tmp_path, **sections).model_dump(mode="json")))
        code, text = sonify(environment(tmp_path), "--verbose", "run", "--config", str(config))
        assert code == 0, text
        said.append(text)
        build_gallery(tmp_path / "run")
        publish(tmp_path / "run", tmp_path / "published", PublishOptions())
        broken = sonify(environment(tmp_path, RAISES), "run", "--config", str(config), f"run_dir={tmp_path / 'broken'}")
        assert broken[0] == 1
        assert "Traceback" in broken[1]
        said.append(broken[1])
    with serving(key="another") as server:
        changes = (f"concepts.extractors.0.url={server.url}", f"run_dir={tmp_path / 'refused'}")
        refused = sonify(environment(tmp_path), "run", "--config", str(config), *changes)
        assert refused[0] == 2
        said.append(refused[1])
    assert "PLANTED_KEY" in (tmp_path / "run" / "run.json").read_text()  # its name is there
    assert not any(holds_key(text.encode()) for text in said)
    found = list(contents(tmp_path))
    assert [path for path, data in found if holds_key(data)] == []
    assert any(b"Bearer ***" in data for _, data in found)  # what the server said back
    assert holds_key(f"x{KEY}y".encode())


RAY = """
import json, sys
from pathlib import Path
import psutil, ray
from sonify.engine import on_ray
from sonify.running import run
from tests.builders import small_config
root = Path(sys.argv[1])
shutdown, found = ray.shutdown, {}
def addresses(process):
    try:
        return {own.laddr.ip for own in process.net_connections() if own.status == "LISTEN"}
    except psutil.NoSuchProcess:
        return set()  # a worker that ended
def look(*arguments, **named):
    if ray.is_initialized():
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        found["listening"] = sorted(set().union(*map(addresses, family)))
        found["dashboard"] = ray._private.worker.global_worker.node.webui_url
        found["session"] = ray.nodes()[0].get("ObjectStoreSocketName", "").partition("/sockets")[0]
    shutdown(*arguments, **named)
ray.shutdown = look
run(small_config(root, engine={"kind": "ray", "workers": 1}))
ray.shutdown()
print(json.dumps(found))
"""


def test_a_ray_of_ours_listens_on_loopback_only_and_logs_no_key(tmp_path: Path) -> None:
    small_input(tmp_path, 4, 4)
    command = [sys.executable, "-c", RAY, str(tmp_path)]
    with tempfile.TemporaryDirectory() as short:  # a socket's path has at most 107 characters
        environ = environment(tmp_path) | {"RAY_TMPDIR": short}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert {address.removeprefix("::ffff:") for address in found["listening"]} == {"127.0.0.1"}
        assert not found["dashboard"]
        assert (Path(found["session"]) / "logs").is_dir()
        assert [path for path, data in contents(Path(short)) if holds_key(data)] == []
    assert not holds_key((done.stdout + done.stderr).encode())
