"""The composition spec: which towers, which layers read which, what is frozen, what the projections look like."""

from __future__ import annotations

import fnmatch
import os
import typing
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from zippkit.errors import did_you_mean
from zippkit.spec import registry
from zippkit.spec.kinds import MAX_IDS, MAX_WIDTH, Frame, LinkConfig, Strict, TowerConfig
from zippkit.spec.validation import Complaint, complaints_of, validate
from zippkit.spec.yaml_document import Place, dotted

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
"""Lower case letters, digits and underscores: names become module names and column names."""
Activation = Literal["relu", "gelu", "silu"]
Action = Literal["freeze", "train", "lora"]
PICKLES = frozenset((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"))
TAKEN_NAMES = frozenset(
    """
    add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches eval
    extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys
    load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to
    to_empty train training type update values xpu zero_grad total gradient_norm next
    """.split()  # noqa: SIM905 (sixty lines of one word each otherwise)
)
"""What `torch.nn.ModuleDict` calls its own attributes, and what a step calls its own losses."""
PART_GROUPS = frozenset(("towers", "input_projections", "adapters", "vocabularies", "links", "contrastive", "next"))
"""What a model calls its own parts."""


class Projection(Strict):
    """The MLP on the source's states inside a link, from the source's width to the target's."""

    depth: int = Field(3, ge=1, le=16, description="Linear layers; 1 is a linear map. The paper's is 3.")
    width: int | None = Field(None, gt=0, le=MAX_WIDTH, description="Hidden width; the target's width if left out.")
    activation: Activation = Field("relu", description="Between the linear layers.")
    share: Literal["none", "sites", "directions"] = Field(
        "none",
        description="One projection for each site; `sites`: one for all sites of the link; `directions`: one for all "
        "links between the two towers, which must be of one width.",
    )


class InputProjection(Strict):
    """The MLP right after a tower's embedding. Rows pass through it, those of tasks with one modality around it."""

    depth: int = Field(2, ge=1, le=16, description="Linear layers. The paper's is 2.")
    width: int | None = Field(None, gt=0, le=MAX_WIDTH, description="Hidden width; the tower's width if left out.")
    activation: Activation = Field(
        "relu", description="After each linear layer; not after the last one where the MLP is residual."
    )
    residual: bool = Field(
        True,
        description="Add the MLP to the embedding, starting at zero; false replaces the embedding, as the paper does.",
    )


class Site(Strict):
    """One place where a link acts: the target reads, after its layer `into`, the source as it is after layer `from`."""

    source: int = Field(alias="from", ge=0, description="Source depth; 0 is its embedding.")
    target: int = Field(
        alias="into",
        ge=0,
        description="Target layer: acts after it (or before it, or inside it, as the kind does); 0 is the embedding.",
    )


class Vocabulary(Strict):
    """Token ids that a tower is given besides its own."""

    size: int = Field(ge=2, le=MAX_IDS, description="Number of ids, begin and end included.")
    begin: int | None = Field(None, ge=0, description="Id that opens a segment; the last but one if left out.")
    end: int | None = Field(None, ge=0, description="Id that closes a segment; the last if left out.")

    @property
    def frame(self) -> Frame:
        begin = self.size - 2 if self.begin is None else self.begin
        return Frame(begin=begin, end=self.size - 1 if self.end is None else self.end)


class Lora(Strict):
    """Low-rank adapters on linear maps that are frozen (LoRA)."""

    rank: int = Field(8, gt=0, description="Width between the two maps of an adapter.")
    alpha: float = Field(16.0, gt=0, description="What an adapter adds is scaled by alpha / rank.")
    pattern: str | list[str] | None = Field(
        None,
        description="Weights that get an adapter, as `layers.*.self_attn.*`, or a list of such patterns; or name them "
        "in `freeze` by `lora`.",
    )

    @field_validator("pattern", mode="plain", json_schema_input_type=str | list[str] | None)
    @classmethod
    def _pattern(cls, value: Any) -> str | list[str] | None:
        """One message instead of one for each member of the union."""
        listed = isinstance(value, list) and bool(value) and all(isinstance(each, str) and each for each in value)
        if value is None or listed or (isinstance(value, str) and value):
            return cast("str | list[str] | None", value)
        raise ValueError("expected a name pattern or a list of them")

    @property
    def patterns(self) -> list[str]:
        return [self.pattern] if isinstance(self.pattern, str) else list(self.pattern or ())

    def misfit(self, name: str, shape: tuple[int, int] | None, kind: str = "") -> str:
        """Why a weight cannot have an adapter; empty if it can.

        Args:
            name: of the weight.
            shape: (outputs, inputs) of its linear map; None where it is of something else.
            kind: what that is, if known.
        """
        if shape is None:
            return f"{name!r} is not the weight of a linear map" + (f" but of {kind}" if kind else "")
        if self.rank > min(shape):
            return f"rank {self.rank} is larger than a side of {name!r}, {shape[0]} x {shape[1]}"
        return ""


class TowerSpec(Strict):
    """One modality's stack of layers."""

    kind: str = Field(description="Registered kind of tower (`zippkit towers` lists them).")
    config: dict[str, Any] = Field(default_factory=dict, description="The kind's own settings.")
    weights: Annotated[Path, Field(strict=False)] | None = Field(
        None, description="A safetensors file or a folder of pre-trained weights; a folder may replace `config`."
    )
    dtype: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="What a frozen tower is held and run in: `bf16`, of half the size, or `auto`, which is bf16 where "
        "all of the weights' file is, else fp32. Links, projections, adapters and the states between layers are fp32.",
    )
    frame: Frame | None = Field(None, description="Begin and end ids; the model's own bos and eos if left out.")
    freeze: bool | dict[str, Action] = Field(
        False,
        description="true, false, or rules `pattern: freeze | train | lora`; every parameter matches exactly one. What "
        "`lora` matches is frozen and gets an adapter.",
    )
    lora: Lora | None = Field(None, description="Adapters on the frozen weights; none if left out.")
    share_with: Name | None = Field(
        None,
        description="Another tower, all of whose weights are this one's too; kind, config, weights, dtype, frame, "
        "freeze and lora are taken from it.",
    )
    input_projection: InputProjection | None = Field(
        None, description="MLP right after the embedding; none if left out."
    )
    extend_vocabulary: dict[Name, Vocabulary] = Field(
        default_factory=dict,
        description="Modalities that this tower reads and writes too, such as `speech: 1026`: so many ids are added "
        "behind its own (the last two are begin and end), with trained rows of their own in embedding and head.",
    )

    parts: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Parts around the tower that other packages bring (entry points of `zippkit.parts`), by their "
        "kind, and their settings, such as `logit_scale: {init: 2.0}`.",
    )

    @field_validator("extend_vocabulary", mode="before", json_schema_input_type=dict[Name, int | Vocabulary])
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        """A plain number is a size."""
        if not isinstance(value, dict):
            return value
        return {name: {"size": given} if type(given) is int else given for name, given in value.items()}

    @field_validator("freeze", mode="plain", json_schema_input_type=bool | dict[str, Action])
    @classmethod
    def _freeze(cls, value: Any) -> bool | dict[str, Action]:
        """One message instead of one for each member of the union."""
        if isinstance(value, bool):
            return value
        if isinstance(value, dict) and value and all(v in typing.get_args(Action) for v in value.values()):
            return cast("dict[str, Action]", value)
        raise ValueError("expected true, false, or a mapping of name patterns to `freeze`, `train` or `lora`")

    @cached_property
    def resolved(self) -> tuple[TowerConfig | None, list[Complaint]]:
        """The tower's own Config, with the spec's frame in place; or what is wrong, placed inside this section."""
        try:
            cls: type[TowerConfig] = registry.config_class(registry.TOWERS, self.kind)
        except registry.UnknownKindError as error:
            return None, [(("kind",), str(error)), *self._weights_complaints(TowerConfig)]
        wrong, data = list(self._weights_complaints(cls)), dict(self.config)
        if wrong and not data:
            return None, wrong  # They were to tell the config.
        if self.weights is not None and not wrong and self.weights.is_dir() and not data:
            try:
                data = cls.told_by(self.weights, self.kind).model_dump(exclude_unset=True)
            except ValidationError as failure:
                found = (
                    ": ".join(filter(None, (dotted(place), message))) for place, message in complaints_of(cls, failure)
                )
                return None, [(("weights",), f"the config in {str(self.weights)!r}: {problem}") for problem in found]
            except ValueError as error:
                return None, [(("weights",), str(error))]
        if self.frame is not None:
            data["frame"] = self.frame
        config, complaints = validate(cls, data, ("config",))
        return config, wrong + complaints

    def _weights_complaints(self, cls: type[TowerConfig]) -> Iterator[Complaint]:
        # Path.exists raises on a name that is too long for the file system.
        if self.weights is not None and not os.path.exists(self.weights):  # noqa: PTH110
            yield ("weights",), f"{str(self.weights)!r} does not exist; expected a safetensors file or a folder"
        elif self.weights is not None and not self.weights.is_dir() and self.weights.suffix not in cls.weights_suffixes:
            expected = " or ".join((*cls.weights_suffixes, "a folder"))
            why = "; pickled checkpoints can run code and are never opened" if self.weights.suffix in PICKLES else ""
            yield ("weights",), f"{str(self.weights)!r} is no file of weights; expected {expected}{why}"

    @property
    def settings(self) -> TowerConfig:
        """The tower's own Config; only for a spec without problems."""
        config, complaints = self.resolved
        if config is None:
            raise ValueError(str(complaints))
        return config

    def complaints(self) -> Iterator[Complaint]:
        """What is wrong inside this tower: its kind, config, weights, frame, freeze rules and parts."""
        config, complaints = self.resolved
        yield from complaints
        yield from self._part_complaints()
        if config is None:
            return
        place: Place = ("frame",) if self.frame else ()
        if config.continuous:
            if config.frame is not None:
                yield place, f"kind {self.kind!r} reads no tokens, so it has no begin and end ids; remove `frame`"
        elif config.frame is None:
            yield (), "the model has no begin and end ids of its own; expected `frame: {begin: ..., end: ...}`"
        elif config.vocab_size is not None and max(config.frame.begin, config.frame.end) >= config.vocab_size:
            largest = max(config.frame.begin, config.frame.end)
            yield place, f"id {largest} is outside the vocabulary; expected less than {config.vocab_size}"
        if self.dtype != "fp32" and not self.frozen_whole:
            yield (
                ("dtype",),
                f"{self.dtype} is for a tower that is frozen as a whole: bf16 would round most steps of training away; "
                "freeze it (`lora` adds trained weights in fp32), or leave `dtype` out",
            )
        names = config.parameter_names()
        if names is not None:
            try:
                self.frozen(names)
            except ValueError as error:
                yield ("freeze",), str(error)
                return
            try:
                lora, adapted = self.adapted(names)
            except ValueError as error:
                yield ("lora",), str(error)
                return
            shapes = config.linear_shapes()
            wrong = [] if shapes is None else [lora.misfit(name, shapes.get(name)) for name in adapted]
            if told := some_of(filter(None, wrong)):
                yield ("lora",), told

    def _part_complaints(self) -> Iterator[Complaint]:
        for kind, given in self.parts.items():
            if kind in TAKEN_NAMES | PART_GROUPS:
                yield ("parts", kind), f"{kind!r} means something else in a model; its package must call it otherwise"
                continue
            try:
                yield from validate(registry.config_class(registry.PARTS, kind), given, ("parts", kind))[1]
            except registry.UnknownKindError as error:
                yield ("parts", kind), str(error)

    def frozen(self, names: Iterable[str]) -> dict[str, bool]:
        """Whether each parameter is frozen.

        Raises:
            ValueError: a rule matches nothing, or a parameter matches no rule or several; every case is named.
        """
        names = list(names)
        if isinstance(self.freeze, bool):
            return dict.fromkeys(names, self.freeze)
        rules = self.freeze
        matches = {name: [rule for rule in rules if fnmatch.fnmatchcase(name, rule)] for name in names}
        used = {rule for found in matches.values() for rule in found}
        wrong = [f"rule {rule!r} matches no parameter{did_you_mean(rule, names)}" for rule in rules if rule not in used]
        none = [name for name, found in matches.items() if not found]
        if none:
            wrong.append(f"no rule matches {_some(none)}; add a pattern for it")
        wrong += [
            f"{name!r} is matched by {len(m)} rules ({', '.join(m)}); expected one"
            for name, m in matches.items()
            if len(m) > 1
        ][:5]
        if wrong:
            raise ValueError("; ".join(wrong))
        return {name: rules[found[0]] != "train" for name, found in matches.items()}

    @property
    def has_weights(self) -> bool:
        """Whether the spec says where pre-trained weights are; only for a spec without problems."""
        return self.weights is not None or self.settings.weights_path() is not None

    @property
    def freezes(self) -> bool:
        """Whether some parameter is frozen."""
        return self.freeze if isinstance(self.freeze, bool) else set(self.freeze.values()) != {"train"}

    @property
    def frozen_whole(self) -> bool:
        """Whether no parameter is trained; `frozen` must not complain about the names."""
        return self.freeze if isinstance(self.freeze, bool) else "train" not in self.freeze.values()

    @property
    def adapts(self) -> bool:
        """Whether some of its weights get adapters."""
        return self.lora is not None or (isinstance(self.freeze, dict) and "lora" in self.freeze.values())

    def adapted(self, names: Iterable[str]) -> tuple[Lora, list[str]]:
        """The adapters' settings, and the weights that get one; `frozen` must not complain about the names.

        Raises:
            ValueError: nothing says which weights, a pattern matches none, or some are trained themselves.
        """
        frozen, lora = self.frozen(names), self.lora or Lora()
        rules = [] if isinstance(self.freeze, bool) else [r for r, action in self.freeze.items() if action == "lora"]
        patterns = [*rules, *lora.patterns]
        if self.lora is not None and not patterns:
            raise ValueError("expected `pattern`, or `lora` as the action of a rule in `freeze`")
        matches = {pattern: [name for name in frozen if fnmatch.fnmatchcase(name, pattern)] for pattern in patterns}
        named = {name for names in matches.values() for name in names}
        found = [name for name in frozen if name in named]
        wrong = [f"pattern {p!r} matches no parameter{did_you_mean(p, frozen)}" for p in patterns if not matches[p]]
        trained = [name for name in found if not frozen[name]]
        if trained:
            wrong.append(f"{_some(trained)} is trained itself; freeze what adapters are for")
        if wrong:
            raise ValueError("; ".join(wrong))
        return lora, found


class LinkSpec(Strict):
    """A declared connection: the tower `into` reads the tower `from`."""

    kind: str = Field(description="Registered kind of link (`zippkit links` lists them).")
    source: str = Field(alias="from", description="The tower that is read.")
    target: str = Field(alias="into", description="The tower that is rewritten.")
    name: Name | None = Field(
        None, description="Needed where two links join the same towers; `<from>_to_<into>` if left out."
    )
    every: int | None = Field(None, gt=0, description="Act after target layers i, 2i, 3i, ...")
    source_every: int | None = Field(
        None,
        gt=0,
        description="Read the source after layers j, 2j, ...; the same relative depth if left out, rounded half up: of "
        "a source of 3 layers, layer 2 for layer 1 of 2. The source's bare embedding only for the target's.",
    )
    source_depth: Literal["final", "embedding"] | None = Field(
        None,
        alias="source",
        description="`final` reads the finished source at every site (Flamingo), `embedding` its bare tokens.",
    )
    sites: list[Site] | None = Field(None, min_length=1, description="Explicit sites instead of `every`.")
    projection: Projection = Field(default_factory=Projection, description="The MLP on the source's states.")
    clock: Literal["turns", "sync"] = Field(
        "turns",
        description="`sync`: neighbouring segments of the two towers are simultaneous, token by token, and each tower "
        "sees the other's tokens up to the same time (dGSLM).",
    )
    config: dict[str, Any] = Field(default_factory=dict, description="The kind's own settings.")

    @property
    def label(self) -> str:
        return self.name or f"{self.source}_to_{self.target}"

    @cached_property
    def resolved(self) -> tuple[LinkConfig | None, list[Complaint]]:
        """The link's own Config, or what is wrong, placed inside this section."""
        try:
            cls: type[LinkConfig] = registry.config_class(registry.LINKS, self.kind)
        except registry.UnknownKindError as error:
            return None, [(("kind",), str(error))]
        return validate(cls, self.config, ("config",))

    @property
    def settings(self) -> LinkConfig:
        """The link's own Config; only for a spec without problems."""
        config, complaints = self.resolved
        if config is None:
            raise ValueError(str(complaints))
        return config

    def complaints(self) -> Iterator[Complaint]:
        """What is wrong inside this link: its kind and config, and whatever contradicts itself."""
        if self.source == self.target:
            yield ("into",), f"a link joins two towers, but `from` and `into` are both {self.source!r}"
        config, complaints = self.resolved
        yield from complaints
        acts = config.acts if config else "after_layer"
        if acts == "embedding":
            yield from self._complaints_at_embedding()
            return
        if (self.every is None) == (self.sites is None) and (config or self.sites):
            yield (), "expected either `every` or `sites`" + (", got both" if self.sites else ", got neither")
        if self.sites is not None and (self.source_every or self.source_depth):
            yield ("sites",), "`sites` says the source depths itself; remove `source_every` and `source`"
        if self.source_every and self.source_depth:
            yield ("source",), f"expected either `source_every` or `source: {self.source_depth}`, got both"
        for i, site in enumerate(self.sites or ()):
            if site.target == 0:
                yield ("sites", i, "into"), "0 is the embedding, but this kind acts on layers; expected 1 or more"
            if acts == "attention" and site.source != site.target:
                yield ("sites", i, "from"), f"attention is shared at one depth; expected {site.target}"
        if acts == "attention" and (self.source_every or self.source_depth):
            key = "source_every" if self.source_every else "source"
            yield (key,), f"kind {self.kind!r} shares the attention of layers of one depth; remove `{key}`"
        if config and not config.projects and self.projection != Projection():
            yield ("projection",), f"kind {self.kind!r} projects nothing; remove `projection`"

    def _complaints_at_embedding(self) -> Iterator[Complaint]:
        for key, given in (("every", self.every), ("source_every", self.source_every)):
            if given is not None:
                yield (key,), f"kind {self.kind!r} acts once, at the target's embedding; remove `{key}`"
        if self.sites is not None and (len(self.sites) > 1 or self.sites[0].target != 0):
            yield ("sites",), f"kind {self.kind!r} acts once, at the embedding; expected one site with `into: 0`"


class Contrast(Strict):
    """A contrastive loss between two towers: a row's states of one are to find the same row's of the other (CoCa)."""

    source: str = Field(alias="from", description="A tower; its states are averaged over the row.")
    target: str = Field(alias="into", description="A tower; the state of the row's last token stands for the row.")
    source_depth: int | None = Field(None, ge=0, description="After how many layers; all if left out.")
    target_depth: int | None = Field(
        None, ge=0, description="After how many layers, before any link rewrites the state; all if left out."
    )
    width: int = Field(64, gt=0, le=MAX_WIDTH, description="Width in which the two are compared.")
    weight: float = Field(1.0, gt=0, description="Of this loss beside that of the tokens.")
    name: Name | None = Field(None, description="`<from>_<into>_contrast` if left out.")

    @property
    def label(self) -> str:
        return self.name or f"{self.source}_{self.target}_contrast"


class Next(Strict):
    """A small head on each tower's last states that tells, at a segment's end, which modality comes next, or that
    nothing does; so that a model can choose by itself (`zippkit.generate(..., outputs="auto")`)."""

    weight: float = Field(1.0, gt=0, description="Of this loss, a mean over segments, beside that of the tokens.")


class CompositionSpec(Strict):
    """Towers and the links between them."""

    name: Name = Field(description="Name of the composition.")
    towers: dict[Name, TowerSpec] = Field(min_length=1, description="Towers by name.")
    links: list[LinkSpec] = Field(
        default_factory=list, description="Links, in the order in which they act on a shared site."
    )
    contrastive: list[Contrast] = Field(
        default_factory=list, description="Contrastive losses between towers, besides the loss on tokens."
    )
    next: Next | None = Field(
        None,
        description="With `next: {}`, the model learns which modality comes after a segment, or that nothing does.",
    )

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, data: Any) -> Any:
        return with_shared(data)

    @cached_property
    def kept(self) -> dict[str, Any]:
        """What later stages have worked out about this spec, which never changes: its graph. A copy starts empty."""
        return {}

    @property
    def modalities(self) -> dict[str, str]:
        """Everything that a segment can be of, and the tower that reads it: towers, and what they host."""
        hosted = {name: host for host, tower in self.towers.items() for name in tower.extend_vocabulary}
        return {name: name for name in self.towers} | hosted

    def complaints(self) -> Iterator[Complaint]:
        """Everything wrong below the level of keys and types: kinds, configs, names, frames, freeze rules, shapes."""
        for name, tower in self.towers.items():
            if name in TAKEN_NAMES:
                yield ("towers", name), f"{name!r} means something else in a model; call the tower otherwise"
            # What it has from another tower is told there.
            for place, message in tower.complaints() if tower.share_with not in self.towers else ():
                yield ("towers", name, *place), message
        for i, link in enumerate(self.links):
            for place, message in self._link_complaints(link):
                yield ("links", i, *place), message
        counts = Counter(link.label for link in self.links)
        for i, link in enumerate(self.links):
            if link.label in TAKEN_NAMES:
                yield ("links", i, "name"), f"{link.label!r} means something else in a model; call the link otherwise"
            if counts[link.label] > 1:
                yield ("links", i), f"{counts[link.label]} links are called {link.label!r}; give each a distinct `name`"

    def _link_complaints(self, link: LinkSpec) -> Iterator[Complaint]:
        for key, tower in (("from", link.source), ("into", link.target)):
            if tower not in self.towers:
                yield (key,), f"no tower is called {tower!r}{did_you_mean(tower, self.towers)}"
        yield from link.complaints()
        config = link.resolved[0]
        if config is None or link.source not in self.towers or link.target not in self.towers:
            return
        source, target = (self.towers[name].resolved[0] for name in (link.source, link.target))
        if source is not None and target is not None:
            for message in config.misfits(source, target):
                yield ("config",), message


SHARED_KEYS = ("kind", "config", "weights", "dtype", "frame", "freeze", "lora")
"""What towers of one set of weights have in common."""


def with_shared(data: Any) -> Any:
    """A spec's data in which a tower that shares another's weights has taken over what it does not say itself."""
    towers = data.get("towers") if isinstance(data, dict) else None
    if not isinstance(towers, dict):
        return data
    return {**data, "towers": {name: _with_shared(tower, towers) for name, tower in towers.items()}}


def _with_shared(tower: Any, towers: dict[Any, Any]) -> Any:
    """A tower's section with what `share_with` gives it."""
    if isinstance(tower, TowerSpec) or not isinstance(tower, dict):
        return tower
    other = towers.get(tower.get("share_with")) if isinstance(tower.get("share_with"), str) else None
    if isinstance(other, TowerSpec):
        other = other.model_dump(by_alias=True, exclude_unset=True)
    return {key: other[key] for key in SHARED_KEYS if key in other} | tower if isinstance(other, dict) else tower


def some_of(messages: Iterable[str]) -> str:
    """The first five of several messages, in one line."""
    listed = list(messages)
    return "; ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
