"""What only a GPU can show: alignment, big tensors, devices, and a sweep that runs the Triton kernel."""

import numpy as np
import pandas as pd
import pytest
import torch

import optim
from experiments import sweep
from experiments.sweeps import checkpoints
from experiments.tasks import problems
from experiments.training import cuda_graph, population
from experiments.training.axes import AXES
from tests.conftest import sync_debug_mode

pytestmark = pytest.mark.gpu


def test_large_tensors_move_as_torch_fused_moves_them():
    generator = torch.Generator("cuda").manual_seed(0)
    a = torch.randn(2**24 + 12345, device="cuda", generator=generator, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    start = a.detach().clone()
    ours, theirs = optim.AdamW([a], lr=0.01), torch.optim.AdamW([b], lr=0.01, fused=True)
    for _ in range(3):
        a.grad = torch.randn(a.shape, device="cuda", generator=generator)
        b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(a.detach() - start, b.detach() - start, rtol=1e-4, atol=1e-6)
    assert (a.detach() != start).all()


def test_misaligned_views_do_not_fault_and_leave_their_surroundings():
    buffer = torch.full((5001,), 7.0, device="cuda")
    p = buffer[1:4099].requires_grad_()
    p.grad = torch.ones(4099, device="cuda")[1:]
    optim.Adam([p], lr=0.5).step()
    torch.cuda.synchronize()
    assert (buffer[:1] == 7).all()
    assert (buffer[4099:] == 7).all()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 6.5))


def test_hyperparameters_on_the_device_and_on_the_cpu_give_the_same_bits():
    results = []
    for device in ("cpu", "cuda"):
        p = torch.zeros(3, 2000, device="cuda", requires_grad=True)
        optimizer = optim.Adam([p], lr=torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, device=device))
        for seed in range(3):
            p.grad = torch.randn(p.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
            optimizer.step()
        results.append(p.detach().clone())
    assert torch.equal(*results)


def test_parameters_on_both_devices_share_an_optimizer():
    params = [torch.zeros(10, requires_grad=True), torch.zeros(10, device="cuda", requires_grad=True)]
    optimizer = optim.Adam(params, lr=0.5)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p in params:
        torch.testing.assert_close(p.detach().cpu(), torch.full((10,), -0.5))


def test_a_sweep_on_the_gpu_ends_where_the_cpu_ends():
    options = {"lr": [1e-3, 1e-2], "beta2": [0.99, 0.999], "seeds": 2, "steps": 50, "progress": False}
    gpu, cpu = (sweep.sweep("regression", device=device, **options) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(gpu.runs.eval_loss, cpu.runs.eval_loss, rtol=0.02)
    assert gpu.provenance["device"]["name"] == torch.cuda.get_device_name()


TWO = pd.DataFrame({**AXES, "lr": [1e-3, 1e-2]})
TRAINED = [
    ("regression", {"dropout": 0.2, "accumulate": 2, "schedule": "cosine", "warmup": 5}),
    ("mnist", {"model": "mlp"}),
    ("mnist", {"model": "cnn"}),
    ("mnist", {"model": "gru", "optimizer": "nadam"}),
    ("function", {"model": "noisy-quadratic", "optimizer": "sgd"}),
    ("function", {"model": "counter-example", "optimizer": "amsgrad", "schedule": "rsqrt"}),
]


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node:UserWarning")
@pytest.mark.parametrize(("task", "options"), TRAINED, ids=lambda value: value if isinstance(value, str) else "")
def test_steps_of_a_sweep_are_captured_and_change_no_bit(task, options, mnist_folder, monkeypatch, capsys):
    options = {"lr": [1e-3, 1e-2], "seeds": 2, "steps": 30, "batch_size": 64, "progress": False, **options}
    options |= {"data_dir": mnist_folder} if task == "mnist" else {}
    captured, graphs = cuda_graph.captured, []

    def spy(step, stream):
        graphs.append(captured(step, stream))
        return graphs[-1]

    monkeypatch.setattr(cuda_graph, "captured", spy)
    replayed = sweep.sweep(task, device="cuda", **options)
    assert "without a CUDA graph" not in capsys.readouterr().err
    assert len(graphs) == 1
    assert type(graphs[0].__self__) is torch.cuda.CUDAGraph
    monkeypatch.setattr(cuda_graph, "replayed", lambda step, device: step)
    eager = sweep.sweep(task, device="cuda", **options)
    assert replayed.runs.equals(eager.runs)


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node:UserWarning")
def test_nothing_waits_for_the_gpu_between_evaluations():
    problem = problems.make("regression", dropout=0.1)

    def on_step(step: int) -> None:
        # The first steps are those that compile and capture; after the last one comes an evaluation.
        sync_debug_mode("error" if 10 <= step < 39 else "default")

    options = {"steps": 40, "evaluations": 1, "schedule": "cosine", "device": "cuda"}
    try:
        runs, _ = population.train(problem, TWO, [0, 1], on_step=on_step, **options)
    finally:
        sync_debug_mode("default")
    assert (runs["status"] == "ok").all()


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node:UserWarning")
def test_a_training_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path):
    """Under a schedule: the lr of every lane is a tensor on the device, and has to be one again."""
    problem, options = problems.make("regression"), {"steps": 30, "schedule": "cosine", "device": "cuda"}
    whole, _ = population.train(problem, TWO, [0, 1], **options)
    states = iter([False] * 11 + [True] + [False] * 99)

    def keep(state: dict) -> None:
        checkpoints.save_checkpoint(tmp_path, "chunk", state)

    population.train(problem, TWO, [0, 1], due=lambda _: next(states), keep=keep, **options)
    resume = checkpoints.read_checkpoint(tmp_path, "chunk", "cuda")
    assert resume is not None
    assert resume["step"] == 12
    again, _ = population.train(problem, TWO, [0, 1], resume=resume, **options)
    assert again.equals(whole)


def test_a_step_that_cannot_be_captured_goes_on_without_a_graph(capsys):
    total = torch.zeros((), device="cuda")

    def step() -> None:
        total.add_(1)
        total.item()

    call = cuda_graph.replayed(step, "cuda")
    for _ in range(6):
        call()
    assert total.item() == 6
    assert capsys.readouterr().err.count("without a CUDA graph, more slowly: the step cannot be captured") == 1


def fill(params: list[torch.Tensor], seed: int) -> None:
    generator = torch.Generator("cuda").manual_seed(seed)
    for p in params:
        assert p.grad is not None
        p.grad.copy_(torch.randn(p.shape, device="cuda", generator=generator))


def make_params() -> list[torch.Tensor]:
    params = [torch.ones(shape, device="cuda", requires_grad=True) for shape in ((3, 1000), (17,))]
    for p in params:
        p.grad = torch.zeros_like(p)
    return params


def test_a_replayed_step_reads_the_learning_rate_of_the_moment():
    lr, rates = torch.tensor(0.1, dtype=torch.float64, device="cuda"), (0.1, 0.05, 0.2, 0.0, 1.0)
    captured, eager = make_params(), make_params()
    first, second = optim.AdamW(captured, lr=lr), optim.AdamW(eager, lr=0.1)
    fill(captured, 0)
    first.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first.step()
    for seed, rate in enumerate(rates):
        fill(eager, seed)
        second.param_groups[0]["lr"] = rate
        second.step()
        if seed:
            fill(captured, seed)
            lr.fill_(rate)
            graph.replay()
    for p, q in zip(captured, eager, strict=True):
        assert torch.equal(p, q)
        assert first.state[p]["step"].item() == len(rates)


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node:UserWarning")
def test_a_whole_training_step_is_captured():
    x = torch.randn(64, 8, device="cuda", generator=torch.Generator("cuda").manual_seed(0))

    def step(model, optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()

    models = []
    for replayed in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).cuda()
        optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(model, optimizer)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if replayed:
            with torch.cuda.graph(graph):
                step(model, optimizer)
        for _ in range(5):
            graph.replay() if replayed else step(model, optimizer)
        models.append(model)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")
def test_a_graph_refuses_gradients_that_have_moved():
    params = make_params()
    optimizer = optim.Adam(params)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    params[1].grad = torch.ones_like(params[1])
    with pytest.raises(RuntimeError, match="keep them: zero_grad"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    torch.cuda.synchronize()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_a_scaled_step_with_a_changing_learning_rate_never_waits_for_the_device():
    results = []
    for module in (optim, torch.optim):
        p = torch.ones(5000, device="cuda", requires_grad=True)
        optimizer = module.AdamW([p], lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
        for seed, size in enumerate((1.0, 2.0, float("inf"), 3.0, 1.0)):
            x = size * torch.randn(p.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
            optimizer.zero_grad()
            scaler.scale((p * x).sum()).backward()
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + seed)
            # The first step lays the table out, and compiles.
            sync_debug_mode("error" if seed and module is optim else "default")
            try:
                scaler.step(optimizer)
            finally:
                sync_debug_mode("default")
            scaler.update()
        assert scaler.get_scale() == 2.0**9
        assert optimizer.state[p]["step"].item() == 4
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
