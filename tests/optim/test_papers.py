"""Classes and options that torch.optim lacks, against their papers' algorithms in float64."""

import copy

import pytest
import torch

import optim
from kernels import lookup, multi_tensor
from kernels.config import Choice, Config
from tests.conftest import device_of
from tests.optim import papers
from tests.oracle import assert_same_updates, make_params, train

BLOCK = multi_tensor.CHUNK_SIZE
SHAPES = ((3,), (0,), (), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (7, 5))
"""Small, empty, a single number, and around the border of a block."""
STEPS = 22

CASES = [
    ("AdamW", {"bias_correction": False, "weight_decay": 0.1}),
    ("AdamW", {"bias_correction": False, "amsgrad": True}),
    ("AdamW", {"cautious_weight_decay": True, "weight_decay": 0.5, "lr": 0.05}),
    ("AdamW", {"cautious_weight_decay": True, "amsgrad": True, "bias_correction": False, "weight_decay": 0.5}),
    ("Lion", {"lr": 0.01, "weight_decay": 0.1}),
]
OTHERS = {"lr": 0.02, "weight_decay": 0.3, "maximize": True}
"""Options of a second group of parameters."""
RTOL = 3e-6


def followed(name: str, params: list[torch.Tensor], steps: int, first_step: int = 1, **options) -> list[torch.Tensor]:
    """Return float64 parameters after steps of the oracle with the gradients of `train`."""
    sign, options = -1 if options.pop("maximize", False) else 1, copy.deepcopy(options)
    found, states = [p.detach().double().cpu() for p in params], [{} for _ in params]
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for i, p in enumerate(found):
            grad = torch.randn(p.shape, generator=generator).to(params[i].dtype).double()
            found[i] = papers.OF[name](p, sign * grad, states[i], step + first_step, **options)
    return found


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_element_moves_as_the_paper_says(backend, name, options):
    ours = make_params(SHAPES, device=device_of(backend))
    before = [p.detach().double().cpu() for p in ours]
    expected = followed(name, ours, STEPS, **options)
    train(getattr(optim, name)(ours, **options, backend=backend), ours, STEPS)
    assert_same_updates(ours, expected, before, STEPS, RTOL)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_float64_is_float64(name, options):
    ours = make_params(((50,), ()), torch.float64)
    expected = followed(name, ours, STEPS, **options)
    train(getattr(optim, name)(ours, **options, backend="eager"), ours, STEPS)
    for p, q in zip(ours, expected, strict=True):
        # Scalars are float32.
        torch.testing.assert_close(p.detach(), q, rtol=1e-6 if name == "AdamWScheduleFree" else 1e-11, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_groups_have_options_of_their_own(name, options):
    one, other = make_params(((5,), (3, 4))), make_params(((6,),))
    before = [p.detach().double() for p in (*one, *other)]
    # Gradients depend on the order of parameters: the oracle gets all of them with the options of each group.
    first = followed(name, [*one, *other], STEPS, **options)[:2]
    second = followed(name, [*one, *other], STEPS, **{**options, **OTHERS})[2:]
    groups = [{"params": one}, {"params": other, **OTHERS}]
    train(getattr(optim, name)(groups, **options, backend="eager"), [*one, *other], STEPS)
    assert_same_updates([*one, *other], [*first, *second], before, STEPS, RTOL)


def lanes_of(name: str, options: dict, n: int) -> tuple[dict, list[dict]]:
    """Return options with a value for each lane, and those of each lane: every number is scaled, by 0.5 to 1."""
    given = {"lr": 0.01, **options}
    shares = [0.5 + 0.5 * (k + 1) / n for k in range(n)]

    def scaled(value, share):
        return value * share if type(value) is float else value

    alone = [{key: scaled(value, share) for key, value in given.items()} for share in shares]
    stacked = {
        key: torch.tensor([one[key] for one in alone], dtype=torch.float64) if type(value) is float else value
        for key, value in given.items()
    }
    if betas := papers.OF[name].__kwdefaults__.get("betas"):
        stacked["betas"] = tuple(torch.tensor([beta * s for s in shares], dtype=torch.float64) for beta in betas)
        alone = [{**one, "betas": tuple(b * s for b in betas)} for one, s in zip(alone, shares, strict=True)]
    return stacked, alone


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_each_lane_follows_its_own_hyperparameters(backend, name, options):
    stacked, alone = lanes_of(name, options, 3)
    ours = make_params([(3, BLOCK + 3), (3,), (3, 0)], device=device_of(backend))
    before = [p.detach().double().cpu() for p in ours]
    expected = [followed(name, ours, STEPS, **one) for one in alone]
    train(getattr(optim, name)(ours, **stacked, backend=backend), ours, STEPS)
    for k in range(3):
        lane, oracle, start = ([t[k] for t in tensors] for tensors in (ours, expected[k], before))
        assert_same_updates(lane, oracle, start, STEPS, RTOL)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_64_lanes_have_the_bits_of_one(backend, name, options):
    one, many = (make_params([(64, 9)], device=device_of(backend)) for _ in range(2))
    lr = options.get("lr", 1e-3)
    train(getattr(optim, name)(one, **{**options, "lr": lr}, backend=backend), one, 3)
    many_lr = torch.full((64,), lr, dtype=torch.float64)
    train(getattr(optim, name)(many, **{**options, "lr": many_lr}, backend=backend), many, 3)
    assert torch.equal(one[0], many[0])


@pytest.mark.gpu_too
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_no_launch_configuration_changes_a_bit(monkeypatch, name, options):
    stored = []
    for config in (Config(1024, 8), Config(256, 2), Config(4096, 16, eviction="evict_first")):
        monkeypatch.setattr(lookup, "choose", lambda *_, config=config: Choice(config, "test", "asked for"))
        params = make_params(((3,), (1029,), (2, 700)), torch.bfloat16, device_of("triton"))
        optimizer = getattr(optim, name)(params, **options, state_dtype=torch.bfloat16, backend="triton")
        train(optimizer, params, 2)
        states = [state for p in params for state in optimizer.state[p].values() if state.dtype == torch.bfloat16]
        stored.append(torch.cat([t.detach().flatten().cpu().view(torch.int16) for t in (*params, *states)]))
    assert all(torch.equal(stored[0], other) for other in stored)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_bfloat16_parameters_keep_float32_states_and_round_once_a_step(backend, name, options):
    ours = make_params(((BLOCK + 9,),), torch.bfloat16, device_of(backend))
    options, steps = {**options, "lr": 0.05}, 3
    before = [p.detach().double().cpu() for p in ours]
    expected = followed(name, ours, steps, **options)
    optimizer = getattr(optim, name)(ours, **options, backend=backend)
    train(optimizer, ours, steps)
    dtypes = {value.dtype for value in optimizer.state[ours[0]].values()}
    assert dtypes == {torch.float32}
    assert_same_updates(ours, expected, before, steps, RTOL)
    assert (ours[0].detach().double().cpu() != before[0]).float().mean() > 0.9


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_state_saved_in_the_middle_goes_on_with_the_same_bits(tmp_path, name, options):
    straight, moved = (make_params(((40,), (3, 3), ())) for _ in range(2))
    train(getattr(optim, name)(straight, **options, backend="eager"), straight, 8)
    first = getattr(optim, name)(moved, **options, backend="eager")
    train(first, moved, 4)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    # Other values than the saved ones, which have to come with the state.
    second = getattr(optim, name)(moved, lr=5.0, backend="eager")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(second, moved, 4, first_seed=4)
    assert all(torch.equal(p, q) for p, q in zip(straight, moved, strict=True))


def test_cautious_weight_decay_needs_decoupled_decay():
    p = [torch.zeros(2, requires_grad=True)]
    with pytest.raises(ValueError, match="cautious_weight_decay takes decoupled_weight_decay=True"):
        optim.Adam(p, cautious_weight_decay=True)
    optim.Adam(p, cautious_weight_decay=True, decoupled_weight_decay=True)
