"""The adapter between `evaluation.json` and metrics."""

from __future__ import annotations

from zippkit.experiment.metrics import Metric
from zippkit.experiment.scores import Kept, Sentence, read_scores

ANSWERS = [
    {"id": "a", "reference": "one two three", "hypothesis": "one too", "target": "one two"},
    {"id": "b", "reference": "four", "hypothesis": "four five", "target": "for"},
]
EVALUATION = {
    "split": "test",
    "tasks": [{"task": "text -> speech", "answers": ANSWERS}],
    "retention": [{"tower": "text", "frozen": False, "before": 1.0, "after": 1.5}],
}


def test_errors_are_counted_against_text_and_target() -> None:
    scores = read_scores(EVALUATION)
    assert scores.sentences("text -> speech") == [Sentence("a", 2, 3, 3), Sentence("b", 1, 1, 1)]
    # What was heard in the true speech is the reference here; a sentence's length stays that of its text.
    assert scores.sentences("text -> speech", "target") == [Sentence("a", 1, 2, 3), Sentence("b", 2, 1, 1)]
    assert scores.sentences("text -> speech", "oracle") == [Sentence("a", 1, 3, 3), Sentence("b", 1, 1, 1)]
    assert scores.retention == {"text": Kept(1.0, 1.5)}


def test_what_was_not_scored_is_not_there() -> None:
    scores = read_scores({})
    assert scores.sentences("text -> speech") == []
    assert (
        read_scores({"tasks": [{"task": "a -> b", "answers": [ANSWERS[0] | {"target": None}]}]}).sentences(
            "a -> b", "oracle"
        )
        == []
    )


def test_an_empty_reference_counts_what_was_said() -> None:
    answer = {"id": "a", "reference": "", "hypothesis": "one two"}
    (sentence,) = read_scores({"tasks": [{"task": "t", "answers": [answer]}]}).sentences("t")
    assert (sentence, sentence.rate) == (Sentence("a", 2, 0, 0), 2.0)


def test_metrics_count_words_not_sentences() -> None:
    scores = {"test": read_scores(EVALUATION)}

    def value(**more: object) -> float | None:
        metric = Metric.model_validate({"label": "m", "task": "text -> speech", **more})
        return metric.value(scores, {"m": metric})

    assert value() == 3 / 4
    assert value(reference="target") == 3 / 3
    assert value(words=[3, None]) == 2 / 3
    assert value(words=[1, 2], reference="target") == 2 / 1
    assert value(words=[7, 9]) is None
    assert value(split="dev") is None
    assert Metric(label="k", retention="text").value(scores, {}) == 0.5
    assert Metric(label="k", retention="speech").value(scores, {}) is None


def test_text_is_counted_as_speech_is() -> None:
    answer = {"id": "a", "reference": "Twenty-one dogs, don't!", "hypothesis": "2 1 dogs dont"}
    assert read_scores({"tasks": [{"task": "t", "answers": [answer]}]}).sentences("t") == [Sentence("a", 0, 4, 4)]


def test_what_is_normalised_already_is_left_alone() -> None:
    answer = {"id": "a", "reference": "one thousand", "hypothesis": "one thousand", "target": "one"}
    (sentence,) = read_scores({"tasks": [{"task": "t", "answers": [answer]}]}).sentences("t")
    assert sentence == Sentence("a", 0, 2, 2)


def test_a_task_is_the_same_however_it_is_spaced() -> None:
    metric = Metric.model_validate({"label": "m", "task": "text->speech"})
    assert metric.value({"test": read_scores(EVALUATION)}, {"m": metric}) == 3 / 4
