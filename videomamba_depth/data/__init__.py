"""From videos on disk, or from the synthetic world, to batches of clips; and the cache of the teacher's labels."""
