import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PeAudioFeatureExtractor, PeAudioVideoConfig, PeAudioVideoModel, PeVideoVideoProcessor

from eval.towers.config import PeAv
from eval.towers.peav import HOP, open_peav
from eval.towers.tower import Sound, Tower
from tests.builders import noise, refused
from tests.tiny_networks import tiny_llava

RATE_HZ = 48_000
SIDE = 32
WIDTH = 16


def tiny_peav() -> PeAudioVideoModel:
    """PE-AV with every part a thousandth of the published ones, and random weights."""
    width: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1}
    encoder = width | {"num_attention_heads": 2, "head_dim": 8}
    codec = {"model_type": "dac", "downsampling_ratios": [2, 8, 10, 12], "encoder_hidden_size": 4, "codebook_dim": 8}
    vision = {
        "model_type": "timm_wrapper", "architecture": "vit_pe_core_tiny_patch16_384", "do_pooling": True,
        "num_classes": WIDTH, "global_pool": "map", "initializer_range": 0.02,
        "model_args": {"img_size": SIDE, "embed_dim": 32, "depth": 1, "num_heads": 2},
    }  # fmt: skip
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    audio = encoder | {"model_type": "pe_audio_encoder", "dac_config": codec | {"hidden_size": 64}}
    video = encoder | {"model_type": "pe_video_encoder", "vision_config": vision}
    config = PeAudioVideoConfig(
        text_config=width | tokens | {"model_type": "modernbert", "vocab_size": 50, "num_attention_heads": 2},
        audio_video_config=encoder | {"audio_config": audio, "video_config": video},
    )
    torch.manual_seed(0)
    model = PeAudioVideoModel(config).eval()
    with torch.no_grad():  # of unit variance through each layer: as published, the start of training hears nothing
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    """As it is built, never through a file: what the loading loses is seen beside it."""
    return tiny_peav()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model) -> Path:
    folder = tmp_path_factory.mktemp("peav") / "peav"
    model.save_pretrained(folder)
    PeAudioFeatureExtractor().save_pretrained(folder)
    PeVideoVideoProcessor(size={"height": SIDE, "width": SIDE}, do_resize=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tower(folder) -> Tower:
    return open_peav(PeAv(kind="peav", model=str(folder)))


def photo(seed: int = 0, size: tuple[int, int] = (48, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def sound(seed: int = 0, samples: int = 3 * HOP + 100) -> Sound:
    return Sound(samples_S=noise(seed, samples).astype(np.float32), sample_rate_hz=RATE_HZ)


def heard(tower: Tower, *sounds: Sound) -> np.ndarray:
    assert tower.sounds is not None
    return tower.sounds.embed(sounds)


def seen(tower: Tower, *images: Image.Image) -> np.ndarray:
    assert tower.images is not None
    return tower.images.embed(images)


def reflected(samples_S: np.ndarray) -> torch.Tensor:
    """(1, 1, S) to a multiple of the hop, as the paper's recipe has it."""
    return torch.from_numpy(np.pad(samples_S, (0, -len(samples_S) % HOP), "reflect"))[None, None]


def frames(folder: Path, image: Image.Image, count: int = 1) -> torch.Tensor:
    """(1, count, 3, H, W) of a picture by the model's own processor."""
    processor: Any = PeVideoVideoProcessor.from_pretrained(folder)
    video = np.stack([np.asarray(image)] * count)
    return processor(videos=[video], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]


@torch.inference_mode()
def test_both_ways_are_the_models_joint_forward(tower, model, folder):
    one, image = sound(), photo()
    joint = model(input_values=reflected(one.samples_S), pixel_values_videos=frames(folder, image))
    assert np.abs(heard(tower, one) - joint.audio_embeds.numpy()).max() < 1e-5
    assert np.abs(seen(tower, image) - joint.video_embeds.numpy()).max() < 1e-5


@torch.inference_mode()
def test_usual_wrong_neighbours_are_other_embeddings(tower, model, folder):
    one, image = sound(), photo()
    several = model(input_values=reflected(one.samples_S), pixel_values_videos=frames(folder, image, 4))
    assert np.abs(seen(tower, image) - several.video_embeds.numpy()).max() > 1e-3  # four equal frames
    zeros = np.pad(one.samples_S, (0, -len(one.samples_S) % HOP))
    padded = model.get_audio_embeds(torch.from_numpy(zeros)[None, None])
    assert np.abs(heard(tower, one) - padded.numpy()).max() > 1e-3


def test_the_library_still_has_the_bugs_that_are_gone_round(model, folder):
    """When this fails, `embed_image` may call `get_video_embeds`, or `PeAudioVideo` may go."""
    with pytest.raises(AttributeError):
        model.get_video_embeds(frames(folder, photo()))
    with pytest.raises(AttributeError, match="`bands` is not"):
        PeAudioVideoModel.from_pretrained(folder)


def test_vectors_do_not_depend_on_each_other(tower):
    sounds = [sound(0), sound(1, HOP), sound(2, 5 * HOP + 7)]
    images = [photo(0), photo(1, (20, 90)), photo(2)]
    alone = {"sounds": [heard(tower, one) for one in sounds], "images": [seen(tower, one) for one in images]}
    for name, together in (("sounds", heard(tower, *sounds)), ("images", seen(tower, *images))):
        assert together.shape == (3, WIDTH)
        assert together.dtype == np.float32
        assert len(np.unique(together, axis=0)) == 3
        assert together.tobytes() == np.concatenate(alone[name]).tobytes()


def test_a_sound_is_brought_to_48_khz(tower):
    t = np.arange(RATE_HZ) / RATE_HZ
    sine = np.sin(2 * np.pi * 300 * t).astype(np.float32)
    half = Sound(samples_S=np.ascontiguousarray(sine[::2]), sample_rate_hz=RATE_HZ // 2)
    as_it_is = Sound(samples_S=half.samples_S, sample_rate_hz=RATE_HZ)
    right, resampled, fed = heard(tower, Sound(samples_S=sine, sample_rate_hz=RATE_HZ), half, as_it_is)
    assert np.linalg.norm(right - resampled) < 0.2 * np.linalg.norm(right - fed)


@pytest.mark.parametrize("samples", [1, 2, 1919, 1920, 1921])
def test_short_sounds_are_heard(tower, samples):
    assert np.isfinite(heard(tower, sound(0, samples))).all()


def test_it_is_named_by_the_hash_of_its_weights_and_of_its_processor(tower, folder, tmp_path):
    assert tower.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert tower.images is not None
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    PeVideoVideoProcessor(size={"height": SIDE, "width": SIDE}, resample=0).save_pretrained(tmp_path)
    other = open_peav(PeAv(kind="peav", model=str(tmp_path)))
    assert other.images is not None
    assert other.sha256 == tower.sha256
    assert other.images.preprocessing != tower.images.preprocessing


def test_another_front_end_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    PeAudioFeatureExtractor(sampling_rate=16_000).save_pretrained(tmp_path)
    with refused(r"expected sounds at 48000 Hz and a hop of 1920, found \(16000, 1920\)"):
        heard(open_peav(PeAv(kind="peav", model=str(tmp_path))), sound())


def test_another_kind_of_model_is_refused(tmp_path):
    llava = tiny_llava(tmp_path / "llava")
    with refused("expected a model of type 'pe_audio_video', such as facebook/pe-av-small, found 'llava'"):
        open_peav(PeAv(kind="peav", model=str(llava)))
