"""Where a run's metrics go besides its own files: plugins in the group ``zippkit.trackers``."""
