"""The dataset as metadata: what goes out, and how it is rendered again elsewhere."""
