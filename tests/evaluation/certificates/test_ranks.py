"""C6: several ranks learn what one process learns, and without their agreement they are seen not to."""

from __future__ import annotations

from typing import Any

import pytest

import zippkit
from helpers.compositions import link, randomise, tower
from helpers.tiny_encoders import MODELS
from zippkit.evaluation.certificates import verify
from zippkit.evaluation.certificates.ranks import ranks_equal_one
from zippkit.evaluation.certificates.report import RefutedError
from zippkit.spec.composition_spec import CompositionSpec

pytestmark = pytest.mark.slow

PREFIX: dict[str, Any] = {"kind": "prefix", "config": {"stack": 1}}
HEARS = {"kind": "hf_encoder", "config": {"model": MODELS["hubert"]}, "freeze": True}
LEARNS = {**HEARS, "freeze": False, "place": "root"}
RESAMPLED = {"kind": "resampler", "config": {"queries": 2, "n_heads": 2, "ffn_mult": 2}}
BOTH = [link("speech", "text", every=1), link("text", "speech", every=1)]
JOINT = {"kind": "joint_attention", "every": 1, "config": {}}
SPECS: dict[str, dict[str, Any]] = {
    # Two towers of one shape, a continuous one, adapters, a prefix, both losses that compare more than tokens.
    "everything": {
        "towers": {
            "text": tower(2, 16, freeze=True, lora={"rank": 2, "pattern": "layers.*_proj.weight"}),
            "speech": tower(2, 16, input_projection={}),
            "sound": HEARS,
        },
        "links": [*BOTH, {**link("sound", "text"), **PREFIX}],
        "contrastive": [{"from": "speech", "into": "text", "target_depth": 1}],
        "next": {},
    },
    "small whole": {
        "towers": {"text": tower(2, 16, place="replicate"), "speech": tower(2, 24)},
        "links": [link("speech", "text", every=1, projection={"share": "sites"})],
    },
    "trained encoder": {
        "towers": {"text": tower(2, 16, freeze=True), "sound": LEARNS},
        "links": [{**link("sound", "text"), **RESAMPLED}],
    },
    "one attention": {
        "towers": {"text": tower(2, 16), "speech": tower(2, 16)},
        "links": [{**link("speech", "text"), **JOINT}, {**link("text", "speech"), **JOINT}],
    },
    "shared weights": {
        "towers": {"text": tower(2, 16, extend_vocabulary={"units": 9}), "other": {"share_with": "text"}},
        "links": [link("other", "text", every=1)],
    },
}


def made(name: str) -> zippkit.Composition:
    zipped = zippkit.compile(CompositionSpec.model_validate({"name": "tiny", **SPECS[name]}))
    randomise(zipped.model)
    return zipped


def test_two_ranks_equal_one() -> None:
    (found,) = verify(made("everything"), only=["C6"], ranks=2).certificates
    assert found.passed, found.detail
    assert "2 ranks" in found.detail


@pytest.mark.ranks
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", SPECS)
def test_every_composition_on_any_number_of_ranks(name: str, size: int) -> None:
    assert f"{size} ranks" in ranks_equal_one(made(name), size)


@pytest.mark.ranks
@pytest.mark.parametrize("size", [2, 4])
def test_without_the_agreement_they_fail(size: int) -> None:
    with pytest.raises(RefutedError):
        ranks_equal_one(made("everything"), size, agreeing=False, limit=60)
