"""Does the identity of a run name all that its result depends on, and nothing else?"""

import ast

import pytest

from experiments.sweeps import plan, run_keys
from experiments.sweeps.config import SweepConfig


def test_the_identity_of_a_run_is_what_its_result_depends_on(monkeypatch):
    def keys(**options) -> list[str]:
        asked = {"task": "regression", "steps": 5, "batch_size": 64, "evaluations": 2, "device": "cpu"}
        return run_keys.keys(plan.make_plan(SweepConfig(**{**asked, **options})))

    (key,) = keys()
    assert keys() == [key]
    assert key in keys(lr=[1e-3, 1e-2], beta1=[0.0, 0.9], seeds=3, optimizer=["sgd", "adam"])
    others = [{"steps": 6}, {"batch_size": 32}, {"schedule": "cosine"}, {"dropout": 0.1}, {"hidden": 9}]
    others += [{"diagnostics": True}, {"eps": 1e-7}, {"optimizer": "adamw"}, {"evaluations": 3}, {"optimizer": "lion"}]
    others += [{"model": "linear"}, {"model": "linear", "condition_number": 10.0}]
    found = [keys(**other)[0] for other in others]
    assert len({key, *found}) == 1 + len(others)
    monkeypatch.setattr(run_keys, "code_version", lambda: "edited")
    assert keys() != [key]


def test_the_code_that_training_imports_is_the_code_that_identities_name():
    code = {path for pattern in run_keys.CODE for path in run_keys.ROOT.glob(pattern)}
    assert {*(run_keys.ROOT / "kernels/rules").rglob("*.py")} <= code
    # These modules read options and word errors; their results are in the plan.
    wordings = {run_keys.ROOT / f"experiments/common/{name}.py" for name in ("errors", "values", "run_info")}
    seen, left = set(), [run_keys.ROOT / "experiments/training/population.py"]
    while left:
        seen.add(path := left.pop())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("experiments"):
                module = run_keys.ROOT / node.module.replace(".", "/")
                paths = [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
                left += {path for path in paths if path.exists()} - seen
    assert len(seen) > 10
    assert seen <= code | wordings


SOURCE = """
def step(p, lr):
    "Take a step."
    if lr < 0:
        raise ValueError(f"lr is {lr}")  # no way back
    print("a step")
    return p - lr
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Take a step.", "Step.", True),
        ("lr is {lr}", "--lr accepts numbers from 0, not {lr}", True),
        ("  # no way back", "", True),
        ('    print("a step")\n', "", True),
        ("p - lr", "(p\n        - lr)", True),
        ("p - lr", "p + lr", False),
        ("ValueError", "KeyError", False),
        ("lr < 0", "lr < 1", False),
    ],
)
def test_an_identity_does_not_depend_on_words(old, new, same):
    assert old in SOURCE
    before, after = (run_keys.meaning(ast.parse(text), prose=True) for text in (SOURCE, SOURCE.replace(old, new)))
    assert (before == after) is same


def test_a_users_optimizer_is_known_by_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_sgd.py").write_text("import torch\nclass Own(torch.optim.SGD): pass\n")
    first = run_keys.own_source("own_sgd:Own")
    assert first == run_keys.own_source("own_sgd:Own") == (tmp_path / "own_sgd.py").read_text()


def test_the_version_of_the_code_is_kept_for_each_state_of_its_files(tmp_path, monkeypatch):
    source = tmp_path / "code" / "kernels" / "rule.py"
    source.parent.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(run_keys, "ROOT", tmp_path / "code")
    real, parsed = run_keys.version_of, []
    monkeypatch.setattr(run_keys, "version_of", lambda contents: parsed.append(contents) or real(contents))
    version = run_keys.code_version.__wrapped__

    source.write_text(SOURCE)
    first = version()
    assert version() == first == real({"kernels/rule.py": SOURCE.encode()})
    assert len(parsed) == 1
    source.write_text(SOURCE.replace("p - lr", "p + lr"))
    assert version() != first
    assert len(parsed) == 2
    source.write_text(SOURCE)
    kept = [*(tmp_path / "cache" / "adam-sandbox" / "code").iterdir()]
    assert len(kept) == 2
    for path in kept:
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert version() == first
    assert len(parsed) == 3
    for path in kept:
        path.write_text("0" * 40 + "\n")
    assert version() == first
    # A cache that cannot be written to is none.
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert version() == first
