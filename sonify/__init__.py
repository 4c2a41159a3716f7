"""Give any image set a soundscape; see README.md."""

__version__ = "0.1.0"
