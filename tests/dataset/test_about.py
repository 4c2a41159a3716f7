import hashlib
import json

from sonify.config import make_config
from sonify.dataset.about import Tally, make_record, record_json
from sonify.dataset.format import CHECKSUMS, RECORD
from sonify.dataset.render_from import adopt_settings
from sonify.dataset.write import publish
from sonify.engine.record import start_record
from sonify.running import run
from sonify.vlm.questions import check_question, concepts_prompt
from tests.dataset.folders import elsewhere


def record_of(tmp_path):
    for folder in ("photos", "sounds", "models/llava", "models/other/llava"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("weights.pt", "exclude.txt", "captions.csv"):
        (tmp_path / file).write_text("file,caption\n")
    endpoint = {"kind": "vlm", "name": "far", "backend": "endpoint", "model": "org/vlm",
                "url": "http://10.9.8.7:8000/v1", "api_key_env": "MY_SECRET_NAME"}  # fmt: skip
    server = {"kind": "vlm", "name": "near", "backend": "server", "model": str(tmp_path / "models/llava"),
              "command": ["/opt/secret/serve", "--port", "{port}"], "environment": {"TOKEN": "hunter2"}}  # fmt: skip
    sources = [
        {"kind": "folder", "path": str(tmp_path / "sounds")},
        {"kind": "webdataset", "path": "s3://private-bucket/sounds", "licence": "https://example.org/by/4.0/"},
    ]
    config = make_config(
        {
            "run_dir": str(tmp_path / "run"),
            "seed": 7,
            "images": {"kind": "folder", "path": str(tmp_path / "photos"), "exclude": str(tmp_path / "exclude.txt")},
            "audio": {"sources": sources, "clip_seconds": 4.0},
            "concepts": {
                "extractors": [
                    endpoint,
                    server,
                    {"kind": "captions", "file": str(tmp_path / "captions.csv")},
                ],
                "check": True,
                "checker": endpoint,
                "max_concepts": 3,
            },
            "retrieval": {"encoder": {"kind": "laion_clap", "checkpoint": str(tmp_path / "weights.pt")}},
            "engine": {"kind": "ray", "address": "ray://10.9.8.7:10001"},
        },
        check_paths=False,
    )
    run = start_record(config, None)
    models = {
        str(tmp_path / "models/llava"): "1" * 64,
        str(tmp_path / "models/other/llava"): "2" * 64,
        "org/vlm@main": "c0ffee",
    }
    return make_record(config, type(run)(**{**dict_of(run), "models": models}), Tally().statistics())


def dict_of(run):
    return {name: getattr(run, name) for name in run.__slots__}


def test_it_holds_no_place_no_address_and_no_secret(tmp_path):
    text = record_json(record_of(tmp_path)).decode()
    hidden = ("10.9.8.7", "MY_SECRET_NAME", "hunter2", "/opt", "private-bucket", "exclude.txt", "captions.csv")
    assert [word for word in (str(tmp_path), *hidden) if word in text] == []


def test_it_holds_what_rendering_elsewhere_needs_and_how_models_were_asked(tmp_path):
    record = json.loads(record_json(record_of(tmp_path)))
    assert record["format"] == 1
    assert record["scenes"] == ["far", "near", "captions"]
    config = record["config"]
    assert (config["seed"], config["audio"]["clip_seconds"], config["audio"]["sample_rate"]) == (7, 4.0, 16000)
    assert config["mix"]["lufs"] == [-32.0, -28.0]
    assert [source["name"] for source in config["audio"]["sources"]] == ["folder", "webdataset"]
    assert config["audio"]["sources"][1]["licence"] == "https://example.org/by/4.0/"
    assert config["retrieval"]["encoder"]["checkpoint"] == "weights.pt"
    assert [extractor.get("model") for extractor in config["concepts"]["extractors"]] == ["org/vlm", "llava", None]
    assert record["models"] == {"llava": "1" * 64, "llava (222222222222)": "2" * 64, "org/vlm@main": "c0ffee"}
    checks = {f"{name} (check)": check_question(["..."]) for name in ("far", "near", "captions")}
    assert record["prompts"] == {"far": concepts_prompt(3), "near": concepts_prompt(3)} | checks
    assert "sonify" in record["versions"]


def test_a_dataset_that_is_rendered_again_and_published_says_how_its_concepts_were_found(copy):
    first = json.loads((copy / "published" / RECORD).read_bytes())
    first["prompts"], first["models"] = {"llava": "what is heard?", "odd": 5}, {"llava": "c0ffee"}
    first["config"]["concepts"]["max_concepts"] = 4
    before = hashlib.sha256((copy / "published" / RECORD).read_bytes()).hexdigest()
    changed = json.dumps(first).encode()
    (copy / "published" / RECORD).write_bytes(changed)
    checksums = (copy / "published" / CHECKSUMS).read_text()
    (copy / "published" / CHECKSUMS).write_text(checksums.replace(before, hashlib.sha256(changed).hexdigest()))
    again = elsewhere(copy)
    run(adopt_settings(again.model_copy(update={"run_dir": copy / "again"})))
    record = publish(copy / "again", copy / "published again").record
    assert record.rendered_from == hashlib.sha256((copy / "published" / CHECKSUMS).read_bytes()).hexdigest()
    assert first["rendered_from"] == ""
    assert "shard_size" in first["config"]["images"]
    assert "shard_size" not in record.config["images"]  # it is not what the units follow
    assert record.config["concepts"]["max_concepts"] == 4
    assert "published" not in record.config
    assert record.prompts == {"llava": "what is heard?"}
    assert record.models == {"llava": "c0ffee"}
    for name in ("data", "clips", "shards"):
        tables = sorted(path.name for path in (copy / "published" / name).iterdir())
        assert tables == sorted(path.name for path in (copy / "published again" / name).iterdir())
        for table in tables:
            assert (copy / "published again" / name / table).read_bytes() == (
                copy / "published" / name / table
            ).read_bytes()
