"""What every part needs and nothing depends back on: errors, recipe, artifacts, device, console."""
