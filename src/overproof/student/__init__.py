"""The flash model: its vocabulary, its shape, its losses, its training."""
