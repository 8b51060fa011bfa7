"""The command line: what it prints, exit code 2 and one clear message for a mistake, and never a traceback."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
import yaml
from pydantic import BaseModel

from helpers.tiny_runs import DEMO, SOUND, command, copied, demo_run, finished_run, spec, tiny_recipe, write_recipe
from zippkit import cli
from zippkit.data.audio import write_audio
from zippkit.data.dataset import Dataset
from zippkit.loading import load_recipe
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import Strict
from zippkit.spec.recipe import Recipe
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow

SPEC, RECIPE = DEMO / "spec.yaml", DEMO / "recipe.yaml"
COMPOSITIONS = DEMO.parent / "compositions"
COMMANDS = {c.name or c.callback.__name__: c for c in cli.app.registered_commands if c.callback}


class Said(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process; an exception that it lets through is a traceback, and fails the test."""

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["zippkit", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return Said(int(exit_.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_is_installed() -> None:
    (entry,) = entry_points(group="console_scripts", name="zippkit")
    assert entry.load() is cli.main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_with_an_example(call: Call, name: str) -> None:
    said = call(name, "--help")
    assert said.code == 0
    assert f"Example: zippkit {name}" in said.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_written_as_the_command_takes_it(name: str) -> None:
    """Files of this repository that it names are there, and so are its options."""
    help_text = COMMANDS[name].callback.__doc__ or ""  # type: ignore[union-attr]
    example = next(line for line in help_text.splitlines() if "Example:" in line).partition("zippkit ")[2]
    words = shlex.split(example.partition(" > ")[0])
    group = typer.main.get_command(cli.app)
    group.commands[name].make_context(name, words[1:])  # type: ignore[attr-defined]
    for word in words:
        assert not word.startswith("recipes/") or (DEMO.parents[1] / word).exists()


def test_version_names_what_an_error_report_needs(call: Call) -> None:
    assert re.fullmatch(r"zippkit \d+\.\d+\.\d+ \(torch \S+, Python 3\.\d+\.\S+\)\n", call("--version").out)


@pytest.mark.parametrize(("typed", "found"), [("ch", {"check"}), ("check --", {"--json", "--help"})])
def test_a_shell_completes(typed: str, found: set[str]) -> None:
    asked = {"COMP_WORDS": f"zippkit {typed}", "COMP_CWORD": str(1 + typed.count(" "))}
    surroundings = {**os.environ, **asked, "_ZIPPKIT_COMPLETE": "complete_bash"}
    zippkit = Path(sys.executable).with_name("zippkit")
    called = subprocess.run([zippkit], env=surroundings, capture_output=True, text=True, check=True)
    assert set(called.stdout.split()) == found, called.stderr


def test_check(call: Call, here: Path) -> None:
    assert call("check", RECIPE) == Said(0, f"{RECIPE}: demo is sound\n", "")
    assert call("check", RECIPE, "spec.towers.text.freeze=false") == Said(0, f"{RECIPE}: demo is sound\n", "")
    thawed = "towers.text.freeze=false"
    assert call("check", SPEC, thawed) == Said(0, f"{SPEC}: digits is sound\n", "")
    assert json.loads(call("check", SPEC, thawed, "--json").out) == {"ok": True, "problems": [], "warnings": []}


def test_check_warns_of_a_tower_that_is_frozen_at_random(call: Call, here: Path) -> None:
    line = 1 + next(i for i, line in enumerate(SPEC.read_text().split("\n")) if "freeze: true" in line)
    told = "the tower is frozen and has no weights, so it keeps its random values, unless a recipe pre-trains it or"
    said = call("check", SPEC)
    assert (said.code, said.out) == (0, f"{SPEC}: digits is sound\n")
    assert said.err.startswith(f"warning: {SPEC}:{line}: towers.text.freeze: {told}")
    (warning,) = json.loads(call("check", SPEC, "--json").out)["warnings"]
    assert (warning["line"], warning["key"]) == (line, "towers.text.freeze") and told in warning["message"]
    # The demo's recipe pre-trains the tower; one that does not is told where its spec says so.
    text = yaml.safe_load(RECIPE.read_text())
    text |= {"pretrain": {}, "spec": str(SPEC), "data": str(SPEC.parent)}
    Path("recipe.yaml").write_text(yaml.safe_dump(text))
    said = call("check", "recipe.yaml")
    assert (said.code, said.err.count("warning")) == (0, 1)
    assert said.err.startswith(f"warning: {SPEC}:{line}: towers.text.freeze: the tower is frozen and has no weights")
    assert "unless" not in said.err


def test_check_asks_for_no_weights_that_a_config_names(call: Call) -> None:
    listens = COMPOSITIONS / "smollm2_listens.yaml"
    assert call("check", listens) == Said(0, f"{listens}: smollm2_listens is sound\n", "")


def test_check_tells_file_line_and_key(call: Call, here: Path) -> None:
    text = SPEC.read_text().replace("n_layers: 4", "n_layerz: 4", 1).replace("from: speech", "from: speach")
    Path("spec.yaml").write_text(text)
    said = call("check", "spec.yaml")
    lines = {
        part: 1 + next(i for i, line in enumerate(text.split("\n")) if part in line) for part in ("layerz", "speach")
    }
    assert said.code == 2
    assert said.out == ""
    assert said.err.splitlines() == [
        f"spec.yaml:{lines['layerz']}: towers.text.config.n_layers: required key 'n_layers' is missing",
        f"spec.yaml:{lines['layerz']}: towers.text.config.n_layerz: unknown key 'n_layerz'; did you mean 'n_layers'?",
        f"spec.yaml:{lines['speach']}: links[0].from: no tower is called 'speach'; did you mean 'speech'?",
    ]
    as_json = call("check", "spec.yaml", "--json")
    assert as_json.code == 2
    problems = json.loads(as_json.out)
    assert problems["ok"] is False
    assert problems["problems"][2] == {
        "file": "spec.yaml",
        "line": lines["speach"],
        "key": "links[0].from",
        "message": "no tower is called 'speach'; did you mean 'speech'?",
    }


HEAVY = {
    *("torch", "transformers", "librosa", "soundfile", "numpy", "scipy", "sklearn", "pandas", "pyarrow"),
    *("matplotlib", "tokenizers", "tensorboard", "jiwer", "safetensors"),
}

WATCH = """
import sys
from zippkit.cli import main
sys.argv = ["zippkit", *{arguments!r}]
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
print()
print(*sorted(sys.modules))
"""


@pytest.mark.parametrize(
    ("arguments", "most"),
    [
        (["check", str(RECIPE)], 53),
        (["plan", str(SPEC)], 53),
        (["recipe", str(SPEC)], 53),
        (["diagram", str(SPEC), "-o", "a.svg"], 64),
    ],
    ids=["check", "plan", "recipe", "diagram"],
)
def test_what_needs_no_torch_imports_none(arguments: list[str], most: int, here: Path) -> None:
    code = WATCH.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1].split()
    assert not HEAVY & set(modules)
    packages = {name.rpartition(".")[0] for name in modules}
    own = [name for name in modules if name.startswith("zippkit.") and name not in packages]
    assert len(own) <= most, own
    assert len(modules) < 800


def test_plan(call: Call) -> None:
    whole = call("plan", SPEC)
    assert whole.code == 0
    lines = whole.out.splitlines()
    assert lines[0].split() == ["0", "start", "text"]
    assert any("read  text[1] from speech[1] by speech_to_text.0" in line for line in lines)
    pruned = call("plan", SPEC, "--task", "speech -> text").out
    assert "head  speech" in whole.out
    assert "head  speech" not in pruned
    alone = call("plan", SPEC, "--task", "text").out
    assert "speech" not in alone
    assert len(alone.splitlines()) == 6, "start, four layers, head"
    unfused = call("plan", SPEC, "links=[]")
    assert "read" not in unfused.out


def test_plan_of_a_task_of_an_unknown_tower(call: Call) -> None:
    said = call("plan", SPEC, "--task", "speach -> text")
    assert said == Said(2, "", "task 'speach -> text': no tower is called 'speach'; did you mean 'speech'?\n")


def test_plan_into_a_pipe_that_closes(tmp_path: Path) -> None:
    """As in `zippkit plan spec.yaml | head -1`."""
    quoted = " ".join(shlex.quote(word) for word in command("plan", SPEC))
    done = subprocess.run(["bash", "-c", f"{quoted} | head -1"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "start", "text"]
    assert done.stderr == ""


def test_diagram(call: Call, here: Path) -> None:
    for name, first in (("a.svg", "<svg"), ("a.mmd", "flowchart")):
        assert call("diagram", SPEC, "-o", name) == Said(0, f"{name}\n", "")
        assert first in Path(name).read_text()
    Path("folder.svg").mkdir()
    for name in ("a.png", "a", "nowhere/a.svg", "folder.svg"):
        said = call("diagram", SPEC, "-o", name)
        assert said.code == 2
        assert name.split("/")[0] in said.err
        assert len(said.err.splitlines()) == 1


def test_the_derived_recipe_is_a_sound_one(call: Call, here: Path) -> None:
    said = call("recipe", SPEC)
    assert said.code == 0
    Path("recipe.yaml").write_text(said.out)
    recipe = load_recipe("recipe.yaml")
    assert recipe.train.tasks == ["speech -> text", "text -> speech"]
    assert recipe.train.learning_rates["links.speech_to_text"] == 5e-4
    frozen = yaml.safe_load(call("recipe", SPEC, "towers.speech.freeze=true").out)
    assert frozen["train"]["learning_rates"]["links.speech_to_text"] == 1e-3


def test_kinds(call: Call) -> None:
    for name, kind in (("towers", "decoder"), ("links", "gated_cross_attention")):
        assert [kind, "zippkit"] in [line.split()[:2] for line in call(name).out.splitlines()]
        found = json.loads(call(name, "--json").out)
        assert (kind, "zippkit") in [(entry["kind"], entry["package"]) for entry in found]


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The model and those that it holds."""
    yield model
    for nested in Strict.__subclasses__():
        for field in model.model_fields.values():
            if nested.__name__ in str(field.annotation):
                yield from models(nested)


@pytest.mark.parametrize(("what", "model"), [("spec", CompositionSpec), ("recipe", Recipe)])
def test_schema(call: Call, what: str, model: type[BaseModel]) -> None:
    said = call("schema", what)
    schema = json.loads(said.out)
    assert said.code == 0
    whole = schema["else"]  # Without a `base`.
    sections = {whole["title"]: whole, **schema["$defs"]}
    expected = {nested.__name__ for nested in models(model)}
    assert {"TowerSpec", "LinkSpec", "Projection"} <= expected
    assert expected <= sections.keys()
    for nested in models(model):
        properties = sections[nested.__name__]["properties"]
        for name, field in nested.model_fields.items():
            assert field.description
            assert properties[field.alias or name]["description"] == field.description
        assert sections[nested.__name__]["additionalProperties"] is False
    assert call("schema", "weights").code == 2


def digits(root: Path) -> Path:
    """Recordings named as in the Free Spoken Digit Dataset: a pitch for each digit, twelve of each."""
    root.mkdir()
    numbers = np.random.default_rng(0)
    for digit in range(3):
        for index in range(12):
            times = np.arange(2400) / 8000
            wave = 0.4 * np.sin(2 * np.pi * (300 + 400 * digit + 10 * index) * times) + numbers.normal(0, 0.01, 2400)
            write_audio(root / f"{digit}_jo_{index}.wav", wave.astype(np.float32), 8000)
    return root


UNITS = ["units.sample_rate=8000", "units.n_mels=20", "units.n_fft=256", "units.n_units=16"]


def test_prepare(call: Call, here: Path) -> None:
    root = digits(here / "recordings")
    said = call("prepare", "fsdd", root, "-o", "data", "--text", "words", *UNITS)
    assert said.code == 0, said.err
    assert said.out == "data: 6 train, 15 dev, 15 test\n"
    dataset = Dataset.open("data")
    assert dataset.text_tokenizer("text").encode("zero two")
    assert dataset.manifest.modalities["speech"].vocab_size == 18
    again = call("prepare", "fsdd", root, "-o", "data", *UNITS)
    assert again == Said(2, "", "data exists already; overwrite=True (--overwrite) replaces it\n")
    joined = ["--overwrite", "max_digits=3", "counts={train: 5, test: 2}"]
    said = call("prepare", "fsdd", root, "-o", "data", "--units", "data/tokenizers/speech.safetensors", *joined)
    assert said.out == "data: 5 train, 2 test\n"
    Path("recordings/0_jo_11.wav").write_bytes(b"RIFF")
    bad = call("prepare", "fsdd", root, "-o", "other", *UNITS)
    assert bad.code == 2
    assert "0_jo_11: 0_jo_11.wav: not a readable sound file" in bad.err
    assert not Path("other").exists()
    said = call("prepare", "fsdd", root, "-o", "other", "--skip-bad", *UNITS)
    assert said.out == "other: 5 train, 15 dev, 15 test; 1 bad recordings left out, see other/manifest.json\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fsd", "."], "no reader of kind 'fsd' is registered; did you mean 'fsdd'?"),
        (["fsdd", "nowhere"], "nowhere: no such folder"),
        (["fsdd", "."], "no records of the kind fsdd; looked for recordings/<digit>_<speaker>_<index>.wav"),
        (["fsdd", ".", "max_digit=3"], "reader fsdd: max_digit: unknown key 'max_digit'; did you mean 'max_digits'?"),
        (["fsdd", ".", "max_digits=three"], "max_digits: expected a valid integer, got 'three'"),
        (["fsdd", ".", "counts=[1]"], "counts: expected a mapping, got [1]"),
        (["fsdd", ".", "max_digits"], "option 'max_digits': expected key=value"),
        (["fsdd", ".", "max_digits=["], "the value is not valid YAML"),
        (["fsdd", ".", "max_digits=2001-13-45"], "the value is not valid YAML"),
        (["fsdd", ".", "units.n_unit=3"], "units.n_unit: unknown key 'n_unit'; did you mean 'n_units'?"),
        (["fsdd", ".", "--units", "nowhere.safetensors", "units.n_units=3"], "--units brings its own settings"),
        (["fsdd", ".", "--seed", "-1"], "greater than or equal to 0"),
    ],
)
def test_prepare_tells_what_it_cannot_do(call: Call, here: Path, arguments: list[str], message: str) -> None:
    said = call("prepare", *arguments, "-o", "data")
    assert said.code == 2
    assert message in " ".join(said.err.replace("│", " ").split())
    assert not Path("data").exists()


SMALL = (
    [
        f"spec.towers.{tower}.config={{vocab_size: {size}, dim: 16, n_layers: 1, n_heads: 2}}"
        for tower, size in (("text", 13), ("speech", 1026))
    ]
    + [f"spec.links[{i}].config.n_heads=2" for i in (0, 1)]
    + ["train.steps=2", "pretrain.text.steps=2", "pretrain.speech.steps=1"]
)


def test_the_demo_from_training_to_its_report(call: Call, here: Path) -> None:
    """The embedded data and recipe, with towers and steps that are as small as they get."""
    said = call("train", RECIPE, "--out", "run", *SMALL)
    assert (said.code, said.out) == (0, "run\n"), said.err
    assert "train: 2/2" in said.err
    said = call("eval", "run", "--examples", "2", "--split", "dev")
    assert said.code == 0, said.err
    for words in ("speech -> text", "reference", "Word error rate (dev)", "0 exactly", "pre-train speech"):
        assert words in said.out
    said = call("generate", "run", "--audio", SOUND)
    assert said.code == 0
    assert said.out.startswith("text: ")
    said = call("report", "run")
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == "run/report.html"
    assert Path("run/report.html").stat().st_size > 1000
    assert call("train", RECIPE, "--out", "run", *SMALL).code == 0


def test_the_demo_s_recipe_as_it_is_takes_a_step(call: Call, here: Path) -> None:
    few = [
        f"{phase}.{key}=1" for phase in ("train", "pretrain.text", "pretrain.speech") for key in ("steps", "batch_size")
    ]
    assert call("train", RECIPE, *few).out == "runs/demo\n"
    assert RunFolder(Path("runs/demo")).model.exists()


def test_generate_sound(call: Call, here: Path) -> None:
    said = call("generate", demo_run(), "--text", "two", "--out", "a.wav", "--max-tokens", "3")
    assert said.code == 0, said.err
    assert said.out.startswith("speech: ")
    assert Path("a.wav").exists()
    said = call("generate", demo_run(), "--text", "two")
    assert said == Said(2, "", "speech is sound; say where to write it with --out FILE.wav\n")
    assert call("generate", demo_run(), "--audio", "nowhere.wav") == Said(2, "", "nowhere.wav: no such file\n")
    assert call("generate", demo_run(), "--audio", SOUND, "--max-tokens", "-1").code == 2
    assert "outputs: no tower is called 'txt'" in call("generate", demo_run(), "--audio", SOUND, "--to", "txt").err
    assert "expected one of --audio, --text and --prompt" in call("generate", demo_run()).err
    assert "expected one of --audio" in call("generate", demo_run(), "--text", "two", "--audio", SOUND).err


def test_generate_from_a_prompt_file_with_beams(call: Call, here: Path) -> None:
    Path("prompt.json").write_text(json.dumps([{"speech": str(SOUND.resolve())}, {"text": "two"}]))
    for choosing in (["beams=3"], ["temperature=0.5", "top_k=3"]):
        said = call("generate", demo_run(), *choosing, "--prompt", "prompt.json", "--to", "text", "--max-tokens", "4")
        assert said.code == 0, said.err
        assert said.out.startswith("text: ")
    said = call("generate", demo_run(), "--text", "two", "beems=3", "temperature=-1")
    assert said.code == 2 and "unknown key 'beems'; did you mean 'beams'?" in said.err
    assert "temperature: expected greater than or equal to 0, got -1" in said.err


def test_verify(call: Call, here: Path) -> None:
    Path("spec.yaml").write_text(yaml.safe_dump(spec()))
    said = call("verify", "spec.yaml", "--json")
    assert said.code == 0, said.err
    assert {proof["name"] for proof in json.loads(said.out)["certificates"]} >= {"C1", "C2", "C3", "C7"}


def test_a_recipe_stands_for_its_spec(call: Call, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("spec.yaml").write_text(yaml.safe_dump(spec()))
    recipe = {"name": "run", "spec": "spec.yaml", "data": "data", "train": {"steps": 1}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name in ("plan", "recipe"):
        assert call(name, "recipe.yaml") == call(name, "spec.yaml")
    verified: list[str] = []
    monkeypatch.setattr("zippkit.composition.compile", lambda spec: verified.append(spec.name) or spec)
    monkeypatch.setattr("zippkit.evaluation.certificates.verify", lambda spec, **_: Proven())
    assert call("verify", "recipe.yaml", "spec.name=other").code == 0
    assert verified == ["other"]
    assert "expected a recipe, which `zippkit recipe spec.yaml` derives from it" in call("train", "spec.yaml").err


class Proven:
    passed = True


NOT_A_FILE = ["missing.yaml", "folder", "binary.yaml", "empty.yaml", "list.yaml", "words.yaml"]
ON_FILES: dict[str, list[str | Path]] = {
    "check": [],
    "plan": [],
    "diagram": ["-o", "a.svg"],
    "verify": [],
    "recipe": [],
    "sizes": [],
    "diff": [DEMO / "spec.yaml"],
    "train": ["--out", "run"],
    "experiment": ["--out", "run"],
}
ON_RUNS: dict[str, list[str | Path]] = {
    "eval": [],
    "report": [],
    "generate": ["--audio", SOUND],
    "export": ["--tower", "text", "--out", "run"],
}


def test_every_command_that_takes_a_path_is_tried_below() -> None:
    assert COMMANDS.keys() - ON_FILES.keys() - ON_RUNS.keys() == {
        "demo",
        "recipes",
        "push",
        "pull",
        "init",
        "prepare",
        "towers",
        "links",
        "scorers",
        "readers",
        "trackers",
        "schema",
    }


@pytest.fixture
def odd_files(here: Path) -> Path:
    Path("folder").mkdir()
    Path("binary.yaml").write_bytes(bytes(range(256)))
    Path("empty.yaml").touch()
    Path("list.yaml").write_text("[1, 2]")
    Path("words.yaml").write_text("no recipe: [at all")
    return here


@pytest.mark.parametrize("file", NOT_A_FILE)
@pytest.mark.parametrize("name", [*ON_FILES, *ON_RUNS])
def test_a_path_to_something_else(call: Call, odd_files: Path, name: str, file: str) -> None:
    said = call(name, file, *(ON_FILES | ON_RUNS)[name])
    assert said.code == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, "one clear message"
    assert file in said.err
    assert not Path("run").exists()


def test_a_real_process_says_the_same(odd_files: Path) -> None:
    done = subprocess.run(command("train", "binary.yaml"), capture_output=True, text=True, check=False, cwd=odd_files)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "binary.yaml: not UTF-8 text (byte 128)\n"


def test_a_run_that_is_damaged(call: Call, tmp_path: Path) -> None:
    run = copied(finished_run(), tmp_path / "copy")
    weights = run / "model" / "links.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for name, more in ON_RUNS.items():
        said = call(name, run, *more)
        assert (said.code, said.out) == (2, "")
        assert "differs from its hash in manifest.json; cut short or changed" in said.err


def test_a_checkpoint_that_is_damaged(call: Call, tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, {"steps": 4}), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    (run.model / "manifest.json").unlink()
    run.model.rename(tmp_path / "elsewhere")
    optimizer = run.checkpoints("train")[-1] / "optimizer.safetensors"
    optimizer.write_bytes(b"\x80\x04" + optimizer.read_bytes())
    said = call("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run", "train.steps=4")
    assert (said.code, said.out) == (2, "")
    assert "optimizer.safetensors: differs from its hash" in said.err


@pytest.mark.parametrize("out", ["data", "recipe.yaml", "recipe.yaml/deeper"])
def test_train_into_something_else(call: Call, tmp_path: Path, out: str) -> None:
    recipe = write_recipe(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    said = call("train", recipe, "--out", tmp_path / out)
    assert (said.code, said.out) == (2, "")
    assert str(tmp_path / out.split("/", maxsplit=1)[0]) in said.err
    assert len(said.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_train_on_data_that_do_not_fit(call: Call, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for override, message in (
        ("data=nowhere", "nowhere: no such folder"),
        ("spec.towers.text.config.vocab_size=5", "text has 7 token ids, the tower 5"),
        ("spec.towers.speech.config.max_len=8", "examples have more than the 8 that the tower takes"),
        ("split=trian", "no split 'trian'; did you mean 'train'?"),
        ("train.tasks=[text -> speach]", "no tower is called 'speach'"),
        ("train.steps=0", "train.steps: expected greater than 0, got 0"),
        ("train.steps", "an override is written key.path=value"),
    ):
        said = call("train", recipe, "--out", tmp_path / "run", override)
        assert (said.code, said.out) == (2, "")
        assert message in said.err
        assert not (tmp_path / "run").exists()


def test_eval_of_a_run_on_other_data(call: Call, tmp_path: Path) -> None:
    run = copied(finished_run(), tmp_path / "copy")
    said = call("eval", run, "--data", DEMO / "data")
    assert (said.code, said.out) == (2, "")
    assert "token ids, the tower" in said.err
    said = call("eval", run)
    assert said.code == 0
    assert "0 exactly" in said.out


def test_a_bug_keeps_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a user's mistake is told in one line."""

    def broken(*_: Any) -> Any:
        raise KeyError("oops")

    monkeypatch.setattr("zippkit.loading.load_any", broken)
    monkeypatch.setattr(sys, "argv", ["zippkit", "check", str(SPEC)])
    with pytest.raises(KeyError, match="oops"):
        cli.main()
