"""MLflow: one run there for a run here, however often it is started."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from zippkit.spec.kinds import Strict
from zippkit.training.trackers.base import TrackedRun, Tracker


class MlflowConfig(Strict):
    """Where MLflow keeps its runs."""

    uri: str | None = Field(
        None,
        description="Server or store; MLFLOW_TRACKING_URI, or the folder `mlruns` of the run, if left out.",
    )
    experiment: str = Field("zippkit", description="Experiment to log to; made if it is not there.")
    name: str | None = Field(None, description="Name of the run; the recipe's if left out.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags of the run.")


class Mlflow(Tracker):
    """Logs the values of a phase under its name."""

    Config = MlflowConfig
    needs = ("mlflow",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._client: Any = None
        self._id = ""

    def start(self, run: TrackedRun, state: Mapping[str, Any]) -> dict[str, Any]:
        """Start a run of MLflow's, or go on with the one of that id."""
        from mlflow import MlflowClient

        uri = self.config.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # Newer versions would rather have a database, for which the client alone does not bring what it needs.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (run.path / "mlruns").absolute().as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        if state:
            self._id = state["id"]
            self._client.update_run(self._id, status="RUNNING")
        else:
            name = self.config.name or run.name
            self._id = self._client.create_run(self._experiment(), tags=self.config.tags, run_name=name).info.run_id
            self._client.log_dict(self._id, dict(run.recipe), "recipe.yaml")
        return {"id": self._id}

    def _experiment(self) -> str:
        name = self.config.experiment
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Log values under the phase's name."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self._client.log_batch(
            self._id, [Metric(f"{phase}/{name}", value, now, step) for name, value in values.items()]
        )

    def finish(self) -> None:
        """End the run."""
        if self._client is not None:
            self._client.set_terminated(self._id)
