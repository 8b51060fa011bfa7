"""k-means for codebooks: a bounded sample, centroids, the nearest of them. The only file that imports sklearn."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from zippkit.errors import DataError
from zippkit.system.extras import require

_ROWS_AT_ONCE = 8192
"""Rows compared with all centroids at a time: 64 MB of distances for 1024 centroids."""


class Reservoir:
    """A uniform sample of at most ``size`` rows from a stream of unknown length (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.n_seen = 0
        self._rng = np.random.default_rng(seed)
        self._chunks: list[NDArray[np.float32]] = []

    @property
    def rows(self) -> NDArray[np.float32]:
        """(min(size, n_seen), D) rows kept so far."""
        if not self._chunks:
            raise DataError("nothing to train units on")
        if len(self._chunks) > 1:
            self._chunks = [np.concatenate(self._chunks)]
        return self._chunks[0]

    def add(self, rows: NDArray[np.float32]) -> None:
        """Offer rows (N, D); each of all rows so far is kept with the same probability."""
        fill = max(0, min(self.size - self.n_seen, len(rows)))
        if fill:
            self._chunks.append(rows[:fill].copy())
        late = rows[fill:]
        if len(late):
            # Row number n (from 0) takes the place of a kept row with probability size / (n + 1).
            places = self._rng.integers(0, np.arange(self.n_seen + fill, self.n_seen + len(rows)) + 1)
            kept = places < self.size
            self.rows[places[kept]] = late[kept]
        self.n_seen += len(rows)


def windows(frames: NDArray[np.float32], window: int, stride: int) -> NDArray[np.float32]:
    """(T, D) frames to (U, window * D); the last frame is repeated so that every frame is in a window."""
    n_windows = 1 + max(0, -(-(len(frames) - window) // stride))
    frames = np.pad(frames, ((0, (n_windows - 1) * stride + window - len(frames)), (0, 0)), mode="edge")
    views = np.lib.stride_tricks.sliding_window_view(frames, window, axis=0)[::stride]
    return rearrange(views, "u d w -> u (w d)")


def cluster(
    rows: NDArray[np.float32],
    n_clusters: int,
    seed: int,
    progress: Callable[[int, int, str], None] | None = None,
    n_polish: int = 5,
) -> NDArray[np.float32]:
    """(n_clusters, D) centroids: mini-batch k-means (Sculley 2010), then ``n_polish`` full passes of Lloyd's.

    Raises:
        DataError: there are fewer different rows than clusters.
    """
    require("sklearn")
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    n_different = len({hash(row.tobytes()) for row in rows})
    if n_different < n_clusters:
        raise DataError(f"{n_different} different windows for {n_clusters} units; take fewer, or more data")
    if progress:
        progress(0, n_polish + 1, "clustering")
    start = MiniBatchKMeans(n_clusters, batch_size=4096, n_init=1, random_state=seed)
    with warnings.catch_warnings():
        # Many rows may still be equal (digital silence); a repeated centroid is then never the nearest, and harmless.
        warnings.simplefilter("ignore", ConvergenceWarning)
        centroids: NDArray[np.float32] = start.fit(rows).cluster_centers_.astype(np.float32)
    for done in range(1, n_polish + 1):
        if progress:
            progress(done, n_polish + 1, "clustering")
        centroids = _lloyd(rows, centroids)
    if progress:
        progress(n_polish + 1, n_polish + 1, "clustering")
    return centroids


def _lloyd(rows: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each centroid moved to the mean of the rows nearest to it; one without rows stays."""
    ids = nearest(rows, centroids)
    order = np.argsort(ids, kind="stable")
    used, first, count = np.unique(ids[order], return_index=True, return_counts=True)
    moved = centroids.copy()
    moved[used] = np.add.reduceat(rows[order], first, axis=0) / count[:, None]
    return moved


def nearest(rows: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) index of the centroid nearest to each row; the lowest index among equals."""
    # |x - c|^2 without |x|^2, which is the same for every c; in double precision, so that near ties fall alike on
    # every machine.
    points = centroids.astype(np.float64)
    half_norms = 0.5 * np.square(points).sum(axis=1)
    chunks = [
        (half_norms - rows[at : at + _ROWS_AT_ONCE].astype(np.float64) @ points.T).argmin(axis=1)
        for at in range(0, len(rows), _ROWS_AT_ONCE)
    ]
    return np.concatenate(chunks).astype(np.int64) if chunks else np.zeros(0, np.int64)
