"""From a trained student to something that others can use: measured, built, described."""
