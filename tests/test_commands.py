"""What the shell and the console can do to a command, and what `python -m` does with modules that are none."""

import io
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import experiments
import kernels
import optim
from experiments.common import files
from experiments.common.errors import OptionError
from kernels import commands

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "results/gallery/demo/regression"
COMMANDS = {
    "experiments.autotune": ["tune", "show", "diff", "verify", "export"],
    "experiments.claims": [],
    "experiments.compare": [],
    "experiments.compressed": [],
    "experiments.demo": [],
    "experiments.export": [],
    "experiments.gpu": [],
    "experiments.report": [],
    "experiments.rounding": [],
    "experiments.sweep": [],
    "experiments.throughput": ["sweep", "command", "host", "step", "models"],
    "experiments.watch": [],
    "kernels.codegen": [],
}
OTHERS = [
    name
    for package in (experiments, kernels, optim)
    for _, name, _ in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    if name not in COMMANDS
]


def run(*words, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, **options)


def test_these_are_the_commands():
    assert [name for package in ("experiments", "kernels", "optim") for name in commands.commands(package)] == [
        *COMMANDS
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_and_subcommand(name, capsys, monkeypatch):
    main = import_module(name).main
    for columns in ("60", "80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        for words in ([], *([sub] for sub in COMMANDS[name])):
            with pytest.raises(SystemExit) as ended:
                main([*words, "--help"])
            assert ended.value.code == 0
            assert "%(" not in (text := capsys.readouterr().out)
            assert text.startswith("usage: python -m")


def test_a_module_that_is_no_command_says_so(monkeypatch, capsys):
    ways = (["-m", "{}"], ["-m{}"], ["-W", "error", "-Im{}"])
    for i, name in enumerate([*OTHERS, "experiments", "kernels", "optim"]):
        package = name.partition(".")[0]
        for before in [[word.format(name) for word in ways[i % len(ways)]]]:
            monkeypatch.setattr(sys, "orig_argv", ["python", *before, "folder", "-m"])
            monkeypatch.setattr(sys, "argv", ["-m", "folder", "-m"])
            with pytest.raises(SystemExit) as ended:
                commands.refuse_others(package)
            assert ended.value.code == 2
            text = capsys.readouterr().err
            assert text.startswith(f"python -m {name}: this is no command but to be imported; ")
            assert text.count("\n") == 1
    for name in COMMANDS:
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", name, "folder", "-m"])
        commands.refuse_others(name.partition(".")[0])


def test_a_module_that_is_no_command_says_so_through_the_shell():
    for name in ("experiments.explorer", "kernels.rules"):
        done = run("-m", name, "no/such/folder")
        assert done.returncode == 2
        assert done.stderr.startswith(f"python -m {name}: this is no command")
        assert done.stderr.count("\n") == 1


def write(argv: list[str] | None = None) -> int:
    print("✕ ± × →" * 10_000)
    print("β", file=sys.stderr)
    return 0


def test_a_console_that_lacks_characters_gets_question_marks(monkeypatch):
    for encoding in ("ascii", "latin-1", "cp1252"):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert commands.command(write)() == 0
        assert out.errors == err.errors == "strict"
        assert out.buffer.getvalue().startswith(b"?")  # pyright: ignore[reportAttributeAccessIssue]


def test_closed_streams_are_no_errors(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert commands.command(write)() == 0
    assert sys.stdout is sys.stderr is None


def test_a_reader_that_goes_away_ends_a_command_without_a_traceback():
    code = "from kernels.commands import command\n@command\ndef main(argv):\n  print('x\\n' * 10**6)\nexit(main())"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1) as process:
        assert process.stdout
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == b""
    assert process.returncode == commands.BROKEN_PIPE


def test_an_error_of_the_disk_is_a_sentence(capsys):
    def main(argv=None) -> int:
        return len(Path("/nowhere/at/all").read_bytes())

    assert commands.command(main)() == 2
    assert capsys.readouterr().err.endswith(": /nowhere/at/all cannot be used: No such file or directory\n")


@pytest.fixture
def bad_folders(tmp_path) -> list[str]:
    """Paths that can be no folder for results."""
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "scratch")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "fifo")
    names = ["file", "file/x", "dangling", "dangling/x/y", "a", "a/x", "fifo", "x" * 256, f"x/{'y' * 256}", "z/" * 2500]
    return [*(str(tmp_path / name) for name in names), "/dev/null", "/dev/null/x", "", "a\0b"]


def test_folders_that_cannot_be_are_refused_by_every_command_that_writes(bad_folders, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    writing = {
        "experiments.autotune": [["--dry-run", "--target", "sm_90", "--out"], ["export", "--to"]],
        "experiments.compare": [["first", "second", "--out"]],
        "experiments.compressed": [["--out"]],
        "experiments.demo": [["--device", "cpu", "--data-dir", str(tmp_path / "file"), "--out"]],
        "experiments.export": [["--to", "csv"], [str(STUDY), "--to", "csv", "--out"]],
        "experiments.report": [[]],
        "experiments.rounding": [["--out"]],
        "experiments.sweep": [["regression", "--steps", "5", "--out"], ["regression", "--dry-run", "--out"]],
        "experiments.throughput": [[what, "--out"] for what in ("host", "sweep", "command", "step", "models")],
    }
    for name, beginnings in writing.items():
        main = import_module(name).main
        for words in beginnings:
            # All of them where they are cheapest.
            for folder in bad_folders if name == "experiments.sweep" else bad_folders[2:9:3]:
                assert main([*words, folder]) == 2, (name, words, folder)
                text = capsys.readouterr().err
                assert text.startswith(f"python -m {name}: "), (name, words, folder)
                assert text.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_folders_that_can_be_are_accepted(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("real", "link", "link/new", "new/deeper", "~/new", "über & 100% #1"):
        assert files.check_folder(name) == Path(name).expanduser()
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(OptionError, match=r"^--out accepts a folder, and .*/gone is a link to nowhere, which is not"):
        files.check_folder(tmp_path / "gone" / "deeper")
