"""Certificates: proofs, on the user's own composition, of what the design's section 5 claims for every one."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch

from zippkit.composition import Composition
from zippkit.errors import ZippkitError, did_you_mean
from zippkit.evaluation.certificates.causality import sees_no_future
from zippkit.evaluation.certificates.decoding import steps_equal_the_whole
from zippkit.evaluation.certificates.drawing import diagrams_draw_the_sites
from zippkit.evaluation.certificates.equation import computes_the_equation
from zippkit.evaluation.certificates.exported import exported_says_the_same
from zippkit.evaluation.certificates.frozen import frozen_tensors_rest
from zippkit.evaluation.certificates.gradients import every_parameter_is_reached
from zippkit.evaluation.certificates.packing import packed_equals_unpacked
from zippkit.evaluation.certificates.ranks import CLAIM, ranks_equal_one
from zippkit.evaluation.certificates.report import Certificate, RefutedError, Report
from zippkit.evaluation.certificates.saved import frozen_towers_leave_as_they_came
from zippkit.evaluation.certificates.unimodal import towers_alone_are_untouched

__all__ = ["CERTIFICATES", "Certificate", "Report", "verify"]

Prove = Callable[[Composition], str]
"""Says what was shown, or raises RefutedError; leaves the composition as it is. The caller forks the random state."""

CERTIFICATES: dict[str, tuple[str, Prove]] = {
    "C1": ("no position sees the future, through any chain of links, nor whether there is one", sees_no_future),
    "C2": ("a unimodal row gives bit-identical logits to the tower alone", towers_alone_are_untouched),
    "C3": ("what the spec freezes is unchanged since its first source, parameters and buffers", frozen_tensors_rest),
    "C4": ("cached decoding equals the full forward, in any order of towers", steps_equal_the_whole),
    "C5": ("documents that share a row give the loss and gradients that they give apart", packed_equals_unpacked),
    "C7": ("every trainable parameter is reached by a gradient", every_parameter_is_reached),
    "C8": (
        "what the spec freezes as a whole is saved byte-identical to its first source",
        frozen_towers_leave_as_they_came,
    ),
    "C9": ("the diagram draws exactly the sites of the module", diagrams_draw_the_sites),
    "C11": ("the composition computes the design's equation", computes_the_equation),
}


EXPORTED = "the training forward, cached decoding and the exported model say the same"
"""Claim of C10, which needs the folder of an exported model."""


def verify(
    zipped: Composition, *, only: Collection[str] = (), ranks: int | None = None, exported: Path | None = None
) -> Report:
    """Prove the certificates of a composition, on copies: neither it nor the global random state changes.

    Args:
        zipped: the composition.
        only: names of certificates, such as ``C1``; all of them if empty.
        ranks: also prove that so many processes learn what one does (C6), which takes longer than all the others.
        exported: folder of the exported model (``zippkit export RUN --hf FOLDER``), of which C10 is to be proven.

    Raises:
        ZippkitError: there is no certificate of that name.
    """
    known = dict(CERTIFICATES)
    if ranks is not None:
        known["C6"] = (CLAIM, partial(ranks_equal_one, size=ranks))
    if exported is not None:
        known["C10"] = (EXPORTED, partial(exported_says_the_same, folder=exported))
    known = {name: known[name] for name in sorted(known, key=lambda name: int(name[1:]))}
    for name in only:
        if name not in known:
            raise ZippkitError(f"no certificate is called {name!r}{did_you_mean(name, known)}")
    return Report(tuple(_certify(name, *known[name], zipped) for name in known if not only or name in only))


def _certify(name: str, claim: str, prove: Prove, zipped: Composition) -> Certificate:
    devices = {p.device for p in zipped.model.parameters() if p.device.type == "cuda"}
    began = time.monotonic()
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(0)
        try:
            passed, detail = True, prove(zipped)
        except RefutedError as error:
            passed, detail = False, str(error)
        except Exception as error:
            # Towers and links of third parties run here, so anything can come out.
            passed, detail = False, f"could not be tried, {type(error).__name__}: {error}"
    return Certificate(name, claim, passed, " ".join(detail.split()), time.monotonic() - began)
