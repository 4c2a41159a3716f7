"""What a person looks at of a run: its state, its damage, the use of its pool, its gallery."""
