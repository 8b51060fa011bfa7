"""The page about a finished run: it is one whole file, and it says what the run's files say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

import zippkit.report.origin
import zippkit.report.plots
import zippkit.report.run_page
from helpers.compositions import link, tower
from zippkit.batch.mask_view import Masks
from zippkit.composition import Composition, compile, load
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.text import train_words
from zippkit.errors import ZippkitError
from zippkit.evaluation.certificates import Certificate, Report, verify
from zippkit.loading import load_recipe
from zippkit.plan.diagram.diagram import drawn_sites
from zippkit.report.examples import marked
from zippkit.report.loss_panels import loss_panels
from zippkit.report.plots import loss_curve
from zippkit.report.run_page import write_report
from zippkit.training.metrics import read_metrics
from zippkit.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

HOSTILE = "</td><script>alert('x')</script> & \x00\x1b[31m \ud800 \ufffe"
HTML = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"
SCORES = {
    "split": "test",
    "tasks": [
        {
            "task": "speech -> text",
            "wer_before": 0.923,
            "wer": 0.2514,
            "answers": [
                *({"id": f"right-{i}", "reference": "two one", "hypothesis": "two one"} for i in range(30)),
                {"id": HOSTILE, "reference": f"one {HOSTILE}", "hypothesis": f"two {HOSTILE}"},
                {"id": "extra", "reference": "two", "hypothesis": "two one"},
            ],
        }
    ],
    "retention": [
        {"tower": "text", "frozen": True, "before": 2.186099437957114, "after": 2.186099437957114},
        {"tower": "speech", "frozen": False, "before": 2.0015603093523926, "after": 5.581423174253689},
    ],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as training and evaluation leave it, without having trained."""
    words = train_words(["one two"])
    rows = [Example(f"e{n}", "s", 1.0, {"text": "two one", "speech": np.arange(n)}) for n in (9, 4, 5)]
    write_dataset(tmp_path / "data", {"train": rows, "test": rows}, {"text": words})
    frame = {"begin": words.begin, "end": words.end}
    spec = {
        "name": "tiny",
        "towers": {
            "text": tower(2, 8, words.vocab_size) | {"frame": frame, "freeze": True},
            "speech": tower(2, 8, 16),
        },
        "links": [link("speech", "text", every=1), link("text", "speech", every=2)],
    }
    recipe = {"name": "story", "spec": spec, "data": str(tmp_path / "data"), "seed": 7}
    recipe["train"] = {"steps": 4, "tasks": ["speech -> text"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    loaded = load_recipe(tmp_path / "recipe.yaml")
    folder = RunFolder(tmp_path / "run")
    folder.keep_recipe(loaded)
    folder.keep_tokenizers({"data": Dataset.open(loaded.data)})
    compile(loaded.spec, seed=7).save(folder.model)
    lines = [{"phase": "pretrain.text", "step": 1, "text": 3.0, "total": 3.0}]
    lines += [{"phase": "train", "step": i, "text": 2.0 / i, "speech": 1.5, "total": 4.0} for i in (1, 2, 3, 4)]
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.write_json("evaluation.json", SCORES)
    folder.add_seconds("train", 41.25)
    return folder.path


@pytest.fixture(autouse=True)
def proofs(monkeypatch: pytest.MonkeyPatch) -> Report:
    """Certificates in no time, with what a hostile link's author may have written."""
    made = Report((Certificate("C1", "nobody sees the future", True, f"tried {HOSTILE}", 1.25),))
    monkeypatch.setattr(zippkit.report.run_page, "verify", lambda _: made)
    return made


def tree(page: Path) -> ElementTree.Element:
    return ElementTree.fromstring(page.read_text(encoding="utf-8"))


def said(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def section(page: Path, title: str) -> ElementTree.Element:
    found = [part for part in tree(page).iter(f"{HTML}section") if said(part[0]) == title]
    assert len(found) == 1, title
    return found[0]


def cells(part: ElementTree.Element) -> list[list[str]]:
    """The rows of every table of a section, without the heads."""
    return [[said(cell) for cell in row] for body in part.iter(f"{HTML}tbody") for row in body]


class Balance(HTMLParser):
    """An HTML reader that notices every tag that is not closed, or closed by another's."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()


def test_the_page_is_balanced_and_needs_nothing_from_outside(run: Path) -> None:
    page = write_report(run)
    assert page == run / "report.html"
    reader = Balance()
    reader.feed(page.read_text(encoding="utf-8"))
    assert reader.open == []
    assert not {"script", "link", "img", "iframe", "object"} & {name for name, _ in reader.seen}
    attributes = [pair for _, attrs in reader.seen for pair in attrs.items()]
    assert [v for k, v in attributes if k in ("src", "href", "xlink:href") and not str(v).startswith("#")] == []
    assert not re.search(r"@import|url\((?!#)", page.read_text(encoding="utf-8"))
    ids = [value for key, value in attributes if key == "id"]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'(?:url\(|href=")#([^)"]+)', page.read_text(encoding="utf-8")))
    assert referred and referred <= set(ids)


def test_no_picture_brings_a_style_sheet_that_reaches_the_others(run: Path) -> None:
    assert len(list(tree(write_report(run)).iter(f"{SVG}style"))) == 0


def test_the_diagram_on_the_page_draws_the_sites_of_the_model(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    sites = load(run).graph.sites
    assert len(sites) == 3
    assert drawn_sites(page) == {(s.link, s.index, s.source, s.source_depth, s.target, s.target_depth) for s in sites}


def test_hostile_text_stays_text(run: Path) -> None:
    page = write_report(run)
    assert "<script" not in page.read_text(encoding="utf-8")
    shown = "</td><script>alert('x')</script> & \ufffd\ufffd[31m \ufffd \ufffd"
    assert cells(section(page, "Examples"))[0] == [shown, f"one {shown}", f"two {shown}"]
    assert f"tried {shown}" in said(section(page, "Certificates"))


def test_tables_say_what_the_files_say(run: Path, proofs: Report) -> None:
    page = write_report(run)
    assert cells(section(page, "Word error rate")) == [["speech → text", "92.3%", "25.1%"]]
    assert cells(section(page, "What each tower kept")) == [
        ["text", "yes", "2.1861", "2.1861", "0 exactly"],
        ["speech", "no", "2.0016", "5.5814", "+3.5799"],
    ]
    written = json.loads((run / "certificates.json").read_text())
    assert written == proofs.as_json()
    assert [row[:2] + row[3:] for row in cells(section(page, "Certificates"))] == [["C1", "holds", "1.2"]]
    seconds = json.loads((run / "seconds.json").read_text())
    assert list(seconds) == ["train", "certificates"]
    rows = [[phase, f"{value:.1f}", ""] for phase, value in seconds.items()]
    assert cells(section(page, "Time")) == [*rows, ["all", f"{sum(seconds.values()):.1f}", ""]]


def test_the_summary_tells_what_was_learnt_kept_and_proved(run: Path) -> None:
    words = said(next(tree(write_report(run)).iter(f"{HTML}header")))
    assert "word error rate of speech → text from 92.3% to 25.1% (32 examples)" in words
    assert "What is frozen (text) is unchanged: its loss alone and zipped differs by 0 exactly." in words
    assert "All 1 certificates hold." in words


def test_what_went_wrong_is_said_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Report((Certificate("C3", "frozen rests", False, "text.head moved", 0.0),))
    monkeypatch.setattr(zippkit.report.run_page, "verify", lambda _: failed)
    scores = json.loads(json.dumps(SCORES))
    scores["retention"][0]["after"] += 1e-9
    RunFolder(run).write_json("evaluation.json", scores)
    page = write_report(run)
    words = said(next(tree(page).iter(f"{HTML}header")))
    assert "What is frozen (text) CHANGED: text." in words
    assert "Of 1 certificates, these FAIL: C3." in words
    assert cells(section(page, "Certificates"))[0][1:3] == ["FAILS", "frozen reststext.head moved"]
    assert cells(section(page, "What each tower kept"))[0][4] == "+0.0000"


def test_wrong_answers_come_first_and_right_ones_follow(run: Path) -> None:
    part = section(write_report(run), "Examples")
    ids = [row[0] for row in cells(part)]
    assert len(ids) == 20 and ids[1] == "extra" and ids[2:] == [f"right-{i}" for i in range(18)]
    assert [said(mark) for mark in part.iter(f"{HTML}mark")] == ["one", "two", "one"]
    assert "2 of 32 answers have a wrong word; 20 are shown" in said(part)


@pytest.mark.parametrize(("n_wrong", "n_right", "shown"), [(30, 30, (15, 5)), (30, 2, (18, 2)), (3, 4, (3, 4))])
def test_some_right_answers_are_always_shown(run: Path, n_wrong: int, n_right: int, shown: tuple[int, int]) -> None:
    scores = json.loads(json.dumps(SCORES))
    answers = [{"id": "w", "reference": "one", "hypothesis": "two"}] * n_wrong
    answers += [{"id": "r", "reference": "one", "hypothesis": "one"}] * n_right
    scores["tasks"][0]["answers"] = answers
    RunFolder(run).write_json("evaluation.json", scores)
    ids = [row[0] for row in cells(section(write_report(run), "Examples"))]
    assert ids == ["w"] * shown[0] + ["r"] * shown[1]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("six four", "six four four", ("six four", "six four <mark>four</mark>")),
        ("two five two", "two five", ("two five <mark>two</mark>", "two five")),
        ("a  b c", "a x c", ("a <mark>b</mark> c", "a <mark>x</mark> c")),
        ("a", "", ("<mark>a</mark>", "")),
        ("", "<b>", ("", "<mark>&lt;b&gt;</mark>")),
    ],
)
def test_the_words_that_count_as_errors_are_marked(reference: str, hypothesis: str, expected: tuple[str, str]) -> None:
    assert marked(reference, hypothesis) == expected


def test_a_run_without_scores_and_metrics_gets_its_page(run: Path) -> None:
    (run / "evaluation.json").unlink()
    (run / "metrics.jsonl").unlink()
    page = write_report(run)
    assert f"Not scored yet: zippkit eval {run}" in said(section(page, "Results"))
    assert "no metrics" in said(section(page, "Training"))
    titles = [said(heading) for heading in tree(page).iter(f"{HTML}h2")]
    assert titles == ["Architecture", "Masks", "Training", "Results", "Certificates", "Time", "How it was made"]
    assert "It has not been scored yet." in said(next(tree(page).iter(f"{HTML}header")))


def test_masks_are_of_the_shortest_examples_with_their_words(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = catch_pictures(monkeypatch)
    page = write_report(run)
    assert "The shortest examples of speech → text in test: e4, e5." in said(section(page, "Masks"))
    masks, rows = pictures[0][0], [row for _, row in pictures]
    assert rows == [0, 1]
    assert [token.label for token in masks.tokens["text"][0]] == ["<b>", "two", "one", "<e>"]
    assert [token.label for token in masks.tokens["speech"][1]] == ["<b>", "0", "1", "2", "3", "4", "<e>"]


def test_without_the_dataset_the_tokens_are_made_up_and_it_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run.parent / "data")
    pictures = catch_pictures(monkeypatch)
    page = write_report(run)
    assert "no such folder), so these token ids are made up" in said(section(page, "Masks"))
    masks, _ = pictures[0]
    # Ids 1 and 2 are the text's frame.
    assert [token.label for token in masks.tokens["text"][0]] == ["<b>", "0", "3", "4", "<e>"]


def catch_pictures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Masks, int]]:
    caught = []

    def draw(masks: Masks, row: int, name: str) -> str:
        caught.append((masks, row))
        return f'<svg xmlns="{SVG[1:-1]}" id="{name}"/>'

    monkeypatch.setattr(zippkit.report.plots, "mask_picture", draw)
    return caught


def test_a_panel_for_each_phase_says_where_its_losses_went(run: Path) -> None:
    panels = list(section(write_report(run), "Training").iter(f"{HTML}figure"))
    assert [said(panel[0]) for panel in panels] == [
        "pre-train text ● text 3.00 → 3.00",
        "train ● text 2.00 → 0.50 ● speech 1.50 → 1.50",
    ]


def test_a_curve_goes_through_its_points_in_the_ink_of_the_page() -> None:
    lines: list[dict[str, Any]] = [{"step": i, "losses": {"text": 6.0 - 2 * i}} for i in (1, 2, 3)]
    drawn = ElementTree.fromstring(loss_curve(lines, ["speech", "text"], "train"))
    way = drawn.find(f".//{SVG}g[@id='train-text']/{SVG}path")
    assert way is not None
    points = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([\d.]+) ([\d.]+)", way.get("d", ""))]
    (x1, y1), (x2, y2), (x3, y3) = points
    # SVG's y grows downwards.
    assert x1 < x2 < x3 and y1 < y2 < y3
    assert x2 - x1 == pytest.approx(x3 - x2) and y2 - y1 == pytest.approx(y3 - y2)
    text = ElementTree.tostring(drawn, encoding="unicode")
    assert "currentColor" in text and zippkit.report.plots.INK not in text


def test_how_it_was_made_holds_the_recipe_and_the_spec_word_for_word(run: Path) -> None:
    part = section(write_report(run), "How it was made")
    texts = [said(pre) for pre in part.iter(f"{HTML}pre")]
    assert texts == [(run / "recipe.yaml").read_text(), (run / "model" / "spec.yaml").read_text()]
    facts = dict(cells(part))
    assert facts["seed"] == "7" and {"zippkit", "python, torch", "processor"} <= set(facts)
    assert facts["threads"] == "1"


def test_a_commit_is_only_told_of_zippkits_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    package = tmp_path / "zippkit"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(zippkit.report.origin, "__file__", str(package / "report.py"))
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert zippkit.report.origin.commit() == ""
    for words in (["add", "."], [*who, "commit", "-q", "-m", "ours"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{40}", zippkit.report.origin.commit())
    monkeypatch.setenv("PATH", "")
    assert zippkit.report.origin.commit() == ""


def test_an_earlier_page_stays_whole_when_a_new_one_cannot_be_made(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_report(run)
    before = page.read_text(encoding="utf-8")

    def cut_short(self: Path, text: str, **kwargs: Any) -> int:
        del kwargs
        with self.open("w") as stream:
            stream.write(text[:100])
        raise OSError("disk full")

    monkeypatch.setattr(zippkit.report.run_page.RunFolder, "write_json", lambda *_: None)
    monkeypatch.setattr(Path, "write_text", cut_short)
    with pytest.raises(OSError, match="disk full"):
        write_report(run)
    assert page.read_text(encoding="utf-8") == before


def test_a_run_that_is_not_finished_is_refused(run: Path) -> None:
    shutil.rmtree(run / "model")
    with pytest.raises(ZippkitError, match="this run is not finished"):
        write_report(run)
    with pytest.raises(ZippkitError, match="no run is there"):
        write_report(run / "nowhere")
    assert not (run / "report.html").exists()


def test_certificates_are_those_of_the_trained_composition(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proved: list[Composition] = []

    def prove(zipped: Composition) -> Report:
        proved.append(zipped)
        return verify(zipped, only=["C9"])

    monkeypatch.setattr(zippkit.report.run_page, "verify", prove)
    page = write_report(run)
    expected = load(run).model.state_dict()
    assert all(bool((value == expected[name]).all()) for name, value in proved[0].model.state_dict().items())
    assert [row[:2] for row in cells(section(page, "Certificates"))] == [["C9", "holds"]]


def test_curves_of_the_dev_split_are_drawn_where_there_are_some(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    before = [panel.phase for panel in loss_panels(run, ["text", "speech"])]
    lines = read_metrics(run)
    for line in lines:
        if line["phase"] == "train":
            line["validation"] = {"text_loss": 1.5, "text_wer": 1 / line["step"], "speech_retention": 2.0, "loss": 1.5}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    panels = {panel.phase: panel for panel in loss_panels(run, ["text", "speech"])}
    assert list(panels) == [*before, "train, word error rate on dev", "train, own loss on dev"]
    ids = {each.get("id") for each in ElementTree.fromstring(panels["train"].picture).iter()}
    assert {"train-text", "train-speech", "train-text-dev"} <= ids and "train-speech-dev" not in ids
    (legend,) = panels["train, word error rate on dev"].legend
    assert (legend.tower, legend.first, legend.last) == ("text", 1.0, 0.25)
    write_report(run)
    assert "train, word error rate on dev" in (run / "report.html").read_text()
