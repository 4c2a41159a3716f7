from contextlib import nullcontext

import faiss
import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from sonify.config import ClapEncoder, Encoder, HybridEncoder, TextEncoder
from sonify.retrieval.encoders import (
    JointEncoder,
    Part,
    fetch_encoder,
    load_encoder,
)
from sonify.retrieval.kinds import Query
from sonify.retrieval.search import most_on_gpu
from sonify.retrieval.text import WordsEncoder
from sonify.stages.pair import check_search
from sonify.stages.table import stages_of
from tests.builders import refused, small_config, small_input
from tests.tiny_networks import tiny_clap

NODES = {"kind": "ray", "address": "ray://127.0.0.1:1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clap(tmp_path_factory.mktemp("models") / "clap")


def clap_config(folder, **changes):
    return ClapEncoder(**{"kind": "clap", "model": str(folder), "device": "cpu", "batch_size": 2, **changes})


def questions(*texts):
    return [Query(name="", text=text, described=True) for text in texts]


def test_the_text_encoder_is_as_it_is_alone():
    encoder = load_encoder(TextEncoder(kind="text", matching="words"))
    assert [part.id for part in encoder.parts] == [encoder.identity] == ["text"]
    texts = ["a dog", "rain"]
    assert np.array_equal(encoder(texts), WordsEncoder()(texts))
    assert np.array_equal(encoder.ask(questions(*texts)), WordsEncoder()(texts))


def test_kinds_and_words_have_embeddings_of_their_own():
    kinds, words = (load_encoder(TextEncoder(kind="text", matching=m)) for m in ("kinds", "words"))
    assert {part.id for part in kinds.parts}.isdisjoint(part.id for part in words.parts)
    assert {part.model for part in kinds.parts}.isdisjoint(part.model for part in words.parts)
    assert (kinds.by_name, words.by_name) == (True, False)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_one_product_of_a_hybrid_is_the_weighted_sum_of_both_cosines(folder, weight):
    hybrid = load_encoder(HybridEncoder(kind="hybrid", audio=clap_config(folder), weight=weight))
    clap, text = load_encoder(clap_config(folder)), load_encoder(TextEncoder(kind="text"))
    clips = [np.random.default_rng(n).integers(-9999, 9999, 48_000, dtype=np.int16) for n in range(3)]
    heard = np.stack(list(clap.parts[0].hears.embed_segments(clips)))  # pyright: ignore[reportOptionalMemberAccess]
    written = text(["a dog", "rain", "a church bell"])
    queries = questions("dog barking", "thunder")
    expected = weight * clap.ask(queries) @ heard.T + (1 - weight) * text.ask(queries) @ written.T
    rows = hybrid.join([heard, written])
    assert hybrid.dimension == rows.shape[1] == 32 + WordsEncoder.dimension
    assert np.abs(hybrid.ask(queries) @ rows.T - expected).max() < 1e-6
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_a_hybrids_parts_are_stored_as_those_of_each_alone(folder):
    hybrid = load_encoder(HybridEncoder(kind="hybrid", audio=clap_config(folder)))
    assert [part.id for part in hybrid.parts] == [load_encoder(clap_config(folder)).parts[0].id, "kinds-1"]


def test_the_folder_of_embeddings_follows_the_weights(folder, tmp_path):
    (part,) = load_encoder(clap_config(folder)).parts
    same = tmp_path / "same"
    same.mkdir()
    for file in folder.iterdir():
        (same / file.name).write_bytes(file.read_bytes())
    assert load_encoder(clap_config(same)).parts[0].id == part.id
    weights = bytearray((same / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (same / "model.safetensors").write_bytes(weights)
    assert load_encoder(clap_config(same)).parts[0].id != part.id


def test_threads_are_part_of_what_an_embedding_was_made_from(folder):
    one, two = (load_encoder(clap_config(folder, cpus=cpus)).parts[0] for cpus in (1, 2))
    assert one.id == two.id
    assert one.model != two.model


def test_models_are_fetched_by_name_and_identity(folder):
    assert fetch_encoder(TextEncoder(kind="text")) == {}
    (name, identity), *others = fetch_encoder(clap_config(folder)).items()
    assert (name, others) == (str(folder), [])
    assert identity.startswith("sha256:")
    assert fetch_encoder(HybridEncoder(kind="hybrid", audio=clap_config(folder))) == {name: identity}


def test_resources_are_claps_and_none_for_text(tmp_path):
    small_input(tmp_path)

    def resources(encoder):
        stages = stages_of(small_config(tmp_path, retrieval={"encoder": encoder}))
        return {(s.num_cpus, s.num_gpus, s.gpu_optional) for s in stages if s.name in ("embeddings", "pair")}

    clap = {"kind": "clap", "cpus": 3, "gpus": 0.125}
    for encoder in (clap, {"kind": "hybrid", "audio": clap}):
        assert resources(encoder) == {(3, 0.125, True)}
    assert resources(clap | {"device": "cpu"}) == {(3, 0, False)}
    assert resources({"kind": "text"}) == {(1, 0, False)}


@pytest.mark.parametrize(
    ("encoder", "search", "asked"),
    [
        ({"kind": "clap"}, "cpu", (1, 0.25, True)),
        ({"kind": "clap", "gpus": 0.1}, "cpu", (1, 0.1, True)),
        ({"kind": "clap", "device": "cuda"}, "cpu", (1, 0.25, False)),
        ({"kind": "clap", "device": "cpu"}, "cpu", (1, 0, False)),
        ({"kind": "clap", "gpus": 0.5}, "cuda", (1, 0.5, False)),
        ({"kind": "clap", "device": "cpu", "cpus": 4}, "cuda", (4, 1, False)),
        ({"kind": "text"}, "cuda", (1, 1, False)),
    ],
)
def test_pair_asks_for_a_gpu_where_it_searches_and_for_a_part_where_it_encodes(tmp_path, encoder, search, asked):
    small_input(tmp_path)
    retrieval = {"encoder": encoder, "search": {"device": search}}
    stages = {stage.name: stage for stage in stages_of(small_config(tmp_path, retrieval=retrieval))}
    pair = stages["pair"]
    assert (pair.num_cpus, pair.num_gpus, pair.gpu_optional) == asked
    on_cpus = stages_of(small_config(tmp_path, retrieval={"encoder": encoder}))
    assert pair.digest == next(stage.digest for stage in on_cpus if stage.name == "pair")
    assert stages["embeddings"].num_gpus == (0 if encoder.get("device") == "cpu" else encoder.get("gpus", 1)) * (
        encoder["kind"] == "clap"
    )


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0, reason="there is a GPU here")
@pytest.mark.parametrize(("engine", "refuses"), [({"kind": "local"}, True), ({"kind": "ray"}, True), (NODES, False)])
def test_a_gpu_that_is_to_search_is_looked_for_where_the_work_will_be(tmp_path, engine, refuses):
    small_input(tmp_path)
    config = small_config(tmp_path, retrieval={"search": {"device": "cuda"}}, engine=engine)
    with refused("retrieval.search.device: cuda") if refuses else nullcontext():
        check_search(config)


@pytest.mark.parametrize("engine", [{"kind": "local"}, NODES])
def test_more_than_a_gpu_can_look_at_is_refused_before_any_work(tmp_path, engine, monkeypatch):
    monkeypatch.setattr("sonify.stages.pair.check_gpu", lambda: None)
    small_input(tmp_path)
    for top_k, device, refuses in (
        (most_on_gpu() + 1, "cuda", True),
        (most_on_gpu(), "cuda", False),
        (5000, "cpu", False),
    ):
        retrieval = {"search": {"device": device}, "top_k": top_k}
        with refused(f"retrieval.top_k: {top_k} is more than the {most_on_gpu()}") if refuses else nullcontext():
            check_search(small_config(tmp_path, retrieval=retrieval, engine=engine))


def test_a_model_that_is_not_there_is_refused_in_one_line(tmp_path):
    with refused("there is no such folder"):
        load_encoder(clap_config(tmp_path / "none"))


def test_unknown_fields_and_kinds_are_refused():
    for wrong in ({"kind": "clap", "modle": "x"}, {"kind": "clip"}, {"kind": "hybrid", "weight": 1.5}):
        with pytest.raises(ValidationError):
            TypeAdapter(Encoder).validate_python(wrong)


def test_a_joint_encoder_keeps_the_order_of_its_parts():
    parts = [
        Part(id=name, model=name, share=share, encoder=WordsEncoder()) for name, share in (("a", 0.36), ("b", 0.64))
    ]
    row = JointEncoder(parts)(["a dog"])[0]
    (words,) = WordsEncoder()(["a dog"])
    assert np.allclose(row, np.concatenate([0.6 * words, 0.8 * words]), atol=1e-7)
