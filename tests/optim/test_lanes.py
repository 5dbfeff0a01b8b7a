"""A `[K]` learning rate under torch's schedulers: lane k has the values of a run of its own."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

import optim

LRS = (0.1, 0.01, 1e-6)
MAKE = {
    "LambdaLR": lambda o, lr: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o, lr: schedulers.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o, lr: schedulers.StepLR(o, 2),
    "MultiStepLR": lambda o, lr: schedulers.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o, lr: schedulers.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o, lr: schedulers.LinearLR(o, 0.1, 1.0, 4),
    "ExponentialLR": lambda o, lr: schedulers.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o, lr: schedulers.PolynomialLR(o, 5, 2.0),
    "CosineAnnealingLR": lambda o, lr: schedulers.CosineAnnealingLR(o, 3),
    "CosineAnnealingLR to a floor": lambda o, lr: schedulers.CosineAnnealingLR(o, 4, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o, lr: schedulers.CosineAnnealingWarmRestarts(o, 2, eta_min=1e-3),
    "CyclicLR": lambda o, lr: schedulers.CyclicLR(o, 0.1 * lr, lr, 2),
    "CyclicLR to one peak": lambda o, lr: schedulers.CyclicLR(o, 0.1 * lr, 0.3, 2, mode="triangular2"),
    "OneCycleLR": lambda o, lr: schedulers.OneCycleLR(o, lr, total_steps=9),
    "OneCycleLR in three phases": lambda o, lr: schedulers.OneCycleLR(
        o, lr, total_steps=9, three_phase=True, anneal_strategy="linear", cycle_momentum=False
    ),
    "ReduceLROnPlateau": lambda o, lr: schedulers.ReduceLROnPlateau(o, patience=0),
    "ReduceLROnPlateau to a floor": lambda o, lr: schedulers.ReduceLROnPlateau(o, patience=0, min_lr=5e-3, eps=1e-4),
    "SequentialLR": lambda o, lr: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, 1.0, 3), schedulers.CosineAnnealingLR(o, 5)], [3]
    ),
    "ChainedScheduler": lambda o, lr: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.1), schedulers.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "SWALR": lambda o, lr: SWALR(o, 0.05, 4),
    "SWALR for each": lambda o, lr: SWALR(o, 0.05 * lr, 4, anneal_strategy="linear"),
}
pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")


def test_all_schedulers_of_torch_are_tried():
    names = {name for name in schedulers.__all__ if inspect.isclass(getattr(schedulers, name))}
    assert names - {name.split()[0] for name in MAKE} <= {"LRScheduler", "ParamwiseScheduler"}


def make(name: str, lr, **options):
    """An optimizer over one parameter, which is stacked if lr has lanes."""
    is_stacked = isinstance(lr, torch.Tensor) and lr.ndim > 0
    p = torch.zeros(3, 4) if is_stacked else torch.zeros(4)
    return getattr(optim, name)([p.requires_grad_()], lr=lr, backend="eager", **options)


def take(optimizer, schedule) -> tuple:
    """A step of both; returns the values of lr and of momentum that the optimizer's step had."""
    group = optimizer.param_groups[0]
    for p in group["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    values = group["lr"], group["betas"][0] if "betas" in group else group["momentum"]
    values = tuple(v.detach().clone().double() if isinstance(v, torch.Tensor) else v for v in values)
    schedule.step(*[1.0] if isinstance(schedule, schedulers.ReduceLROnPlateau) else [])
    return values


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scheduler", MAKE)
def test_every_scheduler_gives_each_lane_the_values_of_a_run_of_its_own(scheduler, dtype):
    """Of a run whose lr is a tensor of that dtype too, for schedulers compute in it."""
    lr = torch.tensor(LRS, dtype=dtype)
    for name in ("Adam", "SGD"):
        lanes = make(name, lr.clone())
        solos = [make(name, value.clone() if dtype == torch.float32 else value.item()) for value in lr]
        given = [value if dtype == torch.float32 else value.item() for value in lr]
        schedule = MAKE[scheduler](lanes, lr)
        schedules = [MAKE[scheduler](solo, value) for solo, value in zip(solos, given, strict=True)]
        for _ in range(8):
            values = take(lanes, schedule)
            expected = [take(solo, one) for solo, one in zip(solos, schedules, strict=True)]
            for value, own in zip(values, zip(*expected, strict=True), strict=True):
                own = torch.tensor([float(v) for v in own], dtype=torch.float64)
                value = torch.as_tensor(value, dtype=torch.float64).expand(3)
                torch.testing.assert_close(value, own, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)
        p = lanes.param_groups[0]["params"][0].detach()
        q = torch.stack([solo.param_groups[0]["params"][0].detach() for solo in solos])
        torch.testing.assert_close(p, q, rtol=1e-5, atol=0)


# As functions of anything: torch's annotations know of no lanes.
ONE: Callable[..., schedulers.LRScheduler] = schedulers.OneCycleLR
CYCLIC: Callable[..., schedulers.LRScheduler] = schedulers.CyclicLR
PLATEAU: Callable[..., schedulers.ReduceLROnPlateau] = schedulers.ReduceLROnPlateau
REFUSED = {
    "max_lr": lambda o: ONE(o, 0.1, total_steps=9),
    "base_lr": lambda o: CYCLIC(o, 0.1, 0.3),
    "max_momentum": lambda o: ONE(o, torch.tensor(LRS), total_steps=9),
    "base_momentum": lambda o: ONE(o, torch.tensor(LRS), total_steps=9, max_momentum=torch.tensor([0.9, 0.8, 0.7])),
    "max_lr: 2 values for 3 lanes": lambda o: ONE(o, torch.tensor([0.1, 0.2]), total_steps=9),
    "min_lr": lambda o: PLATEAU(o, patience=-1, min_lr=torch.tensor(LRS)).step(1.0),
}


@pytest.mark.parametrize("what", REFUSED)
def test_one_number_for_lanes_that_differ_is_refused_by_name_and_nothing_changes(what):
    betas = (torch.tensor([0.5, 0.6, 0.7]), 0.999) if "momentum" in what else (0.9, 0.999)
    optimizer = make("Adam", torch.tensor(LRS), betas=betas)
    before = copy.deepcopy({k: v for k, v in optimizer.param_groups[0].items() if k != "params"})
    with pytest.raises(ValueError, match=what):
        REFUSED[what](optimizer)
    after = optimizer.param_groups[0]
    assert torch.equal(after["lr"], before["lr"]) or "momentum" in what
    assert torch.equal(*map(torch.as_tensor, (after["betas"][0], before["betas"][0])))


def test_momentum_of_lanes_cycles_lane_by_lane():
    low, high = torch.tensor([0.5, 0.6, 0.7]).double(), torch.tensor([0.7, 0.8, 0.95]).double()
    for name, start in (("Adam", {"betas": (high, 0.999)}), ("SGD", {"momentum": high})):
        for of in (ONE, CYCLIC):
            lr = torch.tensor(LRS, dtype=torch.float64)
            base = {"total_steps": 9} if of is ONE else {"base_lr": 0.1 * lr, "step_size_up": 2}
            lanes = make(name, lr, **start)
            schedule = of(lanes, max_lr=lr.clone(), base_momentum=low, max_momentum=high, **base)
            seen = [take(lanes, schedule)[1] for _ in range(6)]
            for k in range(3):
                solo = make(name, LRS[k])
                base = {"total_steps": 9} if of is ONE else {"base_lr": 0.1 * LRS[k], "step_size_up": 2}
                one = of(solo, max_lr=LRS[k], base_momentum=low[k].item(), max_momentum=high[k].item(), **base)
                for values in seen:
                    assert values[k].item() == pytest.approx(take(solo, one)[1], rel=1e-12)


def test_a_scalar_is_written_where_lanes_do_not_differ_and_torchs_words_stay():
    optimizer = make("Adam", torch.full((3,), 0.1))
    ONE(optimizer, 0.5, total_steps=9)
    assert optimizer.param_groups[0]["lr"].tolist() == pytest.approx([0.02] * 3)
    optimizer = make("Adam", torch.tensor(LRS))
    with pytest.raises(ValueError, match="lanes differ in lr"):
        optimizer.param_groups[0]["lr"].fill_(0.1)
    with pytest.raises((ValueError, RuntimeError), match=r"[Ss]calar|only one element"):
        float(optimizer.param_groups[0]["lr"])
    with pytest.raises(ValueError, match="3 lanes, and the scheduler gives it 2 values"):
        optimizer.param_groups[0]["lr"].fill_(torch.ones(2))
    with pytest.raises(ValueError, match="lr"):
        make("Adam", torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("scheduler", ["CosineAnnealingLR", "OneCycleLR", "SequentialLR", "ReduceLROnPlateau"])
@pytest.mark.parametrize("how", ["saved", "pickled", "copied"])
def test_a_checkpoint_amid_the_schedule_goes_on_with_the_same_values(scheduler, how):
    lr = torch.tensor(LRS, dtype=torch.float64)
    straight = make("Adam", lr.clone())
    schedule = MAKE[scheduler](straight, lr)
    for _ in range(3):
        take(straight, schedule)
    moved = make("Adam", torch.ones(3, dtype=torch.float64))
    if how != "saved":
        moved = copy.deepcopy(straight) if how == "copied" else pickle.loads(pickle.dumps(straight))
        assert torch.equal(moved.param_groups[0]["lr"], straight.param_groups[0]["lr"])
    again, file = MAKE[scheduler](moved, torch.ones(3)), io.BytesIO()
    assert type(straight.state_dict()["param_groups"][0]["lr"]) is torch.Tensor
    torch.save([straight.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    ours, theirs = torch.load(file, weights_only=True)
    assert type(ours["param_groups"][0]["lr"]) is torch.Tensor
    moved.load_state_dict(ours)
    again.load_state_dict(theirs)
    for _ in range(4):
        for value, other in zip(take(moved, again), take(straight, schedule), strict=True):
            assert torch.equal(*map(torch.as_tensor, (value, other)))
    assert torch.equal(moved.param_groups[0]["lr"], again.get_last_lr()[0])


def test_groups_of_several_kinds_have_schedules_of_their_own():
    stacked, other, single = torch.zeros(3, 2), torch.zeros(3, 5), torch.zeros(7)
    lr = torch.tensor(LRS, dtype=torch.float64)
    groups = [{"params": [stacked]}, {"params": [other]}, {"params": [single], "lr": 0.5}]
    optimizer = optim.Adam(groups, lr=lr)
    schedule = schedulers.LambdaLR(optimizer, [lambda e: 0.5**e, lambda e: 0.1**e, lambda e: 0.2**e])
    optimizer.step()
    schedule.step()
    torch.testing.assert_close(optimizer.param_groups[0]["lr"], 0.5 * torch.tensor(LRS).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(optimizer.param_groups[1]["lr"], 0.1 * torch.tensor(LRS).double(), rtol=1e-6, atol=0)
    assert optimizer.param_groups[2]["lr"] == 0.1
    # A group that comes later starts from the default, as with floats.
    optimizer.add_param_group({"params": [torch.zeros(3, 4)]})
    assert optimizer.param_groups[3]["lr"].tolist() == list(LRS)
    plateau = schedulers.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(2):
        plateau.step(1.0)
    torch.testing.assert_close(optimizer.param_groups[3]["lr"], 0.1 * lr.new_tensor(LRS))
    torch.testing.assert_close(optimizer.param_groups[0]["lr"], 0.05 * lr.new_tensor(LRS))


def test_an_lr_that_the_user_sets_is_scheduled_from_there():
    optimizer = make("SGD", torch.tensor(LRS))
    schedule = schedulers.StepLR(optimizer, 1, gamma=0.5)
    take(optimizer, schedule)
    group = optimizer.param_groups[0]
    group["lr"] = torch.tensor([0.4, 0.2, 0.1])
    schedule.step()
    assert group["lr"].tolist() == pytest.approx([0.2, 0.1, 0.05])
    p = group["params"][0]
    before = p.detach().clone()
    take(optimizer, schedule)
    torch.testing.assert_close(before - p.detach(), torch.tensor([0.2, 0.1, 0.05])[:, None].expand(3, 4))
    group["lr"] = 0.5
    before = p.detach().clone()
    assert take(optimizer, schedule)[0] == 0.5
    torch.testing.assert_close(before - p.detach(), torch.full((3, 4), 0.5))
    assert group["lr"] == 0.25


def test_the_users_own_tensor_is_what_the_first_group_has():
    lr = torch.tensor(LRS)
    optimizer = make("SGD", lr)
    take(optimizer, schedulers.StepLR(optimizer, 10))
    lr.mul_(2)
    p = optimizer.param_groups[0]["params"][0]
    before = p.detach().clone()
    optimizer.step()
    torch.testing.assert_close(before - p.detach(), 2 * torch.tensor(LRS)[:, None].expand(3, 4))
