"""What is measured of depth over time: `registry.py` lists every metric, docs/evaluation.md what each is blind to."""
