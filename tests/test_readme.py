"""What the pages tell readers to do works: commands are run, made small, Python is executed, links lead somewhere."""

import ast
import importlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from experiments import autotune, compressed, demo, rounding, sweep
from experiments.bench import measurements
from experiments.reports import studies_page, writer
from experiments.sweeps import dry_run
from kernels.commands import is_command
from tests import pages
from tests.pages import GUIDES, ROOT

EVERY_PAGE = [path for path in sorted(ROOT.rglob("*.md")) if not {".venv", ".pytest_cache"} & {*path.parts}]
SHOWN = pages.commands()


def options_in(command: pages.Command) -> set[str]:
    """Return the options, axes and the task that a command names."""
    words = command.words
    axes = {axis for word, axis in itertools.pairwise(words) if word in ("--axis", "--tie")}
    return {words[1], *axes, *(word for word in words if word.startswith("--"))}


RUN = [one for one in SHOWN if one.words[0] != "make" and find_spec(one.words[0]) and is_command(one.words[0])]
SWEEPS = [one for one in RUN if one.words[0] == "experiments.sweep" and not {"--help", "-h"} & {*one.words}]
SWEEPS = [one for one in SWEEPS if len(one.words) > 1]
# Of commands with the same options one is trained and drawn, and none that another has all options of.
SWEEPS = list({frozenset(options_in(one)): one for one in SWEEPS}.values())
SWEEPS = [one for one in SWEEPS if not any(options_in(one) < options_in(other) for other in SWEEPS)]
MADE_SMALL = {"experiments.sweep": ["--dry-run"], "kernels.codegen": ["--rule", "sgd", "--dtype", "float32"]}
"""Words that are added to those of a page. Where an option comes twice, the last counts."""
WORK = [
    (dry_run, "estimate_seconds"),
    (demo, "run"),
    (rounding, "compare"),
    (compressed, "compare"),
    (measurements, "timed"),
    *((measurements.COMMANDS, name) for name in measurements.COMMANDS),
    (autotune, "dry_run"),
    (autotune, "machine_of"),
]
"""What commands begin with when they have read and checked their words."""
LACKING = {
    "experiments.autotune": "there is no GPU|no file of measured configurations",
    "experiments.gpu": "there is no GPU",
    "kernels.codegen": "TRITON_INTERPRET",
}
"""What may keep a command from more than having understood its words, where there is no GPU."""
READS = {"experiments.report": 1, "experiments.compare": 2, "experiments.export": 1, "experiments.watch": 1}
"""How many folders with results a command of a page begins with."""
STUDY = ROOT / "results/gallery/demo/mnist"


def of(command: pages.Command) -> str:
    return f"{command.page}: {' '.join(command.words)}"


@pytest.fixture
def reader(tmp_path, mnist_folder, monkeypatch) -> Path:
    """A folder to read in, without a GPU, and with small digits."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for variable in ("HOME", "XDG_CACHE_HOME", "ADAM_SANDBOX_TUNED"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.setenv("MNIST_DIR", str(mnist_folder))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    # Readers have saved the blocks that begin with the name of a file.
    for path in GUIDES:
        for block in pages.python(path):
            if saved := re.match(r"# (\w+\.py)\n", block):
                (folder / saved[1]).write_text(block)
                monkeypatch.delitem(sys.modules, Path(saved[1]).stem, raising=False)
    monkeypatch.syspath_prepend(str(folder))
    return folder


class Understood(Exception):
    """What was asked for would now be done."""


@pytest.fixture
def only_asked(monkeypatch) -> None:
    """Commands read their words, and load what they need; they train, time, compile and draw nothing."""

    def understood(*_, **__):
        raise Understood

    for owner, name in WORK:
        patch = monkeypatch.setitem if isinstance(owner, dict) else monkeypatch.setattr
        patch(owner, name, understood)
    for module in (writer, studies_page):
        monkeypatch.setattr(module, "write", lambda *_: [])


def test_pages_show_commands():
    assert {"README.md", "notebooks/README.md"} <= {one.page for one in SHOWN}
    assert len(RUN) > 5


@pytest.mark.parametrize("command", RUN, ids=of)
def test_a_command_is_understood(command, reader, only_asked, capsys):
    module, *words = command.words
    if not (command.whole or words):
        return  # a name in a sentence
    # The folders that these read come first.
    for folder in words[: READS.get(module, 0)]:
        shutil.copytree(STUDY, folder, dirs_exist_ok=True)
    try:
        code = importlib.import_module(module).main([*words, *MADE_SMALL.get(module, [])])
    except SystemExit as ended:  # argparse: 2, or 0 after --help
        code = ended.code
    except Understood:
        code = 0
    told = capsys.readouterr().err
    if code and re.search(LACKING.get(module, "$^"), told):
        assert told.startswith(f"python -m {module}: ")
        assert told.count("\n") == 1
    else:
        assert code == 0, f"{command.page} shows a command that ends with {code}: {' '.join(command.words)}\n{told}"


def small(words: list[str]) -> list[str]:
    """The words of a sweep that trains two steps, or four from rung to rung, and writes to results/small."""
    one = {"--steps": "2", "--seeds": "1", "--evaluations": "1", "--out": "results/small"}
    one |= {option: "1" for option in ("--warmup",) if option in words}
    one |= {"--steps": "4", "--evaluations": "4"} if "--halving" in words else {}
    one |= {"--engine": "local"} if "--engine" in words else {}
    kept = [word for word in words if word not in ("--dry-run", "--fresh")]
    for option in ("--epochs", "--confirm", "--data-dir", "--ray-address"):
        if option in kept:
            at = kept.index(option)
            del kept[at : at + 2]
    return [*kept, *(word for pair in one.items() for word in pair)]


@pytest.mark.slow
@pytest.mark.parametrize("command", SWEEPS, ids=of)
def test_a_sweep_trains_and_draws(command, reader, capsys):
    assert sweep.main(small([*command.words[1:]])) == 0, capsys.readouterr().err
    assert (reader / "results/small/report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [one for one in RUN if one.words[0] == "kernels.codegen"], ids=of)
def test_the_machine_code_is_compiled_as_shown(command, reader):
    words = [*command.words, *MADE_SMALL["kernels.codegen"]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [one for one in SHOWN if one not in RUN], ids=of)
def test_what_else_is_started_is_there(command):
    program, *words = command.words
    if program == "make":
        targets = [word for word in words if "=" not in word]
        done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{command.page} shows {' '.join(command.words)}: {done.stderr}"
        return
    assert find_spec(program), f"{command.page} shows python -m {program}, and there is no such module"
    for path in (word.partition("::")[0] for word in words if word.startswith("tests/")):
        assert (ROOT / path).exists(), f"{command.page} shows {path}, and there is no such file"


@pytest.mark.parametrize("path", GUIDES, ids=pages.name)
def test_extras_are_those_of_the_package(path):
    extras = metadata("adam-sandbox").get_all("Provides-Extra") or []
    named = {extra for found in re.findall(r"\.\[([\w,-]+)\]", path.read_text()) for extra in found.split(",")}
    assert named <= {*extras}


@pytest.mark.parametrize("path", GUIDES, ids=pages.name)
def test_python_imports_what_there_is(path):
    for block in pages.python(path):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in GUIDES if pages.python(path)], ids=pages.name)
def test_python_runs_from_top_to_bottom(path, reader, monkeypatch):
    """A page's blocks share their names. Sweeps have two steps."""
    asked = sweep.run
    monkeypatch.setattr(
        sweep, "run", lambda config: asked(replace(config, epochs=None, steps=2, evaluations=1, progress=False))
    )
    names = {"__name__": "shown"}
    # Results of a first sweep, as seen from the repository and from its notebooks.
    for folder in ("results/first", "../results/first"):
        shutil.copytree(STUDY, folder)
    for number, block in enumerate(pages.python(path), 1):
        # A file, in which Triton looks for the source of rules.
        file = reader / f"block_{number}.py"
        file.write_text(block)
        try:
            exec(compile(block, str(file), "exec"), names)
        except Exception as error:
            raise AssertionError(f"block {number} of {pages.name(path)} does not run:\n{block}") from error


@pytest.mark.parametrize("path", EVERY_PAGE, ids=pages.name)
def test_links_lead_to_files_and_headings_that_exist(path):
    for link in pages.links(path):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{pages.name(path)} links to {link}, and there is no such file"
        if anchor and target.suffix == ".md":
            assert anchor in pages.anchors(target), f"{pages.name(path)} links to {link}, and there is no such heading"


@pytest.mark.parametrize("path", GUIDES, ids=pages.name)
def test_files_that_a_page_names_exist(path):
    for file in pages.files(path):
        there = (ROOT / file).exists() or (path.parent / file).exists()
        assert there, f"{pages.name(path)} names {file}, and there is no such file"


@pytest.mark.parametrize("path", GUIDES, ids=pages.name)
def test_measured_numbers_are_in_a_file_of_the_gallery(path):
    evidence = {line for page in (ROOT / "results/gallery").rglob("*.md") for line in page.read_text().splitlines()}
    for row in pages.measured_rows(path):
        assert row in evidence, f"{pages.name(path)} has numbers that no page of results/gallery has: {row}"


def test_the_readme_has_measured_numbers():
    assert len(pages.measured_rows(ROOT / "README.md")) > 3
