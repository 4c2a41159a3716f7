"""The models of others: their files, what exactly they are, and how they come into torch."""
