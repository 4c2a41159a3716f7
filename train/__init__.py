"""Training an audio-conditioned PixArt-alpha on what `sonify` wrote, and making pictures with it."""
