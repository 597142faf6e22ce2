"""Keys, statements, the log and their verification. Base install only: no torch, no network."""
