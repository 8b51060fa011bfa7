"""A recipe to a run folder: batches, steps, metrics, checkpoints."""
