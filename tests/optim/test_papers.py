"""Classes and options that torch.optim lacks, against their papers' algorithms in float64."""

import copy

import pytest
import torch

import optim
from kernels import lookup, multi_tensor
from kernels.config import Choice, Config
from tests.conftest import device_of
from tests.optim import papers, papers_sums
from tests.oracle import assert_same_updates, make_params, train

BLOCK = multi_tensor.CHUNK_SIZE
SHAPES = ((3,), (0,), (), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (7, 5))
"""Small, empty, a single number, and around the border of a block."""
STEPS = 22
FEW = 7
"""Steps that Triton's interpreter takes: each lasts a tenth of a second."""

CASES = [
    ("AdamW", {"bias_correction": False, "weight_decay": 0.1}),
    ("AdamW", {"bias_correction": False, "amsgrad": True}),
    ("AdamW", {"cautious_weight_decay": True, "weight_decay": 0.5, "lr": 0.05}),
    ("AdamW", {"cautious_weight_decay": True, "amsgrad": True, "bias_correction": False, "weight_decay": 0.5}),
    ("Lion", {"lr": 0.01, "weight_decay": 0.1}),
    ("Signum", {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.1}),
    ("LaProp", {"lr": 0.01, "weight_decay": 0.1}),
    ("ADOPT", {"weight_decay": 0.1}),
    ("ADOPT", {"clip": False, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adan", {"weight_decay": 0.1}),
    ("AdEMAMix", {"weight_decay": 0.1}),
    ("AdEMAMix", {"alpha": 8.0, "T_alpha_beta3": 16.0}),
    ("AdamWScheduleFree", {"weight_decay": 0.1}),
    ("AdamWScheduleFree", {"warmup_steps": 5, "r": 1.5, "weight_lr_power": 1.0}),
    ("LAMB", {"lr": 0.01, "weight_decay": 0.1}),
    ("LAMB", {"lr": 0.01, "bias_correction": False}),
    ("LARS", {"momentum": 0.8, "weight_decay": 0.1, "trust_coefficient": 0.02}),
    ("StableAdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ("AdamMini", {"lr": 0.01, "weight_decay": 0.1}),
    ("CautiousAdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ("CautiousLion", {"lr": 0.01, "weight_decay": 0.1}),
]
ORACLES = {**papers.OF, **papers_sums.OF}
OF_ONE_LANE = [case for case in CASES if case[0] not in papers_sums.OF]
"""Those whose step of one parameter is that of its lanes; `test_sum_rules` has the others."""
OTHERS = {"lr": 0.02, "weight_decay": 0.3, "maximize": True}
"""Options of a second group of parameters."""
RTOL = 3e-6


def followed(
    name: str, params: list[torch.Tensor], steps: int, lane: int | None = None, **options
) -> list[torch.Tensor]:
    """Return float64 parameters, or a lane of them, after steps of the oracle with the gradients of `train`."""
    sign, options = -1 if options.pop("maximize", False) else 1, copy.deepcopy(options)
    own = ... if lane is None else lane
    found, states = [p.detach().double().cpu()[own] for p in params], [{} for _ in params]
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for i, p in enumerate(params):
            grad = torch.randn(p.shape, generator=generator).to(p.dtype).double()
            found[i] = ORACLES[name](found[i], sign * grad[own], states[i], step + 1, **options)
    return found


INTERPRETED_SLOWLY = pytest.mark.parametrize(
    "backend", [pytest.param("triton", marks=pytest.mark.slow), "cpu", "eager"], indirect=True
)
"""Every backend in turn; Triton's interpreter takes a second for each case."""


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_element_moves_as_the_paper_says(backend, name, options):
    steps = FEW if backend == "triton" else STEPS
    ours = make_params(SHAPES, device=device_of(backend))
    before = [p.detach().double().cpu() for p in ours]
    expected = followed(name, ours, steps, **options)
    train(getattr(optim, name)(ours, **options, backend=backend), ours, steps)
    assert_same_updates(ours, expected, before, steps, RTOL)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_float64_is_float64(name, options):
    ours = make_params(((50,), ()), torch.float64)
    expected = followed(name, ours, STEPS, **options)
    train(getattr(optim, name)(ours, **options, backend="eager"), ours, STEPS)
    for p, q in zip(ours, expected, strict=True):
        # Scalars are float32.
        torch.testing.assert_close(
            p.detach(), q, rtol=1e-6 if name in ("AdamWScheduleFree", "AdamMini") else 1e-11, atol=1e-9
        )


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
    if betas := ORACLES[name].__kwdefaults__.get("betas"):
        stacked["betas"] = tuple(torch.tensor([beta * s for s in shares], dtype=torch.float64) for beta in betas)
        alone = [{**one, "betas": tuple(b * s for b in betas)} for one, s in zip(alone, shares, strict=True)]
    return stacked, alone


@INTERPRETED_SLOWLY
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_each_lane_follows_its_own_hyperparameters(backend, name, options):
    stacked, alone = lanes_of(name, options, 3)
    steps = FEW if backend == "triton" else STEPS
    ours = make_params([(3, BLOCK + 3), (3,), (3, 0)], device=device_of(backend))
    before = [p.detach().double().cpu() for p in ours]
    expected = [followed(name, ours, steps, lane=k, **one) for k, one in enumerate(alone)]
    train(getattr(optim, name)(ours, **stacked, backend=backend), ours, steps)
    for k in range(3):
        lane, start = ([t[k] for t in tensors] for tensors in (ours, before))
        assert_same_updates(lane, expected[k], start, steps, RTOL)


@INTERPRETED_SLOWLY
@pytest.mark.parametrize(("name", "options"), OF_ONE_LANE, ids=str)
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


@INTERPRETED_SLOWLY
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_bfloat16_parameters_keep_float32_states_and_round_once_a_step(backend, name, options):
    """Each step starts from what the one before has stored."""
    (p,) = make_params(((BLOCK + 9,),), torch.bfloat16, device_of(backend))
    options, state = {**options, "lr": 0.5}, {}
    optimizer, start = getattr(optim, name)([p], **options, backend=backend), p.detach().clone()
    for step in range(3):
        before = p.detach().double().cpu()
        grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).bfloat16()
        exact = ORACLES[name](before, grad.double(), state, step + 1, **options)
        p.grad = grad.to(p.device)
        optimizer.step()
        ours = p.detach().double().cpu()
        # Half a unit in the last place, and what float32 has rounded before.
        bound = 0.5001 * torch.finfo(p.dtype).eps * exact.abs() + 2e-6 * (1 + (exact - before).abs())
        assert ((ours - exact).abs() <= bound).all()
        if "x" in state:  # which follows from y, as it is stored
            state["x"] = (ours - 0.1 * state["z"]) / 0.9
    assert {value.dtype for value in optimizer.state[p].values()} == {torch.float32}
    assert (p != start).float().mean() > 0.9


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


P = torch.zeros(2, requires_grad=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Signum", {"momentum": 1.0}, "Invalid momentum value: 1.0"),
        ("LaProp", {"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ("ADOPT", {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
        ("Adan", {"betas": (0.9, 0.9)}, "Invalid betas: .* .3 values"),
        ("Adan", {"betas": (0.9, 0.9, -0.1)}, "Invalid beta parameter at index 2: -0.1"),
        ("AdEMAMix", {"alpha": -1.0}, "Invalid alpha value: -1.0"),
        ("AdEMAMix", {"T_alpha_beta3": -1}, "Invalid T_alpha_beta3 value: -1"),
        ("AdamWScheduleFree", {"betas": (0.0, 0.9)}, "Invalid beta parameter at index 0: 0.0"),
        ("AdamWScheduleFree", {"warmup_steps": -1}, "Invalid warmup_steps value: -1"),
        ("AdamWScheduleFree", {"r": torch.tensor([0.0, -2.0])}, "Invalid r value: -2.0"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(optim, name)([P], **options)


def test_the_scheduler_of_ademamix_starts_from_a_beta1_of_zero_too():
    (p,) = make_params(((5,),))
    optimizer = optim.AdEMAMix([p], betas=(0.0, 0.99, 0.999), T_alpha_beta3=10, backend="eager")
    train(optimizer, [p], 12)
    assert optimizer.state[p]["exp_avg_slow"].isfinite().all()
    assert p.isfinite().all()


@pytest.mark.parametrize("lanes", [False, True])
def test_schedule_free_parameters_are_x_between_eval_and_train(backend, lanes):
    lrs, betas = ([0.01, 0.02, 0.03], [0.9, 0.8, 0.95]) if lanes else ([0.01] * 3, [0.9] * 3)
    lr, beta1 = (torch.tensor(lrs), torch.tensor(betas)) if lanes else (lrs[0], betas[0])
    params = make_params(((3, 5), (3,), (3, 2, 2)), device=device_of(backend))
    optimizer = optim.AdamWScheduleFree(params, lr=lr, betas=(beta1, 0.99), backend=backend)
    optimizer.eval()  # before the first step x is y
    optimizer.train()
    start = [p.detach().clone() for p in params]
    train(optimizer, params, 7)
    y = [p.detach().clone() for p in params]
    optimizer.eval()
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"call train\(\) before step\(\)"):
        optimizer.step()
    for k in range(3):
        own = {"lr": lrs[k], "betas": (betas[k], 0.99)}
        found, states = [p.double().cpu() for p in start], [{} for _ in params]
        for step in range(7):
            generator = torch.Generator().manual_seed(step)
            for i, p in enumerate(found):
                grad = torch.randn(p.shape, generator=generator).double()
                found[i] = papers.schedule_free_adamw(p, grad, states[i], step + 1, **own)
        for p, state in zip(params, states, strict=True):
            torch.testing.assert_close(p.detach()[k].double().cpu(), state["x"][k], rtol=1e-5, atol=1e-6)
    optimizer.train()
    for p, q in zip(params, y, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-6, atol=1e-7)
    assert not any(torch.equal(p, q) for p, q in zip(params, start, strict=True))


def test_a_schedule_free_state_saved_for_evaluation_trains_on_after_train():
    straight, moved = (make_params(((40,),), torch.float64) for _ in range(2))
    train(optim.AdamWScheduleFree(straight, lr=0.1, backend="eager"), straight, 8)
    first = optim.AdamWScheduleFree(moved, lr=0.1, backend="eager")
    train(first, moved, 4)
    first.eval()
    second = optim.AdamWScheduleFree(moved, lr=5.0, backend="eager")
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    with pytest.raises(RuntimeError, match="call train"):
        second.step()
    second.train()
    train(second, moved, 4, first_seed=4)
    torch.testing.assert_close(moved[0], straight[0], rtol=1e-12, atol=1e-12)


def test_schedule_free_parameters_stay_where_the_first_step_was_skipped():
    (p,) = make_params(((6,),))
    optimizer, start = optim.AdamWScheduleFree([p], backend="eager"), p.detach().clone()
    optimizer.found_inf = torch.ones(1)
    train(optimizer, [p], 1)
    optimizer.eval()
    assert torch.equal(p.detach(), start)
