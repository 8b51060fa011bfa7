"""What accelerators can do, as their makers state it: operations, bytes, and the wires between them; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zippkit.errors import ZippkitError, did_you_mean


@dataclass(frozen=True)
class Hardware:
    """One accelerator, and how it is connected."""

    name: str
    operations: float
    """bf16 operations per second of dense matrix products; a multiplication and its addition are two."""
    memory: float
    """Bytes."""
    memory_rate: float
    """Bytes per second between its memory and its cores."""
    link_rate: float
    """Bytes per second that it sends to others of its node, and as many that it receives."""
    node: int
    """Accelerators that `link_rate` joins."""
    network_rate: float
    """Bytes per second for each accelerator between nodes."""
    latency: float = 1e-5
    """Seconds that a collective takes to start, whatever it moves."""
    aliases: Sequence[str] = ()
    """Parts of the name that the driver gives, the most particular first."""


GIB = 2.0**30
KNOWN = {
    hardware.name: hardware
    for hardware in (
        Hardware("h100", 989e12, 80 * GIB, 3.35e12, 450e9, 8, 50e9, aliases=("H100",)),
        Hardware("h100-pcie", 756e12, 80 * GIB, 2.0e12, 64e9, 8, 50e9, aliases=("H100 PCIe",)),
        Hardware("h200", 989e12, 141e9, 4.8e12, 450e9, 8, 50e9, aliases=("H200",)),
        Hardware("b200", 2250e12, 180 * GIB, 7.7e12, 900e9, 8, 50e9, aliases=("B200",)),
        Hardware("a100", 312e12, 80 * GIB, 2.0e12, 300e9, 8, 25e9, aliases=("A100",)),
        Hardware("l40s", 362e12, 48 * GIB, 0.864e12, 32e9, 8, 25e9, aliases=("NVIDIA L40S",)),
        Hardware("l4", 121e12, 24 * GIB, 0.3e12, 32e9, 8, 12.5e9, aliases=("NVIDIA L4",)),
        Hardware("rtx4090", 165e12, 24 * GIB, 1.008e12, 32e9, 8, 3.1e9, aliases=("RTX 4090",)),
        Hardware("rtx3090", 71e12, 24 * GIB, 0.936e12, 32e9, 8, 3.1e9, aliases=("RTX 3090",)),
        Hardware("mi300x", 1307e12, 192e9, 5.3e12, 448e9, 8, 50e9, aliases=("MI300X",)),
        Hardware("tpu-v5p", 459e12, 95 * GIB, 2.765e12, 600e9 / 2, 8960, 6.25e9),
        Hardware("tpu-v5e", 197e12, 16 * GIB, 0.819e12, 200e9 / 2, 256, 6.25e9),
        Hardware("tpu-v6e", 918e12, 32 * GIB, 1.64e12, 448e9 / 2, 256, 6.25e9),
    )
}
"""As data sheets state them in 2026, without sparsity; what is stated for both directions is halved. A TPU's own wires
join a whole pod."""


def known(name: str) -> Hardware:
    """The accelerator of that name.

    Raises:
        ZippkitError: none of that name is known.
    """
    if name not in KNOWN:
        raise ZippkitError(
            f"hardware {name!r} is not known{did_you_mean(name, KNOWN)}; expected one of {', '.join(KNOWN)}"
        )
    return KNOWN[name]


def recognised(device_name: str) -> Hardware | None:
    """The accelerator that a driver calls so; None where it is not known."""
    found = [(len(alias), each) for each in KNOWN.values() for alias in each.aliases if alias in device_name]
    return max(found, key=lambda pair: pair[0])[1] if found else None
