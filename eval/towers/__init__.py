"""The networks that judge: each takes pictures, sounds or texts to vectors, and is named by its weights' hash."""
