"""Packages that a plain installation leaves out: which extra brings each, and the error where it is missing."""

from __future__ import annotations

from importlib.util import find_spec

from zippkit.errors import ZippkitError

EXTRAS = {
    "pyarrow": ("data", "reading and writing datasets"),
    "soundfile": ("audio", "reading and writing sound"),
    "librosa": ("audio", "resampling and spectrograms"),
    "sklearn": ("units", "k-means codebooks and the corpus of handwritten digits"),
    "datasets": ("datasets", "reading folders that the library datasets saved"),
    "PIL": ("images", "reading pictures"),
    "matplotlib": ("plots", "drawing masks, reports and experiments"),
    "scipy": ("statistics", "tests of significance"),
    "tensorboard": ("tensorboard", "TensorBoard's files"),
    "torch_xla": ("xla", "device: xla"),
    "huggingface_hub": ("hub", "push and pull"),
    "wandb": ("wandb", "logging to Weights & Biases"),
    "mlflow": ("mlflow", "logging to MLflow"),
    "onnxruntime": ("speech-eval", "scoring speech"),
    "moonshine_voice": ("speech-eval", "scoring speech"),
    "moonshine_onnx": ("speech-eval", "scoring speech"),
    "pocketsphinx": ("speech-eval", "scoring speech"),
}
"""Extra and purpose of each top-level module that only an extra brings."""


class MissingExtraError(ZippkitError):
    """A package is not installed; the message names the extra that brings it."""


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported; does not import it."""
    return find_spec(module) is not None


def require(*modules: str, error: type[MissingExtraError] = MissingExtraError) -> None:
    """Check that top-level modules of `EXTRAS` are installed, before they are imported; imports none of them.

    Raises:
        MissingExtraError: some are not; names every extra that brings them. ``error`` may be a subclass of it.
    """
    missing = [name for name in modules if not is_installed(name)]
    if missing:
        extras, purposes = (
            ", ".join(dict.fromkeys(each)) for each in zip(*(EXTRAS[name] for name in missing), strict=True)
        )
        verb = "is" if len(missing) == 1 else "are"
        command = f"pip install 'zippkit[{extras.replace(' ', '')}]'"
        raise error(f"{purposes} needs {', '.join(missing)}, which {verb} not installed: {command}")
