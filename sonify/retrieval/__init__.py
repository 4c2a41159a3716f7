"""Finding recordings for concepts: encoders, exact search, the choice of candidates and the draw."""
