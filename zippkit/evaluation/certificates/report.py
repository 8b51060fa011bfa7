"""Result of a verification: one line for each certificate, and the same as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from zippkit.errors import ZippkitError


class RefutedError(ZippkitError):
    """A claim that does not hold; the message names the culprit."""


@dataclass(frozen=True)
class Certificate:
    """A claim about a composition, and whether it holds."""

    name: str
    """Such as ``C1`` (design, section 5)."""
    claim: str
    passed: bool
    detail: str
    """One line: what was shown, or who breaks the claim."""
    seconds: float

    def __str__(self) -> str:
        return f"{self.name}  {'holds' if self.passed else 'FAILS'}  {self.claim}: {self.detail} ({self.seconds:.1f} s)"


@dataclass(frozen=True)
class Report:
    """The certificates of one composition."""

    certificates: tuple[Certificate, ...]

    @property
    def passed(self) -> bool:
        """Whether every certificate holds."""
        return all(certificate.passed for certificate in self.certificates)

    def __str__(self) -> str:
        return "\n".join(map(str, self.certificates))

    def as_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`: ``passed``, and the fields of each of the ``certificates``."""
        return {"passed": self.passed, "certificates": [asdict(certificate) for certificate in self.certificates]}


def some(names: list[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
