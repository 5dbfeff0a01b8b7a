"""Which class was tested with which option, dtype and backend? Runs the tests and writes optim/SUPPORT.md.

python -m tests.support
"""

import re
import sys
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "optim" / "SUPPORT.md"
CLIENT_FILES = [f"clients_{name}" for name in ("lightning", "huggingface", "skorch", "wrappers", "scaler")]
OWN_FILES = ["family", "training_loop", "memory", "half_precision", "custom", "clipping", "compressed"]
FILES = [f"tests/optim/test_{name}.py" for name in OWN_FILES + CLIENT_FILES]
COLUMNS = [
    *[("float32", backend) for backend in ("triton", "cpu", "eager")],
    *[("float64", backend) for backend in ("cpu", "eager")],
]
FEATURES = {
    "bfloat16": r"test_half_precision\[(?:\w+)-{}-bfloat16",
    "float16": r"test_half_precision\[(?:\w+)-{}-float16",
    "complex64": r"test_complex_parameters\w+\[(?:\w+)-{}\]",
    "torch's arguments": r"test_constructors_have_torchs_arguments\[{}\]",
    "torch's errors": r"test_constructor_errors_are_torchs\[{}\]",
    "from torch's state": r"test_state_dict_moves\w+\[{}-.*torch to ours",
    "to torch's state": r"test_state_dict_moves\w+\[{}-.*ours to torch",
    "torch.save": r"test_state_dict_moves\w+\[{}-.*-file\]",
    "schedulers": r"test_every_scheduler\w+\[{}-",
    "max_grad_norm": r"test_(?:every_class_clips|a_step_is_that_of_clipped_gradients)\[(?:\w+-)?{}\b",
    "int8 states": r"test_steps_are_those_of_float64_from_the_same_states\[\w+-\w+-{}\]",
    "GradScaler": r"test_grad_scaler\w+\[(?:\w+)-{}\]",
}
CLIENTS = {
    "Lightning Trainer": ("lightning", r"test_a_trainer_clips|test_a_fused_step_scales"),
    "Lightning Fabric": ("lightning", r"test_fabric"),
    "transformers.Trainer": ("transformers", r"test_trainer_of_transformers"),
    "Accelerator": ("accelerate", r"test_accelerate"),
    "skorch.NeuralNetClassifier": ("skorch", r"test_skorch"),
    "ScheduleFreeWrapper": ("schedulefree", r"test_schedule_free"),
    "SAM, Lookahead, OrthoGrad, LARC": ("torch", r"test_a_wrapper|test_entries"),
    "GradScaler by hand": ("torch", r"test_a_scaled_step|test_a_state_of_a_fused|test_a_copy_of|test_one_scaler"),
}


class Outcomes:
    """A pytest plugin that keeps how each test ended."""

    def __init__(self):
        self.of = {}

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.of[report.nodeid.split("::")[1]] = report.outcome


def cell(outcomes: dict[str, str], pattern: str) -> str:
    """Of the tests whose name matches: how many passed, or which failed."""
    found = {name: outcome for name, outcome in outcomes.items() if re.match(pattern, name) and outcome != "skipped"}
    failed = [name for name, outcome in found.items() if outcome == "failed"]
    return f"FAILED {failed[0]}" if failed else f"{len(found)}" if found else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def package(name: str) -> str:
    """The name and version of a package, as far as it is installed."""
    try:
        return f"{name} {version(name).partition('+')[0]}"
    except PackageNotFoundError:
        return f"{name}, not installed"


def page(outcomes: dict[str, str]) -> str:
    cases = defaultdict(dict)
    for name in outcomes:
        if match := re.fullmatch(r"test_option\[(\w+)-(.+)-(\w+)-(float\d+)\]", name):
            cases[match[1], match[2]][match[4], match[3]] = outcomes[name]
    options = [
        [owner, option, *(ends.get(column, "").replace("passed", "yes") for column in COLUMNS)]
        for (owner, option), ends in sorted(cases.items())
    ]
    half = (re.match(r"test_half_precision\[\w+-(\w+)-", name) for name in outcomes)
    classes = sorted({owner for owner, _ in cases} | {match[1] for match in half if match})
    features = [[owner, *(cell(outcomes, p.format(owner)) for p in FEATURES.values())] for owner in classes]
    clients = [[client, package(name), cell(outcomes, pattern)] for client, (name, pattern) in CLIENTS.items()]
    head = ["class", "option", *(f"{dtype} {backend}" for dtype, backend in COLUMNS)]
    return f"""# What was tested

    python -m tests.support

runs the tests and writes this page; `make test-all` runs the same tests. Without a GPU, triton is Triton's interpreter.
Every option here is one of PyTorch's own test inputs (`torch.testing._internal.common_optimizers`); yes: five steps
move every element as torch's class does in float64; those of Muon in float32 to 2^-8, because it rounds to bfloat16.

{table(head, options)}

## Dtypes, states and the rest

Numbers of tests that passed. Classes that torch.optim lacks are compared with their papers' algorithms
in float64; `tests/optim/test_papers.py` has further tests of them, and of ADOPT, whose first step moves nothing;
the files `tests/optim/test_muon*.py` have those of Muon.

{table(["class", *FEATURES], features)}

## Clients

Programs that drive optimizers. Numbers of tests that passed: with our class a run ends where it ends with torch's in
the same script, with clipped and accumulated gradients and schedules, in float32, bfloat16 and float16 as far as the
client knows them on a CPU. A resumed run ends with the bits of an uninterrupted one, and a run goes on from a
checkpoint of torch's class.

{table(["client", "version", "passed"], clients)}
"""


def main() -> int:
    outcomes = Outcomes()
    code = pytest.main(["-q", *FILES], plugins=[outcomes])
    PAGE.write_text(page(outcomes.of))
    print(f"written: {PAGE}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
