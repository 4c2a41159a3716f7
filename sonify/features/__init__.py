"""What a training run reads instead of pictures and sounds: latents and audio features."""
