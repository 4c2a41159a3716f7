"""The dataset as metadata, ready to upload; `sonify.published` renders it again."""
