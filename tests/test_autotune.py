"""The command that tunes: the atlas and the pages that it writes, its other words, and what it refuses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments import autotune
from experiments.tune import recorded
from kernels import registry
from kernels.config import Config, candidates, default
from kernels.occupancy import LIMITS
from tests.kernels.compiler import CLEAN
from tests.kernels.devices import H100
from tests.tune.fake_gpu import CASE, FakeGPU


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm_90"], "--target goes with --dry-run: what is measured is the device that is here"),
        (["--dry-run", "--target", "sm90"], f"--target accepts {', '.join(LIMITS)}, not 'sm90'"),
        (["--dry-run", "--target", "sm_90", "--rule", "adamax"], "--rule accepts adam, amsgrad"),
        (["--dry-run", "--target", "sm_90", "--dtype", "float64"], "--dtype accepts float32, bfloat16"),
    ],
)
def test_bad_input_is_named_in_a_sentence(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert autotune.main([*arguments, "--out", str(tmp_path / "new")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m experiments.autotune: {message}")
    assert not (tmp_path / "new").exists()


def test_a_file_as_folder_and_an_interpreter_as_compiler_are_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert autotune.main(["--dry-run", "--target", "sm_90", "--out", str(tmp_path / "file")]) == 2
    assert "--out accepts a folder" in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert autotune.main(["--dry-run", "--target", "sm_90", "--out", str(tmp_path)]) == 2
    assert "TRITON_INTERPRET in the environment replaces the compiler" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_a_target_has_to_be_named(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert autotune.main(["--dry-run", "--out", str(tmp_path)]) == 2
    assert "--target accepts sm_80, " in capsys.readouterr().err


def check_files(folder, target: str, n: int) -> pd.DataFrame:
    """That table, text and figure lie in the folder, and nothing else; the table."""
    assert sorted(path.name for path in folder.iterdir()) == [
        f"atlas_{target}_adam_float32.{end}" for end in ("csv", "md", "png")
    ]
    table = pd.read_csv(folder / f"atlas_{target}_adam_float32.csv")
    assert len(table) == n
    text = (folder / f"atlas_{target}_adam_float32.md").read_text()
    assert f"{n} candidates: " in text
    assert "triton" in text
    assert "commit" in text
    assert (folder / f"atlas_{target}_adam_float32.png").read_bytes().startswith(b"\x89PNG")
    return table


FEW = """
import sys
from kernels.config import Config, candidates, default
if __name__ == "__main__":
    from experiments import autotune
    autotune.candidates = lambda warp_size: CANDIDATES
    sys.exit(autotune.main(sys.argv[1:]))
"""
THREE = FEW.replace("CANDIDATES", "[Config(1024, 16), Config(1024, 8), Config(8192, 16, 4)]")
MANY = FEW.replace("CANDIDATES", "list(dict.fromkeys([default(warp_size), *candidates(warp_size)[::4]]))")


@pytest.mark.slow
def test_the_command_writes_table_text_and_figure(tmp_path):
    arguments = ["--dry-run", "--target", "sm_90", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", THREE, *arguments], capture_output=True, text=True, env=CLEAN)
    assert done.returncode == 0, done.stderr
    table = check_files(tmp_path, "sm_90", 3)
    assert list(table["verdict"]) == ["narrow access", "kept", "spills"]
    assert list(table["registers"][:2] <= 64) == [True, True]
    assert "3/3" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("target", "warp_size"), [("sm_90", 32), ("gfx942", 64)])
def test_the_atlas_of_candidates_keeps_the_default(target, warp_size, tmp_path):
    command = [sys.executable, "-c", MANY, "--dry-run", "--target", target, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=CLEAN)
    assert done.returncode == 0, done.stderr
    table = check_files(tmp_path, target, len({default(warp_size), *candidates(warp_size)[::4]}))
    launched = table[table["candidate"] == default(warp_size).label]
    assert list(launched["verdict"]) == ["kept"]
    assert {"kept", "narrow access", "spills"} <= set(table["verdict"])
    assert (table.loc[table["verdict"] == "kept", "elements per thread"] >= 4).all()


TUNES = """
import sys, time
import torch
from experiments import autotune
from kernels.config import Config
from tests.kernels.devices import H100
from tests.tune.fake_gpu import FakeGPU
gpu = FakeGPU(Config(512, 4))
machine, measure = gpu.machine(), gpu.measure

def hang(case, config):
    if len(gpu.raced) > 2:
        print("hangs", flush=True)
        time.sleep(100)
    return measure(case, config)

gpu.measure, autotune.machine_of = hang, lambda device: machine
autotune.gpu, autotune.device_facts = lambda: torch.device("cpu"), lambda device: H100
autotune.preflight.check_gpu = lambda: None
sys.exit(autotune.main(["tune", "--budget", "100", "--out", sys.argv[1], "--into", sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_tuning_that_is_interrupted_ends_with_page_tables_and_figure(tmp_path):
    command = [sys.executable, "-c", TUNES, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TRITON_INTERPRET": "0"}
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "hangs\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        # It draws now, and has to go on.
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    names = {"search.csv", "search.md", "search.png", f"{H100.slug}.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    text = (tmp_path / "search.md").read_text()
    assert text.count("| 512x4 |") == 2
    assert "- Interrupted while adam/" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["tune"],
            "there is no GPU here to measure on; --device cpu tunes the CPU, and --dry-run --target ARCH needs no GPU",
        ),
        (["verify"], "there is no GPU here to measure on"),
        (["tune", "--target", "sm_90"], "--target goes with --dry-run"),
        (["--budget", "-3"], "--budget accepts seconds above 0, not -3"),
        (["--budget", "nan"], "--budget accepts seconds above 0, not nan"),
        (["--sizes", "50"], "--sizes accepts whole numbers from 10 to 31, not 50"),
        (["--rows", "wide"], "--rows accepts short, medium, long, not 'wide'"),
        (["--rule", "adamax"], "--rule accepts adam, "),
        (["--dtype", "int8"], "--dtype accepts float32, "),
        (["show", "no-such-gpu"], "there is no file of measured configurations that can be read: no-such-gpu in "),
        (["diff", "a.json", "b.json"], "there is no file of measured configurations that can be read: a.json"),
        (["export", "--to", "/dev/null/x"], "--to accepts a folder that can be written to"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_bad_options_end_with_one_sentence(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert autotune.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_show_diff_and_export_read_and_write_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "PACKAGED", tmp_path / "packaged")
    for folder, best in (("mine", Config(512, 4)), ("theirs", Config(256, 2))):
        FakeGPU(best).tune([CASE, CASE._replace(bucket=20)], tmp_path / folder, budget=10.0)
    assert autotune.main(["show"]) == 0
    shown = capsys.readouterr().out
    assert f"# {H100.name} (sm_90)" in shown
    assert f"| {CASE.work.key} | 512x4 |" in shown
    theirs = tmp_path / "theirs" / f"{H100.slug}.json"
    assert autotune.main(["diff", H100.slug, str(theirs)]) == 0
    assert f"| {CASE.work.key} | 512x4 | 256x2 |" in capsys.readouterr().out
    assert autotune.main(["diff", str(theirs), str(theirs)]) == 0
    assert "The same configurations in all 2 entries." in capsys.readouterr().out
    assert autotune.main(["export", "--to", str(tmp_path / "packaged")]) == 0
    ((_, (_, _, exported)),) = recorded.files_of(str(tmp_path / "packaged" / f"{H100.slug}.json"))
    assert exported[CASE.work.key]["config"] == Config(512, 4)
