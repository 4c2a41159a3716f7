import json
import os
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    RobertaConfig,
    RobertaTokenizer,
)

from sonify.config import LaionClapEncoder
from sonify.errors import InputError
from sonify.retrieval.clap import Clap, TransformersTowers
from sonify.retrieval.encoders import load_encoder
from sonify.retrieval.laion import PACKAGE, _build_network, load_laion_towers
from sonify.retrieval.logmel import ClapLogMel
from sonify.running import run
from tests.builders import first_clips, refused, small_config, small_input
from tests.processes import run_python
from tests.tiny_networks import tiny_clap

FUSION = {"unfused": False, "fusion": True}
TEXTS = ["a dog barks", "rain", "wind in the trees " * 30, ""]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """RoBERTa's shape and tokenizer, as wide as laion_clap wants it and one layer deep; no weights."""
    folder = tmp_path_factory.mktemp("roberta") / "roberta"
    tokenizer = RobertaTokenizer.from_pretrained(tiny_clap(folder.parent / "clap"))
    tokenizer.save_pretrained(folder)
    RobertaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=1,
        intermediate_size=64,
        max_position_embeddings=514,
        type_vocab_size=1,
    ).save_pretrained(folder)
    return folder


def settings_of(checkpoint, roberta, **changes):
    values = {"checkpoint": checkpoint, "roberta": str(roberta), "device": "cpu", "batch_size": 4}
    return LaionClapEncoder(**{"kind": "laion_clap", **values, **changes})


def save(network, path, **extra):
    """As the released checkpoints: trained on several GPUs, with scores as numpy numbers, by an older transformers."""
    weights = {f"module.{key}": value for key, value in network.state_dict().items()}
    weights["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    torch.save({"epoch": 3, "name": "x", "best": np.float64(0.5), "state_dict": weights, **extra}, path)
    return path


@pytest.fixture(scope="module")
def originals(roberta, tmp_path_factory):
    """Real laion_clap checkpoints with seeded random weights, so large that clips differ, and their networks."""
    folder = tmp_path_factory.mktemp("laion")
    return [make_original(fusion, roberta, folder / f"{name}.pt") for name, fusion in FUSION.items()]


def make_original(fusion, roberta, checkpoint):
    torch.manual_seed(0)
    network = _build_network(settings_of("none.pt", roberta, fusion=fusion), roberta).eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.dim() > 1 and "extractor" not in name:
                value.mul_(3)
        network.audio_branch.bn0.running_mean.fill_(-30)
        network.audio_branch.bn0.running_var.fill_(400)
    return settings_of(save(network, checkpoint), roberta, fusion=fusion), network


@pytest.fixture(params=[False, True], ids=list(FUSION))
def original(request, originals):
    """One of them."""
    return originals[request.param]


def to_transformers(network, fusion):
    """The same weights as a ClapModel, renamed as transformers' converter renames them."""
    renames = [
        ("text_branch", "text_model"),
        ("audio_branch", "audio_model.audio_encoder"),
        (".attn.relative", ".attention.self.relative"),
        (".attn.proj", ".attention.output.dense"),
        (".mlp.fc1", ".intermediate.dense"),
        (".mlp.fc2", ".output.dense"),
        (".norm1", ".layernorm_before"),
        (".norm2", ".layernorm_after"),
        (".bn0", ".batch_norm"),
        ("_projection.0", "_projection.linear1"),
        ("_projection.2", "_projection.linear2"),
    ]
    converted = {}
    for name, value in network.state_dict().items():
        key = name
        for old, new in renames:
            key = key.replace(old, new)
        if ".attn.qkv." in key:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                converted[key.replace(".attn.qkv.", f".attention.self.{part}.")] = rows
        else:
            converted[key] = value
    text = network.text_branch.config
    model = ClapModel(
        ClapConfig(
            text_config=ClapTextConfig(
                vocab_size=text.vocab_size,
                num_hidden_layers=1,
                intermediate_size=64,
                layer_norm_eps=text.layer_norm_eps,
            ).to_dict(),
            audio_config=ClapAudioConfig(enable_fusion=fusion, fusion_type="aff_2d" if fusion else None).to_dict(),
        )
    )
    missing, _ = model.load_state_dict(converted, strict=False)
    assert all("position" in key or "token_type_ids" in key for key in missing), missing  # computed, not learnt
    return model


def segments(test_data):
    cuts = first_clips(test_data / "sounds", 3, 48_000)
    return [*cuts, cuts[0][:70_001]]


def test_both_libraries_agree_on_the_same_weights(original, roberta, test_data):
    settings, network = original
    ours = Clap(load_laion_towers(settings, roberta, torch.device("cpu")), settings, torch.device("cpu"))
    front_end = ClapFeatureExtractor(frequency_min=50, truncation="fusion" if settings.fusion else "rand_trunc")
    towers = TransformersTowers(
        to_transformers(network, settings.fusion), front_end, RobertaTokenizer.from_pretrained(roberta)
    )
    theirs = Clap(towers, settings, torch.device("cpu"))
    heard, converted = (np.stack(list(clap.embed_segments(segments(test_data)))) for clap in (ours, theirs))
    assert np.abs(heard - converted).max() < 1e-4
    assert np.abs(ours(TEXTS) - theirs(TEXTS)).max() < 1e-4
    cosines = heard @ heard.T
    assert cosines[0, 1:3].max() < 0.99  # the clips differ far more than the libraries


PUBLIC = """
import json, sys
texts, sys.argv[1:] = json.loads(sys.argv[1]), []  # which the library parses when it is imported
import numpy as np
from laion_clap import CLAP_Module
sounds = np.load("sounds.npz")
for name in ("unfused", "fusion"):
    clap = CLAP_Module(enable_fusion=name == "fusion", device="cpu")  # with the folder `roberta-base` for the hub's
    clap.load_ckpt(f"{name}.pt")
    heard = clap.get_audio_embedding_from_data([sounds[key] for key in sounds.files])
    np.savez(f"{name}.npz", heard=heard, read=clap.get_text_embedding(texts))
"""


@pytest.fixture(scope="module")
def public(originals, roberta, test_data, tmp_path_factory):
    """What the library's public functions make of the same weights: of exact sounds, then of ordinary ones.

    They cut samples down to 16 bits: a quarter of a step more, and what was meant is heard; without, up to a step less.
    """
    folder = tmp_path_factory.mktemp("public")
    shutil.copytree(roberta, folder / "roberta-base")
    originals[0][1].text_branch.save_pretrained(folder / "roberta-base")
    for name, (_, network) in zip(FUSION, originals, strict=True):
        torch.save(network.state_dict(), folder / f"{name}.pt")  # with scores beside them `load_ckpt` refuses it
    cuts = full_and_short(test_data)
    exact = [(cut + np.sign(cut) / np.float32(4)) / np.float32(32767) for cut in cuts]
    np.savez(folder / "sounds.npz", *exact, *(cut / np.float32(32768) for cut in cuts))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "PATH": os.environ["PATH"], "HOME": str(folder)}
    run_python(PUBLIC, json.dumps(TEXTS), cwd=folder, env=offline)
    return [np.load(folder / f"{name}.npz") for name in FUSION]


def full_and_short(test_data):
    return segments(test_data)[2:]  # five seconds, and less


def test_embeddings_are_those_of_the_librarys_public_functions(original, roberta, test_data, public):
    settings, _ = original
    ours = Clap(load_laion_towers(settings, roberta, torch.device("cpu")), settings, torch.device("cpu"))
    theirs = public[settings.fusion]
    heard = np.stack(list(ours.embed_segments(full_and_short(test_data))))
    exact, cut = theirs["heard"].reshape(2, *heard.shape)
    assert np.abs(ours(TEXTS) - theirs["read"]).max() < 1e-6  # 8e-8 measured
    assert np.abs(heard - exact).max() < 2e-5  # 3e-6 measured
    assert (heard * cut).sum(1).min() > 0.999  # 0.9996 measured, with these weights


def test_the_front_end_is_the_extractors(test_data):
    for truncation in ("fusion", "rand_trunc"):
        extractor = ClapFeatureExtractor(frequency_min=50, truncation=truncation)
        sound = np.tile(segments(test_data)[1], 2) / np.float32(32768)
        theirs = extractor(sound, sampling_rate=48_000)["input_features"][0][0]
        ours = ClapLogMel(extractor)(torch.from_numpy(sound)[None])[0, 0].numpy()
        assert np.abs(ours - theirs).max() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": True}, "without fusion: set `fusion` to false"),
        ({"audio_model": "HTSAT-base"}, r"not of HTSAT-base .*: \d+ tensors differ, such as audio_branch"),
    ],
)
@pytest.mark.parametrize("original", [False], indirect=True)
def test_a_checkpoint_of_another_network_is_refused_in_one_line(original, roberta, changes, message):
    settings, _ = original
    with refused(message):
        load_laion_towers(settings.model_copy(update=changes), roberta, torch.device("cpu"))


class Runs:
    """Pickled, a call of `os.mkdir`."""

    def __init__(self, folder):
        self._folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self._folder),)


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(roberta, tmp_path):
    torch.save({"state_dict": {"a": Runs(tmp_path / "ran")}}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"holds more than tensors and numbers.*mkdir"):
        load_laion_towers(settings_of(tmp_path / "evil.pt", roberta), roberta, torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00.", None])
def test_what_is_no_checkpoint_is_refused_in_one_line(roberta, tmp_path, content):
    checkpoint = tmp_path / "broken.pt"
    if content is None:
        torch.save({"state_dict": {"a": torch.zeros(1000)}}, checkpoint)
        content = checkpoint.read_bytes()[:-100]
    checkpoint.write_bytes(content)
    with refused(r"broken\.pt: not a checkpoint"):
        load_laion_towers(settings_of(checkpoint, roberta), roberta, torch.device("cpu"))


@pytest.mark.parametrize("stored", [[1, 2], {"state_dict": {"a": 3}}])
def test_a_checkpoint_without_tensors_is_refused(roberta, tmp_path, stored):
    torch.save(stored, tmp_path / "other.pt")
    with pytest.raises(InputError, match="expected laion_clap's named tensors"):
        load_laion_towers(settings_of(tmp_path / "other.pt", roberta), roberta, torch.device("cpu"))


def test_roberta_of_another_width_is_refused(roberta, tmp_path):
    other = tmp_path / "narrow"
    shutil.copytree(roberta, other)
    RobertaConfig(vocab_size=300, hidden_size=384, num_hidden_layers=1).save_pretrained(other)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "some.pt")
    with pytest.raises(InputError, match=r"width 768.*found 384"):
        load_laion_towers(settings_of(tmp_path / "some.pt", other), other, torch.device("cpu"))


@pytest.mark.parametrize("original", [False], indirect=True)
def test_loading_neither_parses_the_command_line_nor_asks_the_hub(original, tmp_path):
    settings, _ = original
    script = f"""
import sys
sys.modules["timm"] = None  # which laion_clap takes where it is
from sonify.config import LaionClapEncoder
from sonify.retrieval.encoders import load_encoder
encoder = load_encoder(LaionClapEncoder(**{settings.model_dump(mode="json")!r}))
assert encoder.dimension == 512 and encoder(["a dog"]).shape == (1, 512)
assert {PACKAGE!r} in sys.modules and "laion_clap" not in sys.modules
"""
    blocked = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    run_python(script, "--no-such-option", env=blocked)


@pytest.mark.parametrize("original", [False], indirect=True)
def test_the_folder_of_embeddings_follows_the_checkpoint(original, roberta):
    settings, _ = original
    (part,) = load_encoder(settings).parts
    assert part.id == load_encoder(settings).parts[0].id
    assert part.id.startswith("laion_clap-")
    again = torch.load(settings.checkpoint, weights_only=False)
    again["epoch"] = 4
    other = settings.checkpoint.with_name("other.pt")
    torch.save(again, other)
    assert load_encoder(settings_of(other, roberta, fusion=settings.fusion)).parts[0].id != part.id


@pytest.mark.parametrize("original", [False], indirect=True)
def test_a_whole_run_draws_by_it(original, tmp_path):
    settings, _ = original
    small_input(tmp_path, photos=4, recordings=4)
    retrieval = {"encoder": settings.model_dump(mode="json"), "min_cosine": -1.0, "margin": 0.0}
    counts = run(small_config(tmp_path, retrieval=retrieval))
    assert counts["embeddings"].rows_out == 4
    assert counts["render"].rows_out == 4
    assert list((tmp_path / "run" / "pool" / "embeddings").glob("laion_clap-*/*.npy"))
