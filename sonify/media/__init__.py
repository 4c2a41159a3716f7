"""Pictures and sounds: decoding, measuring, encoding."""
