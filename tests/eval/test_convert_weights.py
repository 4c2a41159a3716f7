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
from sonify.io.write import sha256_of
from tests.builders import refused, tone
from tests.eval.towers.built import golden_picture, seeded_weights

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
