"""Where Hydra ends: schemas of the configs, the command-line entry, and the builder of parts from values."""
