"""Where a Hugging Face model lies, for the towers' configs; the library's tokenizers read such folders too."""

from __future__ import annotations

from zippkit.spec.hf_folder import CONFIG, WEIGHTS, local_folder

__all__ = ["CONFIG", "WEIGHTS", "local_folder"]
