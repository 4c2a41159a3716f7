"""What a person looks at: the gallery of a run and the pictures of its sounds."""
