"""What a caption says that can be heard: the AudioSet ontology, our table of words, and the matcher."""
