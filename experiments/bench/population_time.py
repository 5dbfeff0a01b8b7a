"""Compare training a population with training its runs one after the other, with the roofline, and with JAX."""

import functools
import math
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch

import optim
from experiments.bench import own_networks, population_peers
from experiments.bench.cases import NOISE
from experiments.bench.timing import INTERVALS, time_in_turn, with_interval
from experiments.common import errors, run_info
from experiments.common.tables import ENDS, brackets
from experiments.tasks import data, mlp, model, problems
from experiments.tasks.any_module import AnyModel, AnyModule
from experiments.tasks.model import Model
from experiments.training import axes, blocks, cuda_graph, population, reference

SIZES = {
    "cpu": (
        *(("mlp", 128, 32), ("mlp", 32, 128), ("cnn", 32, None), ("gru", 32, 32)),
        *(("own mlp", 128, None), ("own cnn", 32, None), ("own transformer", 32, None)),
    ),
    "cuda": (("mlp", 256, 128), ("mlp", 128, 32), ("gru", 128, 32)),
}
"""Model, number of lanes and hidden width of each population; all train on MNIST with batches of 128."""

BATCH = 128
STEPS = {"cpu": 60, "cuda": 1}
"""How many steps a population takes in a round: on the CPU as many as are usual between two evaluations."""
OWN_STEPS = 8
"""The same for the networks of `own_networks`: a step of the transformer takes a second."""
LRS = -5, -3.5
"""Decimal logarithms of the lanes' smallest and largest lr."""
SOLO_STEPS = 16
MATRIX = 2048
COPY_ELEMENTS = 2**25


def steps_of(kind: str, device: str) -> int:
    steps = STEPS[device.partition(":")[0]]
    return min(steps, OWN_STEPS) if kind in own_networks.NETWORKS else steps


def step_work(model: AnyModel, lanes: int) -> tuple[float, float]:
    """Return, for a step of MLPs, the operations of its matrix products and the bytes that its update has to move."""
    layers = [a * b for a, b in zip(model.widths, model.widths[1:], strict=False)]
    # Forward, backward to weights, and backward to inputs except the first, whose gradient is not needed.
    flops = 2 * BATCH * lanes * (3 * sum(layers) - layers[0])
    # float32 p, grad and two states are read; p and the states are written.
    return flops, 28 * lanes * model.n_params


def rounds_of(x: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
    """Yield the indices of the batches of one round after the other, int64 `[steps, BATCH]`, as a sweep draws them."""
    drawn = population.batch_indices(len(x), BATCH, seed=0)
    while True:
        yield torch.stack([next(drawn) for _ in range(steps)]).to(x.device)


def lrs(lanes: int) -> torch.Tensor:
    """Return the lr of each lane, float32 `[lanes]`."""
    # No lane may learn single examples by heart in all these rounds: subnormal gradients are slow, and JAX alone
    # takes them for zeros.
    return torch.logspace(*LRS, lanes)


def population_of(
    problem: problems.Problem, lanes: int, x: torch.Tensor, y: torch.Tensor
) -> tuple[list[torch.Tensor], optim.Adam, Callable[[torch.Tensor], None]]:
    """Return a population's parameters, its Adam, and a function that takes its steps.

    Args:
        x, y: the training set, on the device to train on.
    Returns: that function takes batches as indices, int64 `[steps, BATCH]`, and changes the parameters in place.
    """
    stacked = (problem.model, [0], lanes)
    params, others = (stack(*stacked, device=str(x.device)) for stack in (model.stack, model.stack_others))
    betas = torch.full((lanes,), 0.9), torch.full((lanes,), 0.999)
    ours = optim.Adam(params, lr=lrs(lanes), betas=betas)

    index = torch.empty(1, BATCH, dtype=torch.int64, device=x.device)
    take = cuda_graph.replayed(
        lambda: population.step_(params, ours, x[index], y[index], model=problem.model, others=others), x.device
    )

    def population_steps(batches: torch.Tensor) -> None:
        for batch in batches:
            index.copy_(batch)
            take()

    return params, ours, population_steps


def chunk_sizes(model: AnyModel, lanes: int, device: str) -> list[int]:
    """Return the numbers of lanes that are trained together: all, or for a user's module as many as a sweep would."""
    most = blocks.most_lanes(model, BATCH) if isinstance(model, AnyModule) and device == "cpu" else lanes
    n_chunks = math.ceil(lanes / max(1, most))
    return [lanes // n_chunks + (i < lanes % n_chunks) for i in range(n_chunks)]


def population_contenders(
    problem: problems.Problem, lanes: int, device: str, steps: int
) -> dict[str, Callable[[], object]]:
    """Return all that is timed for a size: our steps, torch's runs one by one, both updates, a product, a copy."""
    x, y, _, _ = population.tensors(problem, device)
    chunks = [population_of(problem, n, x, y) for n in chunk_sizes(problem.model, lanes, device)]
    params = [p for of_chunk, _, _ in chunks for p in of_chunk]

    def population_steps(batches: torch.Tensor) -> None:
        for _, _, take in chunks:
            take(batches)

    def update() -> None:
        for _, ours, _ in chunks:
            ours.step()

    module, alone = reference.make(problem, axes.AXES, device=device)

    def solo_steps(batches: torch.Tensor) -> None:
        for step in range(SOLO_STEPS):
            own = batches[step % len(batches)]
            reference.step_(problem.model, module, alone, x[own], y[own])

    n = sum(p.numel() for p in params)
    p, grad, exp_avg, exp_avg_sq = ([torch.rand(n, device=device)] for _ in range(4))
    step_count = [torch.ones((), device=device)]
    a, b = torch.randn(2, MATRIX, MATRIX, device=device)
    source = torch.rand(COPY_ELEMENTS, device=device)
    target = torch.empty_like(source)

    def fused_update() -> None:
        update = torch._fused_adam_  # pyright: ignore[reportPrivateImportUsage]
        tensors = p, grad, exp_avg, exp_avg_sq, [], step_count
        update(*tensors, lr=1e-4, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False)

    trained = {"population": population_steps, "solo": solo_steps}
    if is_mlp(problem) and device == "cpu":
        trained |= {name: peer(problem, params, lrs(lanes)) for name, peer in peers().items()}

    def next_round(take: Callable[[torch.Tensor], object]) -> Callable[[], object]:
        rounds = rounds_of(x, steps)
        return lambda: take(next(rounds))

    return {name: next_round(take) for name, take in trained.items()} | {
        "update": update,
        "fused update": fused_update,
        "matrix": lambda: a @ b,
        "copy": lambda: target.copy_(source),
    }


def peers() -> dict[str, Callable[..., Callable[[torch.Tensor], object]]]:
    """Return what else can train a population of MLPs here, by name; see `population_peers`."""
    found: dict[str, Callable[..., Callable[[torch.Tensor], object]]] = {"torch.func": population_peers.torch_vmap}
    if shutil.which("g++") or shutil.which("clang++"):
        found["torch.func compiled"] = functools.partial(population_peers.torch_vmap, compiled=True)
    if find_spec("jax") and find_spec("optax"):
        found["jax"] = population_peers.jax_scan
    return found


def noise() -> data.Dataset:
    """Return random tensors of MNIST's shapes, to be timed where MNIST is not available: values do not affect times."""
    generator = torch.Generator().manual_seed(0)
    sets = [
        (torch.randn(n, 784, generator=generator), torch.randint(10, (n,), generator=generator)) for n in (60000, 10000)
    ]
    return data.Dataset(NOISE, "generated", *sets[0], *sets[1])


def is_mlp(problem: problems.Problem) -> bool:
    return isinstance(problem.model, Model) and problem.model.forward is mlp.mlp_forward


def problem_of(kind: str, hidden: int | None, data_dir, download: bool) -> problems.Problem:
    """Return a model on MNIST, or on `noise` if MNIST is not available; data_dir, if given, is never replaced by noise.

    Args:
        kind: a model of MNIST, or a key of `own_networks.NETWORKS`.
        download: whether MNIST may be downloaded if it is not on this machine, which may take minutes.
    Raises: DataError if data_dir does not hold MNIST.
    """
    if kind in own_networks.NETWORKS:
        return own_networks.problem_of(kind, problem_of("mlp", None, data_dir, download).data)
    if data_dir is not None or download or data.mnist_is_here():
        try:
            return problems.make("mnist", kind, hidden=hidden, data_dir=data_dir)
        except errors.DataError:
            if data_dir is not None:
                raise
    _, task, options = problems.chosen_task("mnist", kind, hidden=hidden)
    dataset = noise()
    return problems.Problem("mnist", dataset, task.model(options, dataset))


def compare(
    kind: str, lanes: int, hidden: int | None, data_dir, device: str, rounds: int, download: bool = True
) -> dict:
    """Time one size, and return a row of the table."""
    problem, steps = problem_of(kind, hidden, data_dir, download), steps_of(kind, device)
    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    seconds = time_in_turn(population_contenders(problem, lanes, device, steps), rounds, sync)
    others = [name for name in ("jax", "torch.func", "torch.func compiled") if name in seconds]
    for name in ("population", *others):
        seconds[name] /= steps
    matrix_rate = 2 * MATRIX**3 / seconds["matrix"]
    copy_rate = 8 * COPY_ELEMENTS / seconds["copy"]
    ratios = {"speed-up over one after the other": seconds["solo"] / SOLO_STEPS * lanes / seconds["population"]}
    if is_mlp(problem):
        flops, update_bytes = step_work(problem.model, lanes)
        ratios["share of roofline"] = (flops / matrix_rate + update_bytes / copy_rate) / seconds["population"]
    ratios["update / torch's flat fused update"] = seconds["update"] / seconds["fused update"]
    ratios |= {f"speed-up over {name}": seconds[name] / seconds["population"] for name in others}
    row = {"data": problem.data.name, "K": lanes, "model": problem.model.name, "device": device, "rounds": rounds}
    row["ms per step"] = seconds["population"].median() * 1e3
    row["configuration-steps per second"] = lanes / seconds["population"].median()
    row["matrix GFLOP/s"] = matrix_rate.median() / 1e9
    row["copy GB/s"] = copy_rate.median() / 1e9
    for name, ratio in ratios.items():
        row |= with_interval(name, ratio)
    return row


def markdown(rows: list[dict], provenance: dict) -> str:
    """Return the report as Markdown: one column for each size, ratios with their intervals."""
    trained_on = f"Data {rows[0]['data']}, batch {BATCH}."
    if rows[0]["data"] == NOISE:
        trained_on += " MNIST was not available; random numbers stand in for it, because values do not affect times."
    names = [name for name in rows[0] if not name.endswith(ENDS)]
    lines = ["| | " + " | ".join(f"K={row['K']}, {row['model']}" for row in rows) + " |"]
    lines.append("| --- |" + " --- |" * len(rows))
    for name in names[names.index("rounds") :]:
        cells = []
        for row in rows:
            if name not in row:
                cells.append("-")
                continue
            number = f"{row[name]:.2f}" if f"{name}, low" in row else f"{row[name]:.4g}"
            cells.append(number + brackets(row, name, 2))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return f"""# Training throughput of a population

    {provenance["command"]}

{run_info.machine_line(provenance)}. {trained_on}

{chr(10).join(lines)}

Medians over the rounds, with
{INTERVALS}.
All contenders were timed in turn in every round.
Runs one after the other: the ordinary `torch.nn` model with `torch.optim.Adam(fused=True)`, {SOLO_STEPS} steps a round.
Roofline of an MLP: the matrix products of a step at the rate of a {MATRIX}x{MATRIX} float32 product,
plus 28 bytes a parameter at the rate of a {COPY_ELEMENTS * 4 >> 20} MiB copy.
On the CPU a population takes {STEPS["cpu"]} steps a round, as many as are usual between two evaluations, and so do
its peers. An "own" network is an ordinary module that is trained by `torch.vmap`; it takes {OWN_STEPS} steps a round,
in chunks of as many lanes as a sweep trains at once. jax, where it is installed: one jitted `lax.scan` over the steps
of `vmap` of `value_and_grad` and `optax.adam`; data, indices and learning rates are on the device, parameters and
states are donated. torch.func: a loop over `vmap` of `grad_and_value` and Adam's formula; compiled: through
`torch.compile`, where there is a C++ compiler.
"""
