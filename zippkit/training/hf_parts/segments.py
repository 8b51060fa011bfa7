"""Rows of segments, and the logits that the model gives of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zippkit.training.hf_parts.model import ZippedLayers, ZippedOutput
from zippkit.training.hf_parts.sequence import Past, Slots

Segment = tuple[str, Any]
"""A modality, and its token ids without begin and end, or the waveform or pixels that its encoder is fed."""
Rows = Sequence[Sequence[Segment]]
"""Segments of each row, in linear order; all rows have the same modalities in the same order."""


class ZippedSegments(ZippedLayers):
    """The model over whole segments."""

    def forward(self, segments: Rows, multimodal: bool = True, **kwargs: Any) -> ZippedOutput:
        """Logits of every segment, each of which sees all that stand before it.

        Args:
            segments: rows of segments, such as ``[[("speech", units), ("text", ids)]]``.
            multimodal: whether rows pass the input projections.
            kwargs: not used.
        """
        del kwargs
        past, names = Past(len(segments), self.device, multimodal), self._modalities(segments)
        found = [
            self._feed(past, name, [row[i][1] for row in segments], names[i + 1 :]) for i, name in enumerate(names)
        ]
        return ZippedOutput(logits=tuple(found))

    def _modalities(self, segments: Rows) -> list[str]:
        """The modalities of every row's segments."""
        orders = {tuple(name for name, _ in row) for row in segments}
        if len(orders) != 1:
            raise ValueError(f"segments: rows have the modalities {sorted(orders)}; expected the same in each row")
        names = list(orders.pop())
        for name in names:
            if name not in self.config.modalities:
                raise ValueError(
                    f"segments: no modality {name!r}; expected some of {', '.join(self.config.modalities)}"
                )
        return names

    def _towers(self, modalities: Sequence[str]) -> list[str]:
        return [self.config.modalities[name]["tower"] for name in modalities]

    def _feed(
        self, past: Past, name: str, contents: Sequence[Any], later: Sequence[str], logits: bool = True
    ) -> Tensor | None:
        """Run a whole segment of each row.

        Args:
            past: what came before; it is extended.
            name: the segment's modality.
            contents: for each row ids, or what an encoder is fed.
            later: modalities of the segments after it.
            logits: whether they are wanted.

        Returns:
            (B, T, V) logits, if they are wanted and the tower has any.
        """
        modality = self.config.modalities[name]
        # only with hf_encoder
        if self.config.towers[modality["tower"]]["kind"] == "hf_encoder":
            self._feed_encoder(past, modality, contents, self._towers(later))
            return None
        ids, real = framed(contents, modality, self.device)
        found = self._step(past, name, ids, real, 0, later, logits)
        self._finish(past, modality["tower"])
        return found

    # only with hf_encoder
    def _feed_encoder(
        self, past: Past, modality: Mapping[str, Any], contents: Sequence[Any], readers: Collection[str]
    ) -> None:
        """Run an encoder over a segment of each row; whoever reads it sees it at once."""
        if modality["begin"] is None:
            segments = [torch.as_tensor(each, dtype=torch.float32, device=self.device) for each in contents]
        else:
            ids, own = framed(contents, modality, self.device)
            segments = [row[there] for row, there in zip(ids, own, strict=True)]
        states, real = self.tower(modality["tower"]).states(segments)
        tokens = past.add(modality["tower"], torch.zeros_like(real, dtype=torch.long), real, 0, False)
        for site in self.sites:
            if site.source == modality["tower"] and site.target in readers:
                past.unfinished[site.key] = [(states[site.source_depth].float(), tokens)]
        self._finish(past, modality["tower"])

    def _step(
        self, past: Past, name: str, ids: Tensor, real: Tensor, offset: int, later: Sequence[str], logits: bool
    ) -> Tensor | None:
        """Run new tokens (B, T) of a segment, and before its first ones what links have put there.

        Args:
            past: what came before; it is extended.
            name: the segment's modality.
            ids: in the tower's own ids.
            real: (B, T) bool: no padding.
            offset: index within the segment of the first of them.
            later: modalities of the segments after it.
            logits: whether they are wanted.

        Returns:
            (B, T, V) logits, if they are wanted.
        """
        tower, readers = self.config.modalities[name]["tower"], self._towers(later)
        whole, in_whole = logits or tower in readers, self.config.towers[tower]["counts_in_whole"]
        # only with slots
        for slots in past.slots.pop(tower, []):
            self._fill(past, tower, slots, readers)
        tokens = past.add(tower, ids, real, offset, in_whole)
        hidden = self._run(past, tower, self._embedded(tower, tokens, past.multimodal), tokens, readers, whole)
        return self._logits(tower, hidden) if logits else None

    # only with slots
    def _fill(self, past: Past, tower: str, slots: Slots, readers: Collection[str]) -> None:
        """Run the places that a segment of another tower takes in a tower's own sequence."""
        empty = torch.zeros(slots.states.shape[:2], dtype=torch.long, device=self.device)
        in_whole = self.config.towers[tower]["counts_in_whole"]
        tokens = past.add(tower, empty, slots.real, 0, in_whole, inserted=True)
        hidden = self.tower(tower).placed(torch.zeros_like(slots.states), tokens)
        self._run(past, tower, hidden, tokens, readers, True, slots)
        self._finish(past, tower)


def framed(contents: Sequence[Any], modality: Mapping[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids of each row between begin and end, in the tower's ids, padded: (B, T), and (B, T) bool: no padding."""
    begin, end = (torch.tensor([modality[key]]) for key in ("begin", "end"))
    rows = [torch.cat([begin, torch.as_tensor(ids, dtype=torch.long).flatten().cpu(), end]) for ids in contents]
    for ids in rows:
        if int(ids.min()) < 0 or int(ids.max()) >= modality["n_ids"]:
            raise ValueError(f"ids {int(ids.min())} to {int(ids.max())}; expected 0 to {modality['n_ids'] - 1}")
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=modality["end"])
    lengths = torch.tensor([len(ids) for ids in rows])
    real_BT = torch.arange(ids_BT.shape[1]) < lengths[:, None]
    return (ids_BT + modality["first_id"]).to(device), real_BT.to(device)
