"""The calls that generate, in any order of modalities: check what is asked for, and start the engine."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, cast

from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.generation.checks import check_outputs, check_settings, check_turns, choices
from zippkit.generation.engine import Generation
from zippkit.generation.request import Prompt, Request, Watch
from zippkit.generation.sampling import GREEDY
from zippkit.spec.sampling import Sampling

Limits: TypeAlias = "int | Mapping[str, int]"
Ways: TypeAlias = "Sampling | Mapping[str, Sampling]"
Outputs: TypeAlias = "Sequence[str] | Sequence[Sequence[str]] | Literal['auto']"


def generate(
    zipped: Composition,
    prompt: Prompt,
    outputs: Sequence[str] | Literal["auto"],
    max_tokens: Limits = 256,
    sampling: Ways = GREEDY,
    seed: int = 0,
    multimodal: bool = True,
    packed: bool = True,
    compile: bool = False,
) -> list[Segment]:
    """Continue one prompt by a segment of each modality in ``outputs``; see `generate_batch`."""
    return generate_batch(zipped, [prompt], outputs, max_tokens, sampling, seed, multimodal, packed, compile)[0]


def generate_batch(
    zipped: Composition,
    prompts: Sequence[Prompt],
    outputs: Outputs,
    max_tokens: Limits = 256,
    sampling: Ways = GREEDY,
    seed: int | Sequence[int] = 0,
    multimodal: bool | Sequence[bool] = True,
    packed: bool = True,
    compile: bool = False,
) -> list[list[Segment]]:
    """Continue each prompt by one segment of each modality in ``outputs``, in that order.

    Only towers whose turn it is advance; what they read of the others was computed once. Neighbours with one clock
    (`clock: sync`) take their turn together, and end together. A segment ends at its end id, after ``max_tokens``
    tokens, or where the tower's ``max_len`` leaves no room for more. A row's answer does not depend on the rows beside
    it. The model is left in evaluation mode.

    Args:
        zipped: the composition.
        prompts: for each row, the segments that are given; may be empty.
        outputs: modalities to generate, the same for every row; or a sequence of such for each row; or ``"auto"``: a
            model whose spec says ``next`` tells after each segment which modality comes next, or that nothing does, up
            to ``MAX_SEGMENTS`` of them.
        max_tokens: longest segment, begin and end ids not counted; one number, or one for each modality.
        sampling: how tokens are chosen; one way, or one for each modality (greedy for those that are not named).
        seed: of what is drawn: one for each row, or the first row's, and each row's is one more than the one before.
        multimodal: whether rows pass the input projections, for all or for each, as `Composition.collate` takes it;
            False for rows in which a tower continues its own modality by itself.
        packed: whether steps of one token read a second copy of the weights, laid out for that: faster, and as much
            memory again as the weights of what generates. It is made where a generation first needs it, and kept until
            they change; False runs the modules themselves.
        compile: whether these steps are compiled (torch.compile; CUDA graphs on a GPU), one graph for each number of
            rows and size of the caches, which doubles: tens of seconds at first, so for long answers or many of them.

    Returns:
        For each row, its new segments.

    Raises:
        ZippkitError: an output that is no modality, a tower that cannot generate, or beams where two advance at once.
        DataError: a prompt that a tower cannot take, or that leaves it no room to go on, or that ends with half of what
            two towers say at once; or a row of several modalities that is declared unimodal.
    """
    generation = stream(
        zipped, prompts, outputs, max_tokens, sampling, seed, multimodal=multimodal, packed=packed, compile=compile
    )
    for _ in generation:
        pass
    return generation.segments


def stream(
    zipped: Composition,
    prompts: Sequence[Prompt],
    outputs: Outputs,
    max_tokens: Limits = 256,
    sampling: Ways = GREEDY,
    seed: int | Sequence[int] = 0,
    watch: Watch | None = None,
    multimodal: bool | Sequence[bool] = True,
    packed: bool = True,
    prefill_chunk: int = 512,
    max_rows: int | None = None,
    compile: bool = False,
) -> Generation:
    """`generate_batch` token by token: iterate over what it returns, stop when you like, cancel rows or add some.

    Args:
        zipped: the composition.
        prompts: rows to begin with; may be none.
        outputs: as `generate_batch` has them; the same for every row, they are also those of rows that are added.
        max_tokens: longest segment.
        sampling: how tokens are chosen.
        seed: of what is drawn.
        watch: see `zippkit.generation.request.Watch`.
        multimodal: whether rows pass the input projections.
        packed: see `generate_batch`.
        prefill_chunk: tokens of the prompts of added rows that are run before each step of the others.
        max_rows: rows that are added wait while so many run; None: they begin at once.
        compile: see `generate_batch`.

    Example:
        >>> for piece in (generation := zippkit.stream(zipped, [prompt], ["text", "speech"])):
        ...     if piece.token == 7:
        ...         generation.cancel(piece.row)
        >>> generation.segments
    """
    if isinstance(outputs, str) and outputs != "auto":
        raise ZippkitError(f'outputs: expected a list such as [{outputs!r}], or "auto", got {outputs!r}')
    auto = choices(zipped, prompts) if outputs == "auto" else []
    outputs = [] if outputs == "auto" else outputs
    shared = not outputs or isinstance(outputs[0], str)
    wanted = [list(cast("Sequence[str]", outputs))] * len(prompts) if shared else [list(names) for names in outputs]
    if len(wanted) != len(prompts):
        raise ZippkitError(f"outputs: expected one list for each of {len(prompts)} prompts, got {len(wanted)}")
    same = list(cast("Sequence[str]", outputs)) if shared else []
    names = auto or list(dict.fromkeys([*same, *(name for row in wanted for name in row)]))
    check_outputs(zipped, names)
    for i, (prompt, row) in enumerate(zip(prompts, wanted, strict=True)):
        check_turns(zipped, f"prompt {i}", [segment.tower for segment in prompt], row)
    ways = sampling if isinstance(sampling, Mapping) else dict.fromkeys(names, sampling)
    limits = max_tokens if isinstance(max_tokens, Mapping) else dict.fromkeys(names, max_tokens)
    check_settings(zipped, names, ways, limits)
    seeds = list(seed) if isinstance(seed, Sequence) else [operator.index(seed) + i for i in range(len(prompts))]
    if len(seeds) != len(prompts):
        raise ZippkitError(f"seed: expected one for each of {len(prompts)} prompts, got {len(seeds)}")
    zipped.model.eval()
    ways = {name: ways.get(name, GREEDY) for name in names}
    for what, number in (("prefill_chunk", prefill_chunk), ("max_rows", 1 if max_rows is None else max_rows)):
        if number < 1:
            raise ZippkitError(f"{what}: expected 1 or more, got {number}")
    request = Request(zipped, limits, ways, auto, watch, packed, same, prefill_chunk, max_rows, compile)
    return Generation(request, prompts, wanted, seeds, multimodal)
