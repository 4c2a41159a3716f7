import errno
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from eval.__main__ import main as eval_main
from eval.convert_weights import NETWORKS, convert, main
from eval.towers.config import Inception, Wav2Clip
from eval.towers.inception import inception_shapes, open_inception
from eval.towers.tower import Sound
from eval.towers.wav2clip import HANN, open_wav2clip, unused, wav2clip_shapes
from sonify.errors import DiskFull
from sonify.features.beats import SHARED, BeatsFeatures, load_beats
from sonify.io.write import sha256_of
from sonify.models.fetch import BEATS_FILES, fetch_model
from tests.builders import refused, tone
from tests.eval.towers.built import golden, golden_picture, seeded_weights

# What the published file of Wav2CLIP holds beside the encoder of sounds.
BESIDE = {"image_transform.sequential.0.weight": torch.zeros(4, 4), "loss_fn_audio.logit_scale": torch.tensor(1.0)}


@pytest.fixture(scope="module")
def wav2clip() -> dict[str, Tensor]:
    shapes = {name: shape for name, shape in wav2clip_shapes().items() if name not in unused()}
    counted = {name: torch.tensor(7) for name in unused() if name != HANN}
    return seeded_weights(shapes, 1000) | counted | {HANN: torch.hann_window(512)} | BESIDE


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def metadata(path: Path) -> Mapping[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("zipped", [True, False])
def test_wav2clip_is_converted_without_what_is_not_heard_with(
    wav2clip: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool
) -> None:
    file = saved(tmp_path / "Wav2CLIP.pt", wav2clip, _use_new_zipfile_serialization=zipped)
    out = tmp_path / "made" / "wav2clip.safetensors"
    assert main(["wav2clip", str(file), "--out", str(out)]) == 0
    source, written = capsys.readouterr().out.splitlines()
    assert source == f"{sha256_of(file)}  {file}  (what it should be is published nowhere)"
    assert written == f"{sha256_of(out)}  {out}"
    assert metadata(out) == {"source_sha256": sha256_of(file)}
    tensors = load_file(out)
    assert tensors.keys() == wav2clip.keys() - BESIDE.keys() - {HANN}
    assert all(torch.equal(tensors[name], wav2clip[name]) for name in tensors)
    way = open_wav2clip(Wav2Clip(kind="wav2clip", weights=out, sha256=sha256_of(out))).sounds
    assert way is not None
    assert way.embed([Sound(samples_S=tone(1), sample_rate_hz=16_000)]).shape == (1, 512)
    assert sorted(path.name for path in out.parent.iterdir()) == ["wav2clip.safetensors"]


def test_inception_is_converted_for_its_tower(tmp_path: Path) -> None:
    published = seeded_weights(inception_shapes(), 7000)
    counted = {name for name, shape in inception_shapes().items() if shape == ()}
    published |= {name: torch.tensor(0) for name in counted}
    file, out = saved(tmp_path / "inception.pth", published), tmp_path / "inception.safetensors"
    with refused(f"expected weights-inception-2015-12-05-6726825d.pth .*found {sha256_of(file)}; .*`--sha256"):
        convert("inception", file, out)
    assert not out.exists()
    source, written = convert("inception", file, out, sha256_of(file))
    assert (source, written) == (sha256_of(file), sha256_of(out))
    tower = open_inception(Inception(kind="inception", weights=out, sha256=written))
    assert tower.images is not None
    assert np.isfinite(tower.images.embed([golden_picture("small")])).all()


def test_the_known_hash_is_that_in_the_name_of_the_published_file() -> None:
    known = NETWORKS["inception"]
    assert known.sha256 is not None
    assert f"-{known.sha256[:8]}.pth" in known.file


def test_the_same_file_gives_the_same_bytes(wav2clip: dict[str, Tensor], tmp_path: Path) -> None:
    file = saved(tmp_path / "Wav2CLIP.pt", wav2clip)
    made = {convert("wav2clip", file, tmp_path / f"{n}.safetensors")[1] for n in range(3)}
    turned = saved(tmp_path / "turned.pt", dict(reversed(wav2clip.items())))
    _, other = convert("wav2clip", turned, tmp_path / "turned.safetensors")
    assert len(made) == 1
    assert made != {other}  # it says that it comes of another file
    a, b = load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "turned.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a | b)


def test_tensors_that_share_their_numbers_and_halves_are_written_whole(
    wav2clip: dict[str, Tensor], tmp_path: Path
) -> None:
    first, second = "audio_transform.sequential.0.weight", "audio_transform.sequential.3.weight"
    half, turned = wav2clip["audio_encoder.conv1.weight"].half(), wav2clip[first].T
    changed = wav2clip | {first: turned, second: turned, "audio_encoder.conv1.weight": half}
    out = tmp_path / "out.safetensors"
    convert("wav2clip", saved(tmp_path / "Wav2CLIP.pt", changed), out)
    tensors = load_file(out)
    assert torch.equal(tensors[first], turned)
    assert torch.equal(tensors[second], turned)
    assert tensors["audio_encoder.conv1.weight"].dtype == torch.float32
    assert torch.equal(tensors["audio_encoder.conv1.weight"], half.float())


def test_a_tensor_that_repeats_a_few_numbers_is_refused_before_it_is_laid_out(tmp_path: Path) -> None:
    endless = torch.zeros(1).expand(2**40)
    checkpoint = beats_checkpoint()
    checkpoint["model"]["predictor.weight"] = endless
    with refused("predictor.weight is of 4,398,046,511,104 bytes, of which the file holds 4: it repeats itself"):
        convert("beats", saved(tmp_path / "BEATs.pt", checkpoint), tmp_path / "out")


def test_settings_that_are_tensors_are_refused(tmp_path: Path) -> None:
    numbers = torch.tensor([1.0, 1.0])
    checkpoint = beats_checkpoint()
    checkpoint["cfg"] = {**checkpoint["cfg"], "layer_norm_first": numbers}
    with refused("expected words and numbers in cfg, found a tensor as layer_norm_first; expected BEATs"):
        convert("beats", saved(tmp_path / "BEATs.pt", checkpoint), tmp_path / "out")


def test_a_network_takes_the_place_of_one_of_its_kind_alone(tmp_path: Path) -> None:
    file, out = saved(tmp_path / "BEATs.pt", beats_checkpoint()), tmp_path / "out"
    assert convert("beats", file, out) == convert("beats", file, out)
    (out / "config.json").write_text('{"model_type": "audio-spectrogram-transformer"}')
    with refused("holds another model than a beats; choose another place"):
        convert("beats", file, out)
    (out / "more").mkdir()
    with refused("holds something else than a beats .such as 'more'.; choose another place"):
        convert("beats", file, out)
    assert "audio-spectrogram" in (out / "config.json").read_text()


def test_on_a_full_disk_there_is_no_folder_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, written = saved(tmp_path / "BEATs.pt", beats_checkpoint()), Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if len(data) > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with refused("no space left on the disk", DiskFull):
        convert("beats", file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["BEATs.pt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_encoder.conv1.weight": None}, "1 are missing, 0 unknown, 0 of another shape"),
        ({"audio_encoder.conv1.weight": torch.zeros(64, 3, 7, 7)}, r"\[64, 3, 7, 7\] instead of \[64, 1, 7, 7\]"),
        ({"optimizer": torch.zeros(2)}, "1 unknown, 0 of another shape .optimizer is unknown"),
        ({"epoch": 3}, "expected tensors by name, found something else"),
        ({3: torch.zeros(2)}, "expected tensors by name, found something else"),
        ({"audio_encoder.bn1.bias": torch.full((64,), torch.nan)}, "bn1.bias holds NaN or infinity"),
        ({"audio_encoder.bn1.bias": torch.zeros(64).double()}, "bn1.bias as plain floats, found torch.float64"),
        ({"audio_encoder.bn1.bias": torch.zeros(64).to_sparse()}, "bn1.bias as plain floats, .*torch.sparse_coo"),
        ({"audio_encoder.bn1.bias": torch.zeros(64, dtype=torch.complex64)}, "as plain floats, found torch.complex64"),
        ({"audio_encoder.bn1.bias": torch.zeros(64, device="meta")}, "bn1.bias as plain floats"),
    ],
)
def test_another_checkpoint_is_refused(
    wav2clip: dict[str, Tensor], tmp_path: Path, change: dict[Any, Any], message: str
) -> None:
    content = {name: value for name, value in (wav2clip | change).items() if value is not None}
    out = tmp_path / "out.safetensors"
    with refused(message):
        convert("wav2clip", saved(tmp_path / "Wav2CLIP.pt", content), out)
    assert not out.exists()


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {}, {"state_dict": {"a": torch.zeros(1)}}, None])
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    with refused("expected tensors by name|125 are missing|123 are missing|are missing"):
        convert("wav2clip", saved(tmp_path / "Wav2CLIP.pt", content), tmp_path / "out.safetensors")


class Evil:
    """A pickle of it makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


# --- BEATs, which becomes a folder


def beats_checkpoint(*, shared: bool = True) -> dict[str, Any]:
    """Cfg and model as the published file has them: with its predictor, and with one bias under twelve names."""
    facts = golden("audiotoken")[1]["beats_tiny"]
    shapes = {name: tuple(shape) for name, shape in facts["keys"].items() if not SHARED.fullmatch(name)}
    weights = seeded_weights(shapes, 4000)
    first = weights["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    return {"cfg": facts["config"], "model": weights | {n: first for n in facts["keys"] if shared and n not in weights}}


def test_beats_becomes_a_folder_that_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = saved(tmp_path / "BEATs.pt", beats_checkpoint()), tmp_path / "made" / "beats"
    assert main(["beats", str(file), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"{sha256_of(out / 'model.safetensors')}  {out}"
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert metadata(out / "model.safetensors") == {"source_sha256": sha256_of(file)}
    network = load_beats(fetch_model(str(out), None, BEATS_FILES), torch.device("cpu"), torch.float32)
    sound = tone(2)[None]
    heard = BeatsFeatures(network, "all", (4, 8, 12))(sound)
    assert heard.shape == (1, 248, 96)
    again = tmp_path / "again"
    convert("beats", saved(tmp_path / "apart.pt", beats_checkpoint(shared=False)), again)
    other = load_beats(fetch_model(str(again), None, BEATS_FILES), torch.device("cpu"), torch.float32)
    assert torch.equal(BeatsFeatures(other, "all", (4, 8, 12))(sound), heard)


def test_halves_are_widened_and_the_same_file_gives_the_same_folder(tmp_path: Path) -> None:
    checkpoint = beats_checkpoint()
    checkpoint["model"] = {name: tensor.half() for name, tensor in checkpoint["model"].items()}
    file = saved(tmp_path / "BEATs.pt", checkpoint)
    hashes = {convert("beats", file, tmp_path / str(n)) for n in range(2)}
    assert len(hashes) == 1
    assert (tmp_path / "0" / "config.json").read_bytes() == (tmp_path / "1" / "config.json").read_bytes()
    assert {t.dtype for t in load_file(tmp_path / "0" / "model.safetensors").values()} == {torch.float32}


def less(name: str) -> Any:
    return lambda checkpoint: checkpoint["model"].pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("cfg"), "expected a checkpoint with cfg and model, found another; expected BEATs_iter3_plus"),
        (lambda c: c.update(cfg=[1]), "expected a checkpoint with cfg and model"),
        (lambda c: c.pop("model"), "expected tensors by name, found something else"),
        (lambda c: c.update(model={"a": 1}), "expected tensors by name, found something else"),
        (less("layer_norm.bias"), "1 are missing, 0 unknown, 0 of another shape, such as layer_norm.bias; expected BE"),
        (lambda c: c["model"].update(more=torch.zeros(1)), "1 unknown, 0 of another shape, such as more"),
        (lambda c: c["cfg"].update(encoder_embed_dim=64), r"of another shape, .*\[32\] instead of \[64\]"),
        (lambda c: c["cfg"].update(encoder_layers=6), "unknown, 0 of another shape, such as encoder.layers.10"),
        (lambda c: c["cfg"].pop("num_buckets"), "expected num_buckets as a number from 1 to 65536, found None"),
        (lambda c: c["cfg"].update(layer_norm_first=True), "expected layer_norm_first False, found True"),
        (lambda c: c["model"]["layer_norm.bias"].fill_(torch.nan), "layer_norm.bias holds NaN or infinity"),
        (lambda c: c["model"].update({"layer_norm.bias": torch.zeros(24).double()}), "as plain floats, found torch.fl"),
    ],
)
def test_what_is_no_checkpoint_of_beats_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    checkpoint = beats_checkpoint()
    checkpoint["cfg"] = dict(checkpoint["cfg"])
    change(checkpoint)
    with refused(message):
        convert("beats", saved(tmp_path / "BEATs.pt", checkpoint), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_checkpoints_and_files_are_no_beats(wav2clip: dict[str, Tensor], tmp_path: Path) -> None:
    for content in (wav2clip, [1], None, {"cfg": {}, "model": {}}):
        with refused("expected a checkpoint with cfg and model|expected activation_fn gelu, found None"):
            convert("beats", saved(tmp_path / "other.pt", content), tmp_path / "out")
    (tmp_path / "there").touch()
    with refused("there: is a file; name the folder that gets config.json and model.safetensors"):
        convert("beats", tmp_path / "other.pt", tmp_path / "there")
    save_file(wav2clip, tmp_path / "made.safetensors")
    with refused("is of safetensors already; see `features.beats`"):
        convert("beats", tmp_path / "made.safetensors", tmp_path / "out")


def test_a_checkpoint_of_beats_that_wants_to_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    checkpoint = beats_checkpoint()
    checkpoint["cfg"] = checkpoint["cfg"] | {"more": Evil(mark)}
    with refused(r"holds more than tensors \(getattr\), which could run code; it was not read"):
        convert("beats", saved(tmp_path / "evil.pt", checkpoint), tmp_path / "out")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


# --- what is read at all


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not(
    wav2clip: dict[str, Tensor], tmp_path: Path, zipped: bool
) -> None:
    mark = tmp_path / "mark"
    file = saved(tmp_path / "evil.pt", wav2clip | {"x": Evil(mark)}, _use_new_zipfile_serialization=zipped)
    with refused(r"evil\.pt: holds more than tensors \(getattr\), which could run code; it was not read"):
        convert("wav2clip", file, tmp_path / "out.safetensors")
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists()  # it is evil


def test_a_bare_pickle_is_refused(wav2clip: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"x": Evil(tmp_path / "mark")}))
    with refused(r"bare\.pt: holds more than tensors|bare\.pt: not a file of torch's"):
        convert("wav2clip", tmp_path / "bare.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_refused(wav2clip: dict[str, Tensor], tmp_path: Path, share: float) -> None:
    file = saved(tmp_path / "Wav2CLIP.pt", wav2clip)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with refused(r"Wav2CLIP\.pt: not a file of torch's, or damaged"):
        convert("wav2clip", file, tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Wav2CLIP.pt"]


def test_what_is_safetensors_already_is_refused(wav2clip: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(wav2clip, tmp_path / "made.safetensors")
    with refused("is of safetensors already; name it as `weights`"):
        convert("wav2clip", tmp_path / "made.safetensors", tmp_path / "out.safetensors")


def test_wrong_arguments_are_one_line(wav2clip: dict[str, Tensor], tmp_path: Path, capsys: Any) -> None:
    file, out = saved(tmp_path / "Wav2CLIP.pt", wav2clip), str(tmp_path / "out.safetensors")
    for words, said in {
        (str(file), "--out", out, "--sha256", "b" * 64): f"expected sha256 {'b' * 64}, found {sha256_of(file)}",
        (str(file), "--out", str(tmp_path / "out.bin")): "expected a name that ends in .safetensors",
        (str(tmp_path / "none"), "--out", out): "there is no such file; expected Wav2CLIP.pt of",
        (str(tmp_path), "--out", out): "there is no such file",
    }.items():
        assert main(["wav2clip", *words]) == 2
        line = capsys.readouterr().err
        assert said in line
        assert line.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["wav2clip", str(file), "--out", out, "--sha256", "b"])
    assert "expected 64 hexadecimal digits" in capsys.readouterr().err
    assert not Path(out).exists()


def test_the_command_is_found_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        eval_main(["convert_weights", "--help"])
    assert ended.value.code == 0
    assert "inception" in capsys.readouterr().out
