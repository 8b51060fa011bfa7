"""Words that a spec may use: names, activations, actions on weights, and the names that are taken."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
"""Lower case letters, digits and underscores: names become module names and column names."""
Activation = Literal["relu", "gelu", "silu"]
Action = Literal["freeze", "train", "lora"]
TAKEN_NAMES = frozenset(
    """
    add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches eval
    extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys
    load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to
    to_empty train training type update values xpu zero_grad total gradient_norm next interleaved
    """.split()  # noqa: SIM905 (sixty lines of one word each otherwise)
)
"""Attributes of `torch.nn.ModuleDict`, names of a step's own losses and metrics, and the task of whole documents."""
PART_GROUPS = frozenset(("towers", "input_projections", "adapters", "vocabularies", "links", "contrastive", "next"))
"""Names of a model's own groups of parts."""

Place = Literal["replicate", "per_layer", "root"]
"""Where weights are: whole on every rank; in parts, of which a layer is brought together as it runs; or in parts, all
of which are brought together when the model runs."""
