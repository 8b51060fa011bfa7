"""YAML in: lines, duplicates, numbers, bounds, overrides; and that nothing but a SpecError ever comes out."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.compositions import SPEC
from zippkit.errors import SpecError
from zippkit.spec.inheritance import read_yaml
from zippkit.spec.yaml_document import MAX_BYTES, MAX_DEPTH, MAX_VALUES, dotted


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "spec.yaml"


def refusal(file: Path, content: str | bytes, overrides: list[str] | None = None) -> str:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError) as caught:
        read_yaml(file, overrides or [])
    return str(caught.value).replace(str(file), "FILE")


def test_every_value_knows_its_line(file: Path) -> None:
    file.write_text(SPEC)
    document = read_yaml(file)
    assert document.line(("name",)) == 1
    assert document.line(("towers", "text", "config", "n_layers")) == 5
    assert document.line(("towers", "speech", "frame", "end")) == 11
    assert document.line(("links", 1, "every")) == 14
    assert document.line(("links", 1, "projection", "depth")) == 14, "of the nearest parent that the file names"
    assert document.line(("towers", "speech", "freeze")) == 8
    assert str(document.problem(("links", 0, "every"), "no")) == f"{file}:13: links[0].every: no"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-2e+2", -200.0),
        (".5e1", 5.0),
        ("1.5e3", 1500.0),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1e3x", "1e3x"),
        ("7", 7),
        ("0x10", 16),
        ("0.25", 0.25),
        ("true", True),
        ("", None),
    ],
)
def test_scalars(file: Path, text: str, value: object) -> None:
    file.write_text(f"a: {text}\n")
    read = read_yaml(file).data["a"]
    assert read == value
    assert type(read) is type(value)


def test_duplicate_keys_tell_both_lines(file: Path) -> None:
    told = refusal(file, "name: a\ntowers:\n  text: {kind: x, freeze: true, kind: y}\n  text: {}\nname: b\n")
    assert told.splitlines() == [
        "FILE:3: towers.text.kind: duplicate key 'kind', first given on line 3; keep one of them",
        "FILE:4: towers.text: duplicate key 'text', first given on line 3; keep one of them",
        "FILE:5: name: duplicate key 'name', first given on line 1; keep one of them",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param("", "FILE: the file is empty", id="empty"),
        pytest.param("# only\n--- ~\n", "FILE:2: expected a mapping of keys to values, got NoneType", id="null"),
        pytest.param("# only a comment\n", "FILE: the file is empty", id="comment"),
        pytest.param("- a\n- b\n", "FILE:1: expected a mapping of keys to values, got list", id="list"),
        pytest.param("word", "FILE:1: expected a mapping of keys to values, got str", id="scalar"),
        pytest.param("a: 1\n\tb: 2\n", "FILE:2: not valid YAML: found character '\\t'", id="tab"),
        pytest.param("a: [1, 2\nb: 3\n", "FILE:2: not valid YAML: ", id="open bracket"),
        pytest.param("a: 1\n--- \nb: 2\n", "FILE:2: not valid YAML: but found another document", id="two documents"),
        pytest.param("a: *b\n", "FILE:1: not valid YAML: found undefined alias", id="undefined alias"),
        pytest.param(SPEC.encode("utf-16"), "FILE: not UTF-8 text (byte 0)", id="utf-16"),
        pytest.param(b"a: \xff\n", "FILE: not UTF-8 text (byte 3)", id="latin-1"),
        pytest.param(b"a: 1\nb: \x01\n", "FILE:2: not text: character 0x1", id="control character"),
        pytest.param(bytes(range(128)), "FILE:1: not text: character 0x0", id="binary"),
        pytest.param("? [a, b]\n: 1\n", "FILE:1: a key must be a plain word", id="list as key"),
        pytest.param('"a\\nb": 1\n', "FILE:1: a key must be a plain word", id="two lines as key"),
        pytest.param('a: {"\\ud800": 1}\n', "FILE:1: a: a key must be a plain word", id="surrogate as key"),
        pytest.param("a: !!python/object:os.system x\n", "FILE:1: a: not a value that YAML knows", id="python object"),
        pytest.param('a:\n  - !!int ""\n', "FILE:2: a[0]: not a value that YAML knows", id="int of nothing"),
        pytest.param("a: !!bool maybe\n", "FILE:1: a: not a value that YAML knows", id="bool of a word"),
        pytest.param("a: !!timestamp soon\n", "FILE:1: a: not a value that YAML knows", id="time of a word"),
        pytest.param("a: 2001-99-99\n", "FILE:1: a: not a value that YAML knows", id="impossible date"),
        pytest.param('a: "\\UFFFFFFFF"\n', "FILE: not valid YAML: ", id="escape past Unicode"),
        pytest.param("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", "FILE: not valid YAML: ", id="version of 5000 digits"),
        pytest.param("a: 0x" + "f" * 5000 + "\n", "FILE:1: a: a number of more than 64 bits", id="hexadecimal"),
        pytest.param("a: " + ":".join(["1"] * 300) + ".5\n", "FILE:1: a: not a value", id="float in base 60"),
    ],
)
def test_refused(file: Path, content: str | bytes, told: str) -> None:
    assert refusal(file, content).startswith(told)


@pytest.mark.parametrize("opener", ["[", "{a: ", "- ", "? ", "a: ["])
def test_deep_nesting(file: Path, opener: str) -> None:
    text = opener * (MAX_BYTES // len(opener))
    assert refusal(file, text) in (
        "FILE: nested too deeply (or an alias that holds itself)",
        "FILE:1: not valid YAML: mapping values are not allowed here",
    )


@pytest.mark.parametrize(("levels", "refused"), [(MAX_DEPTH, False), (MAX_DEPTH + 1, True)])
def test_as_deep_as_it_may_be(file: Path, levels: int, refused: bool) -> None:
    text = "a: " + "[" * levels + "]" * levels
    if refused:
        assert refusal(file, text) == "FILE: nested too deeply (or an alias that holds itself)"
    else:
        file.write_text(text)
        assert "a" in read_yaml(file).data


@pytest.mark.parametrize("text", ["a: " + "[" * 10_000, "a: [" + "x, " * (2 * MAX_VALUES) + "]"], ids=["deep", "long"])
def test_what_is_behind_the_bounds_is_not_read(file: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    fetch = yaml.SafeLoader.fetch_more_tokens
    monkeypatch.setattr(yaml.SafeLoader, "fetch_more_tokens", lambda self: (read.append(self.index), fetch(self))[1])
    assert refusal(file, text).startswith(("FILE: nested too deeply", f"FILE: more than {MAX_VALUES} values"))
    assert read[-1] < 0.6 * len(text)


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: &a {b: *a}\n", "a: &a\n  - b: [*a, *a]\n"])
def test_alias_that_holds_itself(file: Path, text: str) -> None:
    assert refusal(file, text).startswith("FILE: nested too deeply (or an alias that holds itself)")


def test_alias_bomb(file: Path) -> None:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{c}: &{c} [{','.join(['*' + p] * 9)}]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)]
    assert refusal(file, "\n".join(lines)) == f"FILE: more than {MAX_VALUES} values (aliases count each time)"


def test_plain_aliases_are_fine(file: Path) -> None:
    file.write_text("a: &frame {begin: 1, end: 2}\nb: *frame\n")
    assert read_yaml(file).data["b"] == {"begin": 1, "end": 2}


def test_a_hundred_megabytes_are_refused_unread(file: Path) -> None:
    big = file.with_name("big.yaml")
    big.touch()
    os.truncate(big, 100 * 2**20)
    tracemalloc.start()
    with pytest.raises(SpecError, match=r"larger than 256 KiB, which no spec or recipe is"):
        read_yaml(big)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MAX_BYTES


@pytest.mark.parametrize("path", ["missing.yaml", ".", "a\0b", "x" * 5000])
def test_files_that_cannot_be_read(path: str) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("setting", "place", "value"),
    [
        ("name=other", ("name",), "other"),
        ("towers.text.freeze=false", ("towers", "text", "freeze"), False),
        ("towers.text.config.n_layers=8", ("towers", "text", "config", "n_layers"), 8),
        ("towers.text.freeze={layers.0.*: train}", ("towers", "text", "freeze"), {"layers.0.*": "train"}),
        ("links[1].every=1", ("links", 1, "every"), 1),
        ("links.1.every=1", ("links", 1, "every"), 1),
        ("links[0]={kind: x}", ("links", 0), {"kind": "x"}),
        ("links[0].config.rope_theta=1e-3", ("links", 0, "config", "rope_theta"), 0.001),
        ("links[1].projection.depth=1", ("links", 1, "projection", "depth"), 1),
        ("towers.5.kind=x", ("towers", "5", "kind"), "x"),
        ("name=a=b", ("name",), "a=b"),
        ("name=", ("name",), None),
    ],
)
def test_overrides(file: Path, setting: str, place: tuple[str | int, ...], value: object) -> None:
    file.write_text(SPEC)
    document = read_yaml(file, [setting])
    found = document.data
    for part in place:
        found = found[part]
    assert found == value
    assert document.line(place) == 0, "it does not stand in the file"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("name", "FILE: got 'name'; an override is written key.path=value, as in towers.text.freeze=true"),
        ("=1", "FILE: got '=1'; an override is written"),
        ("towers..text=1", "FILE: got 'towers..text=1'; an override is written"),
        ("na\nme=1", "FILE: got 'na\\nme=1'; an override is written"),
        ("links[2].every=1", "FILE: links[2].every: override names a place that is not there"),
        ("links[9]=1", "FILE: links[9]: override names a place that is not there"),
        ("links.-1.every=1", "FILE: links.-1.every: override names a place that is not there"),
        ("links.²=1", "FILE: links.²: override names a place that is not there"),
        ("name.x=1", "FILE: name.x: override names a place that is not there"),
        ("links[0].every.x=1", "FILE: links[0].every.x: override names a place that is not there"),
        ("name=[", "override name:1: not valid YAML"),
        ("name=\x01", "override name:1: not text: character 0x1"),
        ("towers.text.config={dim: 1, dim: 2}", "override towers.text.config:1: value.dim: duplicate key 'dim'"),
    ],
)
def test_bad_overrides(file: Path, setting: str, told: str) -> None:
    assert refusal(file, SPEC, [setting]).startswith(told)


def test_all_bad_overrides_are_told(file: Path) -> None:
    assert len(refusal(file, SPEC, ["name", "links[9]=1", "name=ok", "name.x=1"]).splitlines()) == 3


def test_dotted() -> None:
    assert dotted(("links", 0, "sites", 2, "from")) == "links[0].sites[2].from"
    assert dotted(()) == ""


NASTY = st.text(st.sampled_from("ab:-?*&!|>'\"%@`{}[],#\n\t \\x0U<=~.1e+_\x85\ufeff"), max_size=40)


@settings(max_examples=300)
@given(content=st.one_of(NASTY, st.text(max_size=60), st.binary(max_size=60).map(lambda raw: raw.decode("latin-1"))))
@example("!!set a")
@example("a: !!omap b")
@example("a: !!float ''")
@example("a: =")
@example("<<: 1")
def test_whatever_comes_in_only_a_spec_error_comes_out(file: Path, content: str) -> None:
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        document = read_yaml(file)
    except SpecError as error:
        assert error.problems
        assert all(str(problem).startswith((f"{file}:", str(file))) for problem in error.problems)
    else:
        assert isinstance(document.data, dict)


@settings(max_examples=200)
@given(
    setting=st.one_of(NASTY, st.builds("{}={}".format, st.sampled_from(["links[0]", "name", "towers.text.x"]), NASTY))
)
def test_whatever_an_override_says(file: Path, setting: str) -> None:
    file.write_text(SPEC)
    try:
        read_yaml(file, [setting])
    except SpecError as error:
        assert error.problems
