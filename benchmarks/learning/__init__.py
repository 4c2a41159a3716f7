"""Does a model learn to see what it hears? Pictures from held-out recordings, judged by an independent eye."""
