"""The stages: what each takes in, gives out and rejects; `table` says which depends on which."""
