"""The embedded sample of `sonify demo`: photographs, captions of our own, and recordings."""
