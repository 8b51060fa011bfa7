"""Audio, transcripts and discrete units: from corpora on disk to a dataset folder."""
