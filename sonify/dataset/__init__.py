"""A run as a published dataset of metadata, and such a dataset rendered again from other copies of its input."""
