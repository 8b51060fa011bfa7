"""What config.json says of a composition, and what cannot be exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.model.links.attending import Attending
from zippkit.model.links.base import Link
from zippkit.model.links.cross_attention import CrossAttention
from zippkit.model.links.gated_cross_attention import GatedCrossAttention
from zippkit.model.links.joint_attention import JointAttention
from zippkit.model.links.prefix import Prefix
from zippkit.model.links.resampler import Resampler
from zippkit.model.lora import AdaptedConv1D, AdaptedLinear
from zippkit.model.tower import Exported
from zippkit.spec import registry
from zippkit.spec.link_spec import LinkSpec

KINDS: dict[type[Link], str] = {
    GatedCrossAttention: "gated_cross_attention",
    CrossAttention: "cross_attention",
    Prefix: "prefix",
    Resampler: "resampler",
    JointAttention: "joint_attention",
}
"""The part that computes each link; a class of another package is none of them."""
BY_SEGMENT = ("prefix", "resampler")
KNOWN_GROUPS = ("links", "input_projections", "adapters", "vocabularies", "contrastive", "next")
LEFT_OUT = {"contrastive": "contrastive losses", "next": "the heads that tell which modality comes next"}


def refuse_foreign(zipped: Composition) -> None:
    """Refuse a composition of which something cannot be computed without zippkit.

    Raises:
        ZippkitError: names every such part.
    """
    found = list(_problems(zipped))
    if found:
        raise ZippkitError("\n".join(["this composition cannot be exported:", *(f"  {each}" for each in found)]))


def _problems(zipped: Composition) -> Iterator[str]:
    spec, graph, model = zipped.spec, zipped.graph, zipped.model
    for name, tower in spec.towers.items():
        if model.tower(name).exported() is None:
            yield f"towers.{name}: kind {tower.kind!r}, {type(model.tower(name)).__module__}, has no exported form"
        if not graph.towers[name].predicts and (tower.input_projection or tower.extend_vocabulary):
            yield f"towers.{name}: an encoder with an input projection or added ids"
    for link in spec.links:
        cls = registry.implementation(registry.LINKS, link.kind)
        if cls not in KINDS:
            yield f"links.{link.label}: kind {link.kind!r}, {cls.__module__}, has no exported form"
        if link.clock == "sync":
            yield f"links.{link.label}: `clock: sync`; an exported model says one thing after the other"
        if not graph.towers[link.target].predicts:
            yield f"links.{link.label}: rewrites {link.target!r}, an encoder, which is run as a whole"
    pairs = [(each.source, each.target) for each in graph.layout.inserts]
    for source, target in {pair for pair in pairs if pairs.count(pair) > 1}:
        yield f"two links put segments of {source!r} into the sequence of {target!r}"
    for name, group in model.groups.items():
        if name not in KNOWN_GROUPS and len(group):
            yield f"{name}: parts of another package have no exported form"


def exported_towers(zipped: Composition) -> dict[str, Exported]:
    """Each tower that owns its weights, as an exported model has it."""
    found = {
        name: zipped.model.tower(name).exported() for name in zipped.spec.towers if zipped.model.owner(name) == name
    }
    return {name: each for name, each in found.items() if each is not None}


def left_out(zipped: Composition) -> list[str]:
    """Sentences about parts of a composition that only training needs."""
    return [f"left out: {told}" for name, told in LEFT_OUT.items() if len(zipped.model.groups.get(name, ()))]


def describe(zipped: Composition, references: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of `zippkit.training.hf_parts.config.ZippedConfig`.

    Args:
        zipped: the composition.
        references: of towers whose weights stand elsewhere, where.
    """
    towers = exported_towers(zipped)
    described = {name: _tower(zipped, name, towers[zipped.model.owner(name)]) for name in zipped.spec.towers}
    for name, reference in (references or {}).items():
        described[name]["reference"] = reference
    links = [_link(zipped, link) for link in zipped.spec.links]
    return {"towers": described, "links": links, "modalities": _modalities(zipped)}


def features(settings: Mapping[str, Any]) -> set[str]:
    """What a model uses, of what `zippkit.training.hf_parts` marks by ``# only with``."""
    towers, links = settings["towers"].values(), settings["links"]
    found = {tower["kind"] for tower in towers} | {link["kind"] for link in links}
    uses = {
        "lora": any(tower["lora"] for tower in towers),
        "input_projection": any(tower["input_projection"] for tower in towers),
        "added_vocabulary": any(tower["n_added"] for tower in towers),
        "around": any(tower["n_added"] or tower["input_projection"] for tower in towers),
        "shared_weights": any(tower["weights_of"] != name for name, tower in settings["towers"].items()),
        "slots": any(link["inserts"] for link in links),
        "references": any(tower["reference"] or tower["dtype"] != "float32" for tower in towers),
    }
    return found | {name for name, used in uses.items() if used}


def _tower(zipped: Composition, name: str, exported: Exported) -> dict[str, Any]:
    spec, config, tower = zipped.spec.towers[name], zipped.graph.towers[name], zipped.model.tower(name)
    return {
        "kind": exported.kind,
        "settings": exported.settings,
        "dim": config.dim,
        "n_layers": config.n_layers,
        "max_len": config.max_len,
        "dtype": str(tower.dtype).removeprefix("torch."),
        "weights_of": zipped.model.owner(name),
        "counts_in_whole": name in zipped.graph.layout.shared,
        "lora": _lora(zipped, name),
        "input_projection": spec.input_projection and spec.input_projection.model_dump(exclude={"freeze"}),
        "first_added": config.vocab_size,
        "n_added": sum(each.size for each in spec.extend_vocabulary.values()),
        "reference": None,
    }


def adapted_maps(zipped: Composition, name: str) -> dict[str, AdaptedLinear | AdaptedConv1D]:
    """The maps of a tower that have adapters, by their paths."""
    modules = zipped.model.tower(name).named_modules()
    return {path: module for path, module in modules if isinstance(module, AdaptedLinear | AdaptedConv1D)}


def _lora(zipped: Composition, name: str) -> dict[str, Any] | None:
    maps = adapted_maps(zipped, name)
    if not maps:
        return None
    adapter = next(iter(maps.values())).adapter
    rank = adapter.down.shape[0]
    return {"rank": rank, "alpha": adapter.scale * rank, "maps": list(maps)}


def _link(zipped: Composition, link: LinkSpec) -> dict[str, Any]:
    sites = [site for site in zipped.graph.sites if site.link == link.label]
    kind = KINDS[registry.implementation(registry.LINKS, link.kind)]
    return {
        "name": link.label,
        "kind": kind,
        "source": link.source,
        "target": link.target,
        "sites": [(site.source_depth, site.target_depth) for site in sites],
        "by_segment": kind in BY_SEGMENT,
        "inserts": link.settings.acts == "embedding",
        "settings": _link_settings(zipped, link),
    }


def _link_settings(zipped: Composition, link: LinkSpec) -> dict[str, Any]:
    shown = ("n_heads", "positions", "rope_theta", "pace", "ffn_mult", "gate", "norm_source", "stack", "queries")
    settings = link.settings.model_dump(include={*shown, "depth", "design"})
    if not link.settings.projects:
        return settings
    n_in = link.settings.projected_dim(zipped.graph.towers[link.source].dim)
    settings["projection"] = {"n_in": n_in, **link.projection.model_dump(include={"depth", "width", "activation"})}
    site = next(site for site in zipped.graph.sites if site.link == link.label)
    module = zipped.model.link(site)
    if isinstance(module, Resampler):
        cross = module.config.output == "cross_attention"
        settings["reader"] = _reader(module.reader) if cross else None
    return settings


def _reader(reader: Attending) -> dict[str, Any]:
    kept = {"n_heads", "positions", "rope_theta", "pace", "ffn_mult", "gate", "norm_source"}
    return {**reader.config.model_dump(include=kept), "projection": None}


def _modalities(zipped: Composition) -> dict[str, Any]:
    return {
        name: {
            "tower": modality.tower,
            "first_id": modality.first_id,
            "n_ids": modality.vocab_size,
            "begin": modality.frame and modality.frame.begin,
            "end": modality.frame and modality.frame.end,
            "generates": modality.frame is not None and zipped.graph.towers[modality.tower].causal,
        }
        for name, modality in zipped.graph.modalities.items()
    }
