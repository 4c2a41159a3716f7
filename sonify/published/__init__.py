"""Rendering a published dataset again: somebody else's folder, checked, matched with what is here, and repaired."""
