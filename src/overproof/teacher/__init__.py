"""The model to learn from: loading it, sampling its answers, keeping its distributions."""
