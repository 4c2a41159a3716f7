"""Fetching, checking and loading models: a hub on loopback, real folders, and what is wrong with them in one line."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    ClapModel,
    ClapProcessor,
    LlavaForConditionalGeneration,
)

from sonify.errors import InputError
from sonify.models.fetch import CLAP_FILES, TOKENIZER_FILES, VLM_FILES, Files, ask_hub, fetch_model
from sonify.models.loading import choose_device, load_network, load_part
from tests.builders import refused
from tests.servers import COMMIT, MODEL, ModelHub, away_from_hub, put_into_cache, running_hub
from tests.tiny_networks import edit_json, edit_weights, tiny_clap, tiny_llava

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("built") / "llava")


@pytest.fixture
def llava(built: Path, tmp_path: Path) -> Path:
    """A folder of its own to break."""
    return Path(shutil.copytree(built, tmp_path / "llava"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no hub to be reached."""
    away_from_hub(monkeypatch, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def hub(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    with running_hub(monkeypatch, tmp_path / "cache", llava) as hub:
        yield hub


def refusal(model: str, revision: str | None = None, files: Files = VLM_FILES) -> str:
    with refused(None) as caught:
        fetch_model(model, revision, files)
    return str(caught.value)


def test_a_download_takes_what_is_needed_and_no_code_or_pickle(hub: ModelHub) -> None:
    for unwanted in ("pytorch_model.bin", "modeling_own.py", "training_args.pt", "onnx/config.json", "README.md"):
        (hub.folder / unwanted).parent.mkdir(exist_ok=True)
        (hub.folder / unwanted).write_text("{}")

    fetched = fetch_model(MODEL, None, VLM_FILES)

    assert fetched.identity == COMMIT
    assert sorted(path.name for path in fetched.path.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_what_was_fetched_is_found_again_without_asking_the_hub(hub: ModelHub, revision: str | None) -> None:
    first = fetch_model(MODEL, None, VLM_FILES)
    hub.asked.clear()

    assert fetch_model(MODEL, revision, VLM_FILES) == first
    assert hub.asked == []


def test_an_unfinished_snapshot_is_completed(hub: ModelHub) -> None:
    fetch_model(MODEL, None, TOKENIZER_FILES)

    fetched = fetch_model(MODEL, None, VLM_FILES)

    assert (fetched.path / "model.safetensors").is_file()


def test_unknown_models_and_revisions_are_told_apart(hub: ModelHub) -> None:
    assert "no such model" in refusal("some-people/another")
    assert f"has {MODEL}, but no revision v9" in refusal(MODEL, "v9")


def _twist(kind: type, change: Callable[[Any], Any]) -> Callable[[ModelHub], None]:
    """Change the answers that are about a model (a dict), or its list of files."""

    def apply(hub: ModelHub) -> None:
        hub.twists = lambda answer: change(answer) if isinstance(answer, kind) else answer

    return apply


def _other_commit(hub: ModelHub) -> None:
    hub.commit = "../../../../evil"


NO_ANSWERS = [
    _twist(dict, lambda about: about | {"sha": "../../../../evil"}),
    _twist(dict, lambda about: about | {"sha": None}),
    _twist(dict, lambda about: about | {"sha": 5}),
    _twist(dict, lambda about: about | {"siblings": [{}]}),
    _twist(dict, lambda _about: {}),
    _twist(dict, lambda _about: []),
    _twist(dict, lambda _about: None),
]
NO_FILES = [
    _other_commit,
    _twist(list, lambda _files: {"no": "list"}),
    _twist(list, lambda _files: [{}]),
    _twist(list, lambda _files: None),
]


@pytest.mark.parametrize("harm", [*NO_ANSWERS, *NO_FILES])
def test_an_answer_of_the_hub_that_is_none_is_one_line(
    hub: ModelHub, tmp_path: Path, harm: Callable[[ModelHub], None]
) -> None:
    harm(hub)

    said = refusal(MODEL)

    assert said.startswith(f"{MODEL}: what the hub answers is of no use (")
    assert "\n" not in said
    assert not [path for path in tmp_path.parent.rglob("*evil*") if tmp_path in path.parents]


@pytest.mark.parametrize("harm", [*NO_ANSWERS, _twist(dict, lambda about: about | {"siblings": [{"rfilename": 5}]})])
def test_a_size_that_the_hub_does_not_tell_is_one_line(hub: ModelHub, harm: Callable[[ModelHub], None]) -> None:
    assert ask_hub(MODEL, None, VLM_FILES).commit == COMMIT
    harm(hub)

    with refused(f"{MODEL}: what the hub answers is of no use"):
        ask_hub(MODEL, None, VLM_FILES)


def test_a_model_in_the_cache_needs_no_network(cache: Path, llava: Path) -> None:
    snapshot = put_into_cache(cache, llava)

    fetched = fetch_model(MODEL, None, VLM_FILES)

    assert (fetched.path, fetched.identity) == (snapshot, COMMIT)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("revision", [None, "v1.5", COMMIT])
def test_without_files_and_network_a_line_says_how_to_get_them(
    hub: ModelHub, monkeypatch: pytest.MonkeyPatch, offline: bool, revision: str | None
) -> None:
    hub.away = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)

    said = refusal(MODEL, revision)

    assert len(hub.asked) == (0 if offline else 1)  # nobody waits for it again and again

    assert f"hf download {MODEL}{f' --revision {revision}' if revision else ''} --include '*.json'" in said
    assert said.startswith(f"{MODEL}@{revision}" if revision else MODEL)
    assert "HF_HOME" in said


def test_what_is_wrong_with_a_cached_model_is_said_rather_than_that_the_hub_is_away(cache: Path, llava: Path) -> None:
    put_into_cache(cache, llava).joinpath("tokenizer.json").unlink()

    assert "has no file of a tokenizer" in refusal(MODEL)


@pytest.mark.parametrize(
    "model", ["./not/there", "/not/there", "a/b/c", "~/none", "no such", "-x/y", "../x", "a--b", "x.git"]
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(cache: Path, model: str) -> None:
    assert refusal(model).startswith(f"{model}: there is no such folder")


def test_a_folder_has_no_revision(llava: Path) -> None:
    assert "set `revision: null` instead of v1" in refusal(str(llava), "v1")


def shard(folder: Path) -> None:
    LlavaForConditionalGeneration.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _config_cut(folder: Path) -> None:
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes()[:50])


def _config_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _cut_in_the_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def _empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")


def _without_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00007.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def _index_leads_out(folder: Path) -> None:
    shard(folder)
    edit_json(
        folder / "model.safetensors.index.json",
        lambda index: index["weight_map"].update(dict.fromkeys(index["weight_map"], "../other/model.safetensors")),
    )


def _index_beside_the_whole(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "/etc/passwd"}}')


def _index_of_no_name(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": ""}}')


def _without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _without_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def _bert(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(model_type="bert"))


def _own_code(folder: Path) -> None:
    edit_json(
        folder / "config.json",
        lambda config: config.update(model_type="cogvlm", auto_map={"AutoModelForCausalLM": "own.CogVLM"}),
    )


def _without_type(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.pop("model_type"))


@pytest.mark.parametrize(
    ("break_folder", "expected"),
    [
        (_without_config, "no config.json"),
        (_config_cut, "config.json: not JSON"),
        (_config_list, "expected a JSON object, found list"),
        (_without_type, "expected a `model_type`"),
        (_bert, "expected a model that answers about images"),
        (_own_code, "backend: server"),
        (_without_weights, "found neither"),
        (_pickled, "pytorch_model.bin, which is a pickle"),
        (_cut, "cut short"),
        (_cut_in_the_header, "cut short"),
        (_empty, "cut short"),
        (_pointer, "cut short"),
        (_without_a_shard, "which is missing"),
        (_index_leads_out, "expected the names of files beside it, found '../other/model.safetensors'"),
        (_index_beside_the_whole, "expected the names of files beside it, found '/etc/passwd'"),
        (_index_of_no_name, "expected the names of files beside it, found ''"),
        (_without_tokenizer, "tokenizer"),
        (_without_processor, "processor"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    llava: Path, break_folder: Callable[[Path], None], expected: str
) -> None:
    break_folder(llava)

    said = refusal(str(llava))

    assert said.startswith(str(llava))
    assert expected in said


def test_another_kind_of_model_is_named_with_what_was_expected(llava: Path, tmp_path: Path) -> None:
    clap = tiny_clap(tmp_path / "clap")

    assert "'clap'" in refusal(str(clap))
    said = refusal(str(llava), files=CLAP_FILES)
    assert "expected a model of type 'clap'" in said
    assert "found 'llava'" in said


def test_sharded_weights_are_loaded(llava: Path) -> None:
    shard(llava)

    fetched = fetch_model(str(llava), None, VLM_FILES)

    assert load_network(AutoModelForImageTextToText, fetched, CPU, torch.float32).num_parameters() > 100_000


def test_a_clap_is_fetched_and_loaded(tmp_path: Path) -> None:
    fetched = fetch_model(str(tiny_clap(tmp_path)), None, CLAP_FILES)

    network = load_network(ClapModel, fetched, CPU, torch.float32)
    processor = load_part(ClapProcessor, fetched)

    assert not network.training
    assert processor.feature_extractor.sampling_rate == 48_000


def test_weights_that_lack_a_tensor_are_refused_and_not_filled_with_random_numbers(llava: Path) -> None:
    edit_weights(llava / "model.safetensors", lambda tensors: tensors.pop(next(n for n in tensors if "mlp" in n)))
    fetched = fetch_model(str(llava), None, VLM_FILES)

    with pytest.raises(InputError, match="1 of the tensors of LlavaForConditionalGeneration are not in the weights"):
        load_network(AutoModelForImageTextToText, fetched, CPU, torch.float32)


def test_weights_of_another_shape_are_refused(llava: Path) -> None:
    edit_json(llava / "config.json", lambda config: config["text_config"].update(intermediate_size=256))
    fetched = fetch_model(str(llava), None, VLM_FILES)

    with refused("in another shape, such as model"):
        load_network(AutoModelForImageTextToText, fetched, CPU, torch.float32)


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "people/evil"},
        {"_attn_implementation": "paged|people/evil@main"},
        {"text_config": {"_attn_implementation_internal": "people/evil"}},
        {"attn_implementation": {"": "sdpa", "vision_config": "people/evil"}},
    ],
)
def test_attention_that_is_code_of_a_repository_is_refused(llava: Path, settings: dict) -> None:
    edit_json(llava / "config.json", lambda config: config["text_config"].update(settings.get("text_config", {})))
    edit_json(llava / "config.json", lambda config: config.update(settings | {"text_config": config["text_config"]}))
    fetched = fetch_model(str(llava), None, VLM_FILES)

    with refused("its attention is code of the repository .*people/evil.*, which is never run here"):
        load_network(AutoModelForImageTextToText, fetched, CPU, torch.float32)


def test_attention_of_the_library_is_used(llava: Path) -> None:
    edit_json(llava / "config.json", lambda config: config.update(attn_implementation="eager"))
    fetched = fetch_model(str(llava), None, VLM_FILES)

    network: Any = load_network(AutoModelForImageTextToText, fetched, CPU, torch.float32)

    assert network.config._attn_implementation == "eager"


def test_tied_weights_are_not_missing(llava: Path) -> None:
    edit_json(llava / "config.json", lambda config: config.update(tie_word_embeddings=True))
    edit_json(llava / "config.json", lambda config: config["text_config"].update(tie_word_embeddings=True))
    edit_weights(llava / "model.safetensors", lambda tensors: tensors.pop(next(n for n in tensors if "lm_head" in n)))
    fetched = fetch_model(str(llava), None, VLM_FILES)

    network = load_network(AutoModelForImageTextToText, fetched, CPU, torch.float32)

    head_module = network.get_output_embeddings()
    assert head_module is not None
    assert head_module.weight is network.get_input_embeddings().weight


def test_a_processor_that_wants_its_own_code_is_refused(llava: Path) -> None:
    edit_json(
        llava / "processor_config.json",
        lambda config: config.update(auto_map={"AutoProcessor": "own.Own"}, processor_class="Own"),
    )
    (llava / "own.py").write_text(f"open({str(llava / 'ran')!r}, 'w')")
    fetched = fetch_model(str(llava), None, VLM_FILES)

    with pytest.raises(InputError, match="cannot load"):
        load_part(AutoProcessor, fetched)
    assert not (llava / "ran").exists()


def test_a_damaged_tokenizer_is_refused(llava: Path) -> None:
    (llava / "tokenizer.json").write_text("{}")
    fetched = fetch_model(str(llava), None, VLM_FILES)

    with pytest.raises(InputError, match="cannot load"):
        load_part(AutoProcessor, fetched)


def test_a_folder_is_known_by_its_content_wherever_it_lies(llava: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(llava, tmp_path / "elsewhere")

    assert fetch_model(str(moved), None, VLM_FILES).identity == fetch_model(str(llava), None, VLM_FILES).identity


def _train_one_tensor(folder: Path) -> None:
    edit_weights(folder / "model.safetensors", lambda tensors: tensors[sorted(tensors)[3]].add_(1e-3))


def _edit_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("USER: <image>\n{{ messages }}")


def _edit_settings(folder: Path) -> None:
    edit_json(folder / "generation_config.json", lambda config: config.update(repetition_penalty=1.1))


@pytest.mark.parametrize("change", [_train_one_tensor, _edit_template, _edit_settings])
def test_a_folder_that_changes_is_another_model(llava: Path, change: Callable[[Path], None]) -> None:
    before = fetch_model(str(llava), None, VLM_FILES).identity
    edit_weights(llava / "model.safetensors", len)
    assert fetch_model(str(llava), None, VLM_FILES).identity == before  # writing it again changes nothing

    change(llava)

    assert fetch_model(str(llava), None, VLM_FILES).identity != before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("given", ["0", "GPU-8f1b"])
def test_a_worker_that_was_given_a_gpu_does_not_take_the_cpu_beside_it(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with pytest.raises(InputError, match=f"given GPU {given} .* finds no GPU: this torch is built for .*`device: cpu`"):
        choose_device("auto")
    assert choose_device("cpu").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("given", [None, "", "-1", "NoDevFiles"])
def test_a_worker_without_one_takes_the_cpu(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(InputError, match="cuda was asked for, and torch finds no GPU here"):
        choose_device("cuda")
