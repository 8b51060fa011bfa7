"""Scores of other settings: every key is checked, and they never take the place of the run's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.tiny_runs import copied, finished_run, zippkit
from zippkit.errors import SpecError
from zippkit.evaluation.evaluate import evaluate
from zippkit.evaluation.evaluation_file import FILE, read_evaluation
from zippkit.evaluation.overrides import overridden
from zippkit.training.run_folder import RunFolder

pytestmark = pytest.mark.slow


def test_other_settings_are_those_of_evaluate_and_short_forms() -> None:
    recipe = RunFolder(finished_run()).recipe()
    how = overridden(recipe, ["split=train", "limit=3", "beams=2", "task=speech -> text"]).evaluate
    assert (how.all_splits, how.limit, how.tasks) == (["train"], 3, ["speech -> text"])
    assert {name: way.beams for name, way in how.sampling.items()} == {"text": 2, "speech": 2}
    one = overridden(recipe, ["sampling.text.temperature=0.5", "top_k=3", "temperature=0.7"]).evaluate.sampling["text"]
    assert (one.temperature, one.top_k) == (0.7, 3)
    assert overridden(recipe, []) is recipe
    several = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"splits": ["test", "train"]})})
    assert overridden(several, ["split=test"]).evaluate.all_splits == ["test"]
    assert overridden(several, ["limit=1"]).evaluate.all_splits == ["test", "train"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["limt=3"], "limt: unknown key 'limt'; did you mean 'limit'?"),
        (["limit=0", "beams=0"], "limit: expected greater than 0, got 0"),
        (["task=speach -> text"], "no tower is called 'speach'; did you mean 'speech'?"),
        (["limit"], "an override is written key.path=value"),
    ],
)
def test_what_does_not_fit_is_told(settings: list[str], message: str) -> None:
    with pytest.raises(SpecError) as told:
        overridden(RunFolder(finished_run()).recipe(), settings)
    assert message in str(told.value)


def test_they_stand_apart_from_the_run_s_own(tmp_path: Path) -> None:
    run = copied(finished_run(), tmp_path / "copy")
    said = zippkit("eval", run, "limit=2", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["overrides"] == {"limit": "2"}
    found = read_evaluation(RunFolder(run))
    assert found is not None and found.overrides == {"limit": "2"}, "there were none of its own, and the file says so"
    evaluate(run)
    own = (run / FILE).read_bytes()
    assert json.loads(own)["overrides"] == {}
    said = zippkit("eval", run, "limit=2", "split=train")
    assert (run / FILE).read_bytes() == own
    apart = run / "evaluations" / "limit=2,split=train" / FILE
    assert f"the run's own, whose scores stay: see {apart}" in said.stderr.replace("\n", "")
    assert "Word error rate (train)" in said.stdout, "what is shown is what was asked for"
    kept = json.loads(apart.read_text())
    assert (kept["split"], kept["overrides"]) == ("train", {"limit": "2", "split": "train"})
    assert len(kept["tasks"][0]["answers"]) == 2
    evaluate(run, "train")
    assert (run / FILE).read_bytes() == own
    assert len(evaluate(run, overrides=[f"tasks=[speech -> text]{' ' * 90}"]).tasks) == 1
    assert max(len(path.name) for path in (run / "evaluations").iterdir()) < 90


def test_json_and_nothing_else_comes_out(tmp_path: Path) -> None:
    run = copied(finished_run(), tmp_path / "copy")
    spec, recipe = run / "model" / "spec.yaml", run / "recipe.yaml"
    ops = json.loads(zippkit("plan", spec, "--json").stdout)
    assert {op["kind"] for op in ops} >= {"start", "layer", "head", "write", "read"}
    assert json.loads(zippkit("recipe", spec, "--json").stdout)["train"]["tasks"] == ["speech -> text"]
    told = json.loads(zippkit("train", recipe, "--out", run, "--json").stdout)
    assert (told["name"], told["finished"], told["steps"]) == ("tiny", True, {"train": 100})
    assert told["metrics"]["step"] == 100 and [line["changes"] for line in told["history"]] == [{}]
    zippkit("eval", run)
    page = json.loads(zippkit("report", run, "--json").stdout)
    assert Path(page["page"]).name == "report.html"
    assert all(proof["passed"] for proof in page["certificates"]["certificates"]) and page["evaluation"]["tasks"]
    missing = zippkit("eval", tmp_path / "nowhere", "--json")
    assert (missing.returncode, missing.stdout) == (2, "")


def test_generate_takes_a_row_around_its_input_projection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []

    def answer(*_: object, multimodal: bool, **__: object) -> list[str]:
        given.append(multimodal)
        return []

    monkeypatch.setattr("zippkit.evaluation.conversation.answer", answer)
    for flags in ([], ["--unimodal"]):
        assert zippkit("generate", finished_run(), "--text", "two", "--to", "text", *flags).returncode == 0
    assert given == [True, False]
