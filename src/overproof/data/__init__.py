"""Training records: their canonical form and key, what is demanded of them, and the data set."""
