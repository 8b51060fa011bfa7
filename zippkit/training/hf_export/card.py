"""Writes the model card of an exported model: README.md, and the diagram beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from zippkit.checkpoint.references import in_a_run
from zippkit.composition import Composition
from zippkit.model.weights import file_hash, weight_files
from zippkit.plan.diagram.diagram import write_diagram
from zippkit.system.files import write_text
from zippkit.training.run_folder import RunFolder

DIAGRAM = "diagram.svg"


def write_card(
    zipped: Composition, run: Path, folder: Path, tokenizers: Mapping[str, str], references: Mapping[str, Any]
) -> None:
    """Write the card.

    Args:
        zipped: the composition.
        run: the run or checkpoint that it comes from.
        folder: where to write.
        tokenizers: by modality what was written of its tokenizer.
        references: of frozen towers that are named and not copied.
    """
    write_diagram(zipped.spec, zipped.graph, folder / DIAGRAM)
    origins = {name: _origin(zipped, name) for name in zipped.spec.towers}
    front = yaml.safe_dump(_front(zipped, origins), sort_keys=False, allow_unicode=True)
    sections = (
        _head(zipped),
        _loading(zipped, tokenizers),
        _towers(zipped, origins, references),
        _data(RunFolder(run)),
        _results(RunFolder(run).read_json("evaluation.json")),
        _certificates(RunFolder(run).read_json("certificates.json"), folder),
    )
    body = "\n\n".join("\n".join(section) for section in map(list, sections) if section)
    write_text(folder / "README.md", f"---\n{front}---\n\n{body}\n")


def _front(zipped: Composition, origins: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What the hub reads: licence, library, tags, the models that it is built on."""
    licences = {origin["licence"] for origin in origins.values() if origin["licence"]}
    told: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "any-to-any"}
    told["tags"] = ["zippkit", "multimodal", *zipped.graph.modalities]
    # One licence is the model's own where all of its towers have it; otherwise the reader has to look.
    told["license"] = licences.pop() if len(licences) == 1 else "other"
    bases = [origin["hub_id"] for origin in origins.values() if origin["hub_id"]]
    return told | ({"base_model": bases} if bases else {})


def _head(zipped: Composition) -> Iterator[str]:
    links = [f"{link.target} reads {link.source} ({link.kind})" for link in zipped.spec.links]
    yield f"# {zipped.spec.name}"
    yield ""
    yield f"Towers {', '.join(zipped.spec.towers)}, composed with zippkit: {'; '.join(links) or 'no links'}."
    yield ""
    yield f"![Towers, links between them, and what is frozen]({DIAGRAM})"


def _loading(zipped: Composition, tokenizers: Mapping[str, str]) -> Iterator[str]:
    generating = [n for n, m in zipped.graph.modalities.items() if m.frame and zipped.graph.towers[m.tower].causal]
    reading = [link.source for link in zipped.spec.links if link.target in generating]
    source = (reading or generating)[0]
    target = next((link.target for link in zipped.spec.links if link.source == source), source)
    yield from ("## How to load it", "", "It needs torch and transformers, and nothing else.", "", "```python")
    yield from ("from transformers import AutoModel", "")
    yield 'model = AutoModel.from_pretrained("PATH_OR_HUB_ID", trust_remote_code=True).eval()'
    yield f'rows = [[("{source}", {source}_inputs)]]  # token ids, or what its encoder is fed'
    yield f'model.generate(rows, outputs=["{target}"], max_new_tokens=64)'
    yield "```"
    for name, kind in tokenizers.items():
        yield from ("", f"- `{name}`: {_tokenizer_told(name, kind)}")


def _tokenizer_told(name: str, kind: str) -> str:
    return {
        "text": f'`AutoTokenizer.from_pretrained("PATH_OR_HUB_ID", subfolder="tokenizers/{name}", '
        "trust_remote_code=True)` makes its ids, with `add_special_tokens=False`: begin and end are put around them.",
        "bytes": "the ids of a text are its UTF-8 bytes, `list(text.encode())`.",
        "units": f'`SpeechUnits("PATH_OR_HUB_ID", "{name}")` of the modeling file turns sound into ids and back; '
        '`get_class_from_dynamic_module("modeling_zipped.SpeechUnits", "PATH_OR_HUB_ID")` of '
        "`transformers.dynamic_module_utils` gives the class.",
    }.get(kind, kind)


def _towers(zipped: Composition, origins: Mapping[str, dict[str, Any]], references: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## What is frozen, and where it comes from", "")
    yield from (
        "| tower | kind | frozen | source | licence | SHA-256 of the source's weights |",
        "|---|---|---|---|---|---|",
    )
    for name, tower in zipped.spec.towers.items():
        origin = origins[name]
        frozen = "as a whole" if tower.frozen_whole else "no" if tower.freeze is False else "in part"
        place = origin["place"] + (", named and not copied" if name in references else "")
        hashes = "<br>".join(f"`{digest}` {file}" for file, digest in origin["files"].items())
        yield f"| {name} | {tower.kind} | {frozen} | {place} | {origin['licence'] or 'not told'} | {hashes} |"


def _origin(zipped: Composition, name: str) -> dict[str, Any]:
    """Where a tower's weights came from."""
    source, given = zipped.sources.get(name), getattr(zipped.spec.towers[name].settings, "path", None)
    hub_id = given if given and source is not None and source.parent.name == "snapshots" else None
    if source is None:
        return {"place": "trained here", "hub_id": None, "licence": None, "files": {}}
    files = zipped.origins.files.get(name)
    if files is None and source.exists():
        files = {file.name: file_hash(file) for file in weight_files(source)}
    return {
        "place": "trained here" if in_a_run(source) else hub_id or source.name,
        "hub_id": hub_id,
        "licence": _licence(source),
        "files": dict(files or {}),
    }


def _licence(source: Path) -> str | None:
    """What the front matter of a source's own card says."""
    card = source / "README.md"
    found = re.search(r"^license: *(\S+)", card.read_text(errors="replace"), re.MULTILINE) if card.is_file() else None
    return found[1] if found else None


def _data(run: RunFolder) -> Iterator[str]:
    if not run.recipe_file.exists():
        return
    recipe = run.recipe()
    yield from ("## Data", "", "| dataset | SHA-256 of its manifest |", "|---|---|")
    for name, dataset in recipe.sources.items():
        manifest = Path(dataset.path) / "manifest.json"
        told = f"`{file_hash(manifest)}`" if manifest.is_file() else "not here any more"
        yield f"| {Path(dataset.path).name if name == 'data' else name} | {told} |"


def _results(scores: Any) -> Iterator[str]:
    """The numbers of ``evaluation.json``, of every split."""
    if not scores:
        return
    yield from (
        "## Results",
        "",
        "| split | task | scored by | word error rate | before training |",
        "|---|---|---|---|---|",
    )
    for split in (scores, *scores.get("more", ())):
        for task in split.get("tasks", ()):
            before = f"{task['wer_before']:.3f}" if isinstance(task.get("wer_before"), float) else ""
            wer = f"{task['wer']:.3f}" if isinstance(task.get("wer"), float) else "not scored"
            by = task.get("scorer", "words")
            yield f"| {split.get('split', '')} | {task.get('task')} | {by} | {wer} | {before} |"
    kept = [row for row in scores.get("retention", ()) if isinstance(row.get("after"), float)]
    if kept:
        yield from ("", "| tower | its own modality, nats per token: before | after |", "|---|---|---|")
        yield from (f"| {row['tower']} | {row['before']:.4f} | {row['after']:.4f} |" for row in kept)


def _certificates(proofs: Any, folder: Path) -> Iterator[str]:
    yield from ("## Certificates", "")
    for each in (proofs or {}).get("certificates", ()):
        yield f"- {each['name']} {'holds' if each['passed'] else 'FAILS'}: {each['claim']}"
    yield f"- C10 is proven by `zippkit verify RUN --export {folder.name.partition('.')[0] or 'FOLDER'}`."
