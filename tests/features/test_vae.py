from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from safetensors.torch import load_file, save_file

from sonify.errors import InputError
from sonify.features.vae import decode, encode, load_vae
from sonify.media.pixels import decode_square
from sonify.models.fetch import VAE_FILES, fetch_model
from tests.builders import refused
from tests.tiny_networks import edit_json, edit_weights, taesd_folder
from train.tiny import write_tiny_ast, write_tiny_vae

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def taesd(test_data, tmp_path_factory):
    return taesd_folder(test_data / "weights" / "taesd", tmp_path_factory.mktemp("taesd") / "vae")


def load(folder):
    return load_vae(fetch_model(str(folder), None, VAE_FILES), CPU, torch.float32)


def read_photos(folder, count, size):
    paths = sorted(folder.glob("*.jpg"))
    return np.stack([decode_square(path.read_bytes(), size) for path in paths[:: len(paths) // count][:count]])


def psnr_db(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2, axis=(1, 2, 3)))


def test_real_photographs_survive_taesd(taesd, test_data):
    vae = load(taesd)
    photos = read_photos(test_data / "photos", 5, 256)
    posterior = encode(vae, photos)
    assert isinstance(vae, AutoencoderTiny)
    assert posterior.mean_BCHW.shape == posterior.std_BCHW.shape == (5, 4, 32, 32)
    assert not posterior.std_BCHW.any()
    assert 0.5 < posterior.mean_BCHW.std() < 1.5  # scaled as Stable Diffusion's latents are: TAESD's scale is 1
    pictures = decode(vae, posterior.mean_BCHW)
    assert (pictures.dtype, pictures.shape) == (np.uint8, photos.shape)
    psnr = psnr_db(pictures, photos)
    assert np.median(psnr) > 22
    assert psnr.min() > 17
    with torch.no_grad():
        wrong: Any = vae.encode(torch.from_numpy(photos[:1]).permute(0, 3, 1, 2) / 255.0)
    assert psnr_db(decode(vae, wrong.latents), photos[:1]).max() < 14  # what another range of the input would give


def test_the_posterior_is_the_librarys(tmp_path, test_data):
    vae = load(write_tiny_vae(tmp_path / "vae"))
    photos = read_photos(test_data / "photos", 2, 64)
    posterior = encode(vae, photos)
    plain: Any = AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    with torch.no_grad():
        expected = plain.encode(torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255 * 2 - 1).latent_dist
    torch.testing.assert_close(posterior.mean_BCHW, expected.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(posterior.std_BCHW, expected.std, atol=1e-5, rtol=1e-5)
    assert decode(vae, posterior.mean_BCHW).shape == photos.shape


def test_attention_weights_of_older_names_are_read(tmp_path):
    """As the published sd-vae-ft-ema has them."""
    folder = write_tiny_vae(tmp_path / "vae")
    expected = encode(load(folder), np.full((1, 64, 64, 3), 90, np.uint8)).mean_BCHW
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(folder / WEIGHTS)
    for name in [name for name in tensors if ".attentions." in name]:
        for new, old in older.items():
            if f".{new}." in name:
                tensors[name.replace(f".{new}.", f".{old}.")] = tensors.pop(name)
    assert any(".query." in name for name in tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    assert torch.equal(encode(load(folder), np.full((1, 64, 64, 3), 90, np.uint8)).mean_BCHW, expected)


def configure(folder, **changes):
    edit_json(folder / "config.json", lambda content: content.update(changes))


def replace_bias(folder, tensor=None):
    replacement = {} if tensor is None else {"encoder.conv_in.bias": tensor}
    edit_weights(folder / WEIGHTS, lambda tensors: [tensors.pop("encoder.conv_in.bias"), tensors.update(replacement)])


def cut_short(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


@pytest.mark.parametrize(
    ("break_folder", "message"),
    [
        (lambda f: configure(f, _class_name="VQModel"), "AutoencoderKL or AutoencoderTiny.*found 'VQModel'"),
        (lambda f: (f / "config.json").write_text("{}"), "expected a `_class_name`"),
        (lambda f: configure(f, _class_name="AutoencoderTiny"), "of the tensors of AutoencoderTiny are not in the w"),
        (lambda f: configure(f, latent_channels=8), "or in another shape"),
        (replace_bias, "1 of the tensors .* such as encoder.conv_in.bias"),
        (lambda f: replace_bias(f, torch.zeros(3)), "or in another shape"),
        (lambda f: (f / WEIGHTS).rename(f / "diffusion_pytorch_model.bin"), "is a pickle and never read"),
        (lambda f: (f / WEIGHTS).unlink(), "expected weights in"),
        (cut_short, "cut short"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, break_folder, message):
    folder = write_tiny_vae(tmp_path / "vae")
    break_folder(folder)
    with refused(message):
        load(folder)


def test_another_kind_of_model_is_named(tmp_path):
    with pytest.raises(InputError, match="expected a `_class_name`, found none"):
        load(write_tiny_ast(tmp_path / "ast"))
