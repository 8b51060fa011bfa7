"""Weights & Biases: one run there for a run here, however often it is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from zippkit.spec.kinds import Strict
from zippkit.training.trackers.base import TrackedRun, Tracker


class WandbConfig(Strict):
    """Settings of `wandb.init`."""

    project: str = Field("zippkit", description="Project to log to.")
    entity: str | None = Field(None, description="User or team; your own if left out.")
    name: str | None = Field(None, description="Name of the run; the recipe's if left out.")
    group: str | None = Field(None, description="Group of runs.")
    tags: list[str] = Field(default_factory=list, description="Tags of the run.")
    mode: Literal["online", "offline", "disabled"] | None = Field(
        None, description="`offline` writes a folder for `wandb sync`; WANDB_MODE, or online, if left out."
    )


class Wandb(Tracker):
    """Logs each phase over its own steps."""

    Config = WandbConfig
    needs = ("wandb",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._run: Any = None

    def start(self, run: TrackedRun, state: Mapping[str, Any]) -> dict[str, Any]:
        """Start a run of W&B's, or go on with the one of that id."""
        import wandb

        told = self.config.model_dump() | {"name": self.config.name or run.name}
        quiet = wandb.Settings(silent=True, console="off")
        self._run = wandb.init(
            **told, id=state.get("id"), resume="allow", dir=run.path, config=dict(run.recipe), settings=quiet
        )
        return {"id": self._run.id}

    def begin(self, phase: str, step: int) -> None:
        """Let the phase's values be drawn over its own steps."""
        del step
        self._run.define_metric(f"{phase}/step", hidden=True)
        self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Log values under the phase's name."""
        self._run.log({f"{phase}/{name}": value for name, value in values.items()} | {f"{phase}/step": step})

    def finish(self) -> None:
        """Send what is left, and end."""
        if self._run is not None:
            self._run.finish()
