"""Segments that the model generates, token by token, with caches of keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from zippkit.training.hf_parts.sampling import Way, choose
from zippkit.training.hf_parts.segments import Rows, ZippedSegments
from zippkit.training.hf_parts.sequence import Past


class Turn(NamedTuple):
    """A segment of each row that is being generated."""

    modality: str
    later: Sequence[str]
    """Modalities of the segments after it."""
    limits: list[int]
    """Its most tokens in each row."""
    way: Way
    randoms: list[torch.Generator]
    """Each row's own."""


class ZippedModel(ZippedSegments):
    """Towers of several modalities that read each other through links.

    Example::

        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        model.generate([[("speech", [7, 8, 9])]], outputs=["text"], max_new_tokens=20)
        model([[("speech", [7, 8, 9]), ("text", [3, 4])]]).logits[1]  # (1, 4, V): of begin, 3, 4 and end
    """

    @torch.no_grad()
    def generate(
        self,
        segments: Rows,
        outputs: Sequence[str],
        max_new_tokens: int | Mapping[str, int] = 256,
        do_sample: bool | Mapping[str, bool] = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        multimodal: bool = True,
    ) -> list[list[tuple[str, list[int]]]]:
        """Continue each row by one segment of each modality in ``outputs``, in that order.

        Args:
            segments: what is given, such as ``[[("speech", units)]]``; each row's segments have their own lengths.
            outputs: modalities to generate.
            max_new_tokens: longest segment, begin and end not counted; one number, or one for each modality.
            do_sample: draw tokens instead of taking the likeliest; for all modalities, or for each.
            temperature: divides the logits before tokens are drawn.
            top_k: draw from the k likeliest.
            top_p: draw from the fewest likeliest whose probabilities reach this.
            repetition_penalty: divides positive logits, and multiplies negative ones, of ids that the row has seen.
            seed: of the first row's draws; each row's is one more than the one before.
            multimodal: whether rows pass the input projections; False where one tower continues its own modality.

        Returns:
            For each row its new segments: modality, and ids without begin and end.
        """
        self._check_outputs(outputs)
        past, given = Past(len(segments), self.device, multimodal), self._modalities(segments)
        for i, name in enumerate(given):
            self._feed(past, name, [row[i][1] for row in segments], [*given[i + 1 :], *outputs], logits=False)
        randoms = [torch.Generator().manual_seed(seed + row) for row in range(len(segments))]
        rows = [list(row) for row in segments]
        for i, name in enumerate(outputs):
            later = outputs[i + 1 :]
            most = max_new_tokens if isinstance(max_new_tokens, int) else max_new_tokens[name]
            drawn = do_sample if isinstance(do_sample, bool) else do_sample.get(name, False)
            way = Way(temperature if drawn else 0.0, top_k, top_p, repetition_penalty)
            limits = [min(most, room) for room in self._rooms(past, name, later)]
            found = self._generate_one(past, Turn(name, later, limits, way, randoms), rows)
            for row, ids in zip(rows, found, strict=True):
                row.append((name, ids))
        return [row[len(given) :] for row in rows]

    def _check_outputs(self, outputs: Sequence[str]) -> None:
        able = [n for n, each in self.config.modalities.items() if each["generates"]]
        for name in outputs:
            if name not in able:
                raise ValueError(f"outputs: cannot generate {name!r}; expected some of {', '.join(able)}")

    def _rooms(self, past: Past, name: str, later: Sequence[str]) -> list[int]:
        """How many tokens a segment may have in each row, with room for the frames of those that follow."""
        tower = self.config.modalities[name]["tower"]
        longest = self.config.towers[tower]["max_len"]
        if longest is None:
            return [2**31] * past.n_rows
        waiting = sum((each.real.sum(dim=1) for each in past.slots.get(tower, [])), torch.zeros_like(past.order))
        used, to_come = past.counts(tower) + waiting, [tower, *self._towers(later)]
        n_frames = to_come.count(tower)
        # only with joint_attention
        if self.config.towers[tower]["counts_in_whole"]:
            used, n_frames = torch.maximum(used, past.order), len(to_come) - to_come[::-1].index(tower)
        rooms = [int(room) for room in (longest - used - 2 * n_frames).tolist()]
        if min(rooms) < 0:
            raise ValueError(f"{name}: what is given leaves the tower {tower!r} no room within its {longest} tokens")
        return rooms

    def _generate_one(self, past: Past, turn: Turn, rows: Rows) -> list[list[int]]:
        """Generate a segment of each row; returns its ids."""
        modality, n_rows = self.config.modalities[turn.modality], len(rows)
        first, end = modality["first_id"], modality["end"]
        found: list[list[int]] = [[] for _ in rows]
        # What each row is to be fed next; nothing where it has ended.
        ahead = [[modality["begin"]] for _ in rows]
        running = [True] * n_rows
        seen = ids_seen(rows, turn.modality, modality).to(self.device)
        step = 0
        while any(ahead) and (turn.later or any(running)):
            real = torch.tensor([[bool(ids)] for ids in ahead], device=self.device)
            fed = torch.tensor([[ids.pop(0) if ids else end] for ids in ahead], device=self.device)
            logits = self._step(past, turn.modality, first + fed, real, step, turn.later, logits=any(running))
            step += 1
            if not any(running):
                continue
            own = cast("Tensor", logits)[:, -1, first : first + modality["n_ids"]]
            chosen = choose(own, turn.way, seen, self._draws(turn, running)).tolist()
            for row in (row for row in range(n_rows) if running[row]):
                if chosen[row] != end and len(found[row]) < turn.limits[row]:
                    found[row].append(chosen[row])
                    ahead[row].append(chosen[row])
                    seen[row, chosen[row]] = True
                if chosen[row] == end or len(found[row]) >= turn.limits[row]:
                    running[row] = False
                    ahead[row].append(end)
        self._finish(past, modality["tower"])
        return found

    def _draws(self, turn: Turn, running: Sequence[bool]) -> Tensor:
        """(B,) a number of [0, 1) for each row that goes on, from its own generator."""
        drawn = [
            float(torch.rand((), generator=random, dtype=torch.float64))
            if goes_on and turn.way.temperature > 0
            else 0.0
            for goes_on, random in zip(running, turn.randoms, strict=True)
        ]
        return torch.tensor(drawn, device=self.device, dtype=torch.float64)


def ids_seen(rows: Rows, name: str, modality: Mapping[str, Any]) -> Tensor:
    """(B, V) bool: ids of a modality that each row has seen, the begin of a new segment among them."""
    seen = torch.zeros(len(rows), modality["n_ids"], dtype=torch.bool)
    seen[:, modality["begin"]] = True
    for row, segments in enumerate(rows):
        for content in (content for of, content in segments if of == name):
            seen[row, torch.as_tensor(content, dtype=torch.long)] = True
            seen[row, modality["end"]] = True
    return seen
