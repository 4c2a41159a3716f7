"""TAESD's published weights as a folder of diffusers' `AutoencoderTiny`."""

from pathlib import Path

from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from safetensors.torch import load_file


def taesd_folder(weights: Path, out: Path) -> Path:
    """Convert the folder `weights/taesd` of the test data; upstream's decoder begins with a clamp, diffusers' not."""
    encoder = load_file(weights / "taesd_encoder.bf16.safetensors")
    decoder = load_file(weights / "taesd_decoder.bf16.safetensors")
    tensors = {f"encoder.layers.{name}": tensor.float() for name, tensor in encoder.items()}
    for name, tensor in decoder.items():
        number, _, rest = name.partition(".")
        tensors[f"decoder.layers.{int(number) - 1}.{rest}"] = tensor.float()
    vae = AutoencoderTiny()
    vae.load_state_dict(tensors)
    vae.save_pretrained(out)
    return out
