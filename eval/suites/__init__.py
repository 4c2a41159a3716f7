"""Suites: what a model is asked to paint, with what is known of it; one reader for each corpus."""
