"""The arithmetic of the metrics, on vectors alone: no network, no file."""
