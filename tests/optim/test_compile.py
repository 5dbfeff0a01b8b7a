"""Under `torch.compile`: compiled models, and compiled functions that take the step themselves."""

import shutil
import subprocess
import sys

import pytest
import torch

import optim

# Torch's own remarks: on what it skips, and on modules that it has deprecated itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
INDUCTOR = pytest.param(
    "inductor",
    marks=[pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")],
)


def train(wrap_model, wrap_step, name="AdamW", closure=False, steps=4) -> list[torch.Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1)).double()
    optimizer = getattr(optim, name)(model.parameters(), lr=0.05)
    compiled = wrap_model(model)

    def evaluate(x):
        optimizer.zero_grad()
        loss = (compiled(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        return loss

    def step(x):
        if closure:
            return optimizer.step(lambda: evaluate(x))
        loss = evaluate(x)
        optimizer.step()
        return loss

    step, loss = wrap_step(step), torch.zeros(())
    for seed in range(steps):
        loss = step(torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
        optimizer.param_groups[0]["lr"] *= 0.9
    assert {optimizer.state[p]["step"].item() for p in model.parameters()} == {float(steps)}
    return [loss.detach(), *(p.detach() for p in model.parameters())]


def eagerly(function):
    return function


def compiled_by(backend: str):
    return lambda function: torch.compile(function, backend=backend)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("what", ["model", "step", "step with a closure"])
def test_compiled_training_ends_where_eager_training_ends(what, backend):
    wrap = compiled_by(backend)
    closure = what == "step with a closure"
    got = train(wrap, eagerly) if what == "model" else train(eagerly, wrap, closure=closure)
    for a, b in zip(got, train(eagerly, eagerly), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_compiler_sees_the_model_and_nothing_of_the_step():
    operations = []

    def backend(graph, inputs):
        operations.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph

    train(eagerly, lambda step: torch.compile(step, backend=backend), name="Lion")
    assert any("linear" in operation for operation in operations)
    assert len(operations) < 10, operations


def test_a_step_on_a_cpu_imports_neither_the_compiler_nor_the_registry():
    code = """
import sys, torch, optim
p = torch.ones(3, requires_grad=True)
p.grad = torch.ones(3)
optimizer = optim.Adam([p], backend="eager")
optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
optimizer.step()
optimizer.zero_grad()
assert p.grad is None and len(optimizer.param_groups) == 2
print("torch._dynamo" in sys.modules, "kernels.registry" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr
