"""The zipped model: towers, links between them, and how a segment passes through."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from zippkit.training.hf_parts.around import AddedVocabulary, InputProjection
from zippkit.training.hf_parts.config import ZippedConfig
from zippkit.training.hf_parts.kinds import LINKS, TOWERS
from zippkit.training.hf_parts.layers import widened
from zippkit.training.hf_parts.lora import adapt
from zippkit.training.hf_parts.references import fill_tower
from zippkit.training.hf_parts.sequence import Memory, Past, Slots, Tokens


@dataclass
class ZippedOutput(ModelOutput):
    """What a forward pass gives."""

    logits: tuple[Tensor | None, ...] = ()
    """For each segment (B, T, V), begin and end included: ``logits[i][:, t]`` predicts token t + 1 of segment i; None
    for segments of an encoder."""


class Site(NamedTuple):
    """One place where a link acts: it reads a source after some layers, and rewrites a target after some layers."""

    link: str
    number: int
    kind: str
    source: str
    source_depth: int
    target: str
    target_depth: int
    by_segment: bool
    """Whether it reads a segment's own tokens, and no slots that another link has put before them."""

    @property
    def key(self) -> str:
        """Its name."""
        return f"{self.link}.{self.number}"


class ZippedLayers(PreTrainedModel):
    """Towers and links, and the run of one tower over new tokens."""

    config_class = ZippedConfig
    config: ZippedConfig
    base_model_prefix = ""
    main_input_name = "segments"
    _supports_sdpa = True

    def __init__(self, config: ZippedConfig) -> None:
        super().__init__(config)
        dims = {name: tower["dim"] for name, tower in config.towers.items()}
        self.towers = nn.ModuleDict()
        for name, tower in config.towers.items():
            # only with shared_weights
            if tower["weights_of"] != name:
                continue
            self.towers[name] = TOWERS[tower["kind"]](tower["settings"])
            # only with lora
            if tower["lora"]:
                adapt(self.towers[name], tower["lora"])
        # only with input_projection
        self.input_projections = nn.ModuleDict(
            {
                n: InputProjection(t["input_projection"], dims[n])
                for n, t in config.towers.items()
                if t["input_projection"]
            }
        )
        # only with added_vocabulary
        self.vocabularies = nn.ModuleDict(
            {
                n: AddedVocabulary(t["first_added"], t["n_added"], dims[n])
                for n, t in config.towers.items()
                if t["n_added"]
            }
        )
        self.links = nn.ModuleDict()
        self.sites: list[Site] = []
        for link in config.links:
            source, target = link["source"], link["target"]
            for i, (read, rewritten) in enumerate(link["sites"]):
                site = Site(link["name"], i, link["kind"], source, read, target, rewritten, link["by_segment"])
                self.sites.append(site)
            # only with joint_attention
            if link["kind"] == "joint_attention":
                continue
            made = [LINKS[link["kind"]](link["settings"], dims[source], dims[target]) for _ in link["sites"]]
            self.links[link["name"]] = nn.ModuleList(made)
        # only with references
        self._keys_to_ignore_on_load_missing = [
            rf"^towers\.{name}\." for name, tower in config.towers.items() if tower["reference"]
        ]
        self.post_init()

    # only with references
    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load the model, with frozen towers that stand elsewhere, and each tower in its own dtype."""
        found = super().from_pretrained(*args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        with torch.no_grad():
            for name, tower in model.towers.items():
                fill_tower(tower, model.config.towers[name])
        return found

    def tower(self, name: str) -> Any:
        """A tower by its name; its weights may be another one's."""
        return self.towers[self.config.towers[name]["weights_of"]]

    def link(self, site: Site) -> Any:
        """The module that acts at a site."""
        return cast("nn.ModuleList", self.links[site.link])[site.number]

    def _embedded(self, name: str, tokens: Tokens, multimodal: bool) -> Tensor:
        """States (B, T, D) of new tokens at depth 0."""
        tower = self.tower(name)
        # only with added_vocabulary
        if name in self.vocabularies:
            added = cast("AddedVocabulary", self.vocabularies[name])
            own = tokens._replace(ids=torch.where(tokens.ids < added.first, tokens.ids, 0))
            rows = tower.placed(added.embed(tokens.ids), tokens)
            embedded = torch.where((tokens.ids >= added.first)[:, :, None], rows, widened(tower.embed(own)))
            return self._projected(name, embedded, multimodal)
        return self._projected(name, widened(tower.embed(tokens)), multimodal)

    def _projected(self, name: str, embedded: Tensor, multimodal: bool) -> Tensor:
        """Pass embeddings (B, T, D) of rows of several modalities through the tower's input projection."""
        # only with input_projection
        if multimodal and name in self.input_projections:
            return cast("Tensor", self.input_projections[name](embedded))
        del name, multimodal
        return embedded

    def _logits(self, name: str, hidden: Tensor) -> Tensor:
        """Logits (B, T, V) of a tower's last states."""
        tower = self.tower(name)
        # only with added_vocabulary
        if name in self.vocabularies:
            own = widened(tower.head(hidden.to(dtype_of(tower))))
            return cast("AddedVocabulary", self.vocabularies[name]).head(own, hidden)
        return widened(tower.head(hidden.to(dtype_of(tower))))

    def _run(
        self,
        past: Past,
        name: str,
        hidden: Tensor,
        tokens: Tokens,
        readers: Collection[str],
        whole: bool,
        slots: Slots | None = None,
    ) -> Tensor:
        """Run a tower's layers, and the links at them, over new tokens.

        Args:
            past: what came before; it is extended.
            name: the tower.
            hidden: (B, T, D) states at depth 0.
            tokens: the new tokens.
            readers: towers that may yet read what this one says.
            whole: run every layer; otherwise those on which a reader depends.
            slots: what a link has put here; the states are then those of empty places.

        Returns:
            States (B, T, D) after the last layer that was run.
        """
        read = [site for site in self.sites if site.source == name and site.target in readers]
        last = max((site.source_depth for site in read), default=0)
        last = self.config.towers[name]["n_layers"] if whole else last
        # only with joint_attention
        read = [site for site in read if site.kind != "joint_attention"]
        for depth in range(last + 1):
            if depth:
                hidden = self._layer(past, name, depth, hidden, tokens)
            for site in read:
                if site.source_depth == depth and not (slots is not None and site.by_segment):
                    past.unfinished.setdefault(site.key, []).append((hidden, tokens))
            # only with slots
            if slots is not None and depth == 0:
                hidden = hidden + slots.states * slots.real[:, :, None]
            for site in self.sites:
                if site.target == name and site.target_depth == depth and site.key in past.memories:
                    hidden = widened(self.link(site).read(hidden, tokens, past.memories[site.key]))
        return hidden

    def _layer(self, past: Past, name: str, depth: int, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Run a tower's layer number ``depth``, counted from 1, in the tower's own dtype."""
        tower = self.tower(name)
        others: list[Memory] = []
        # only with joint_attention
        for site in self.sites:
            if site.kind == "joint_attention" and site.target == name and site.target_depth == depth:
                others += shared_keys(past, site)
        out: Tensor = tower.layer(depth - 1, hidden.to(dtype_of(tower)), tokens, past.caches[name], others)
        return widened(out)

    def _finish(self, past: Past, name: str) -> None:
        """A segment of a tower has ended: the towers that read it see it from now on."""
        for site in self.sites:
            if site.source == name and site.key in past.unfinished:
                parts = past.unfinished.pop(site.key)
                states = torch.cat([states for states, _ in parts], dim=1)
                written = self.link(site).write(states, joined([tokens for _, tokens in parts]))
                if isinstance(written, Slots):
                    past.slots.setdefault(site.target, []).append(written)
                else:
                    known = past.memories.get(site.key)
                    past.memories[site.key] = written if known is None else known.extended(written)


def dtype_of(tower: nn.Module) -> torch.dtype:
    """The dtype in which a tower computes."""
    return next(tower.parameters()).dtype


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Runs of tokens, one behind the other."""
    columns = {
        name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in Tokens._fields if name != "kept"
    }
    return parts[-1]._replace(**columns)


# only with joint_attention
def shared_keys(past: Past, site: Site) -> list[Memory]:
    """The keys and values of another tower at a layer whose attention is shared, if it has said anything."""
    if site.source not in past.caches:
        return []
    layer: Any = past.caches[site.source].layers[site.source_depth - 1]
    return [Memory(layer.keys, layer.values, past.kept[site.source] >= 0)]
