"""The settings of a zipped model, as its config.json holds them."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class ZippedConfig(PretrainedConfig):
    """Towers, the links between them, and the modalities that their ids stand for."""

    model_type = "zippkit"

    def __init__(
        self,
        towers: dict[str, Any] | None = None,
        links: list[dict[str, Any]] | None = None,
        modalities: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep what config.json says.

        Args:
            towers: by name, ``kind`` and ``settings`` of each, ``n_layers`` and ``dim``, and what stands around it.
            links: ``source`` and ``target`` of each, and its ``sites``: [depth that it reads, depth that it rewrites].
            modalities: by name, the ``tower`` that reads each, its ``first_id`` among the tower's ids, ``n_ids``, and
                the ``begin`` and ``end`` that frame a segment.
            kwargs: what every config of transformers has.
        """
        self.towers = towers or {}
        self.links = links or []
        self.modalities = modalities or {}
        super().__init__(**kwargs)
