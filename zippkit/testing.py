"""For authors of plugins: a check for each kind of part, which a package's one test calls.

::

    def test_my_tower():
        check_tower(MyTower(MyTower.Config(dim=16, n_layers=2, vocab_size=10)))

    def test_my_link():
        check_link(MyLink, MyLink.Config())

    def test_my_tokenizer():
        check_tokenizer(MyUnits, MyUnits.Config(n_units=8))

    def test_my_scorer():
        check_scorer(MyRecogniser(MyRecogniser.Config()))

    def test_my_corpus():
        check_reader(MyCorpus, "tests/corpus")

    def test_my_tracker(tmp_path):
        check_tracker(MyTracker, {"project": "mine"}, tmp_path)

Keep the towers tiny: two layers, ten tokens, a width of 16.
"""

from __future__ import annotations

from zippkit.evaluation.plugin_checks.links import check_link
from zippkit.evaluation.plugin_checks.readers import check_reader
from zippkit.evaluation.plugin_checks.scorers import check_scorer
from zippkit.evaluation.plugin_checks.tokenizers import check_tokenizer
from zippkit.evaluation.plugin_checks.towers import check_tower
from zippkit.evaluation.plugin_checks.trackers import check_tracker

__all__ = ["check_link", "check_reader", "check_scorer", "check_tokenizer", "check_tower", "check_tracker"]
