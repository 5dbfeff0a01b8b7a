"""What surrounds a step in a training: schedulers, hooks, gradients that are accumulated, clipped and scaled."""

import inspect
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

import optim
from tests.conftest import device_of
from tests.oracle import assert_same_updates, make_params, train

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=True),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, 3),
}


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_every_scheduler_of_torchs_drives_the_step(name, scheduler, tensor_lr):
    options = {"momentum": 0.9} if name == "SGD" else {}
    ours, reference = make_params(((10,),), torch.float64), make_params(((10,),), torch.float64)
    before = [p.detach().clone() for p in reference]
    for module, params in ((optim, ours), (torch.optim, reference)):
        lr = torch.tensor(0.1, dtype=torch.float64) if tensor_lr and module is optim else 0.1
        optimizer = getattr(module, name)(params, lr=lr, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it deprecates in its own schedulers
            schedule = SCHEDULERS[scheduler](optimizer)
            for epoch in range(6):
                train(optimizer, params, 1, first_seed=epoch)
                schedule.step(*[1.0] if scheduler == "ReduceLROnPlateau" else [])
    assert_same_updates(ours, reference, before, 6, 1e-7)


def test_all_schedulers_of_torch_are_tried():
    known = {
        name for name, value in vars(lr_scheduler).items() if inspect.isclass(value) and name in lr_scheduler.__all__
    }
    assert known - {"LRScheduler", "_LRScheduler"} <= set(SCHEDULERS)


def test_step_hooks_and_profiler_names_are_kept():
    params = make_params(((3,),))
    optimizer, called = optim.NAdam(params), []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: called.append("before"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: called.append("after"))
    with torch.profiler.profile(acc_events=True) as profile:  # torch 2.11 warns without
        train(optimizer, params, 1)
    assert called == ["before", "after"]
    assert any("Optimizer.step#NAdam.step" in event.key for event in profile.key_averages())
    optimizer.zero_grad()
    assert params[0].grad is None


def test_accumulated_and_clipped_gradients_step_as_in_torch(backend):
    device, x = device_of(backend), torch.linspace(-1, 1, 24).view(6, 4)
    results = []
    for module, dtype, extra in ((optim, torch.float32, {"backend": backend}), (torch.optim, torch.float64, {})):
        target = device if module is optim else "cpu"
        model = torch.nn.Linear(4, 3)
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape) * (i + 1))
        model.to(target, dtype)
        optimizer = module.RAdam(model.parameters(), lr=0.1, betas=(0.5, 0.6), **extra)
        for _ in range(6):
            optimizer.zero_grad(set_to_none=False)
            for part in x.to(target, dtype).split(2):
                (model(part) ** 2).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        results.append([p.detach().double().cpu() for p in model.parameters()])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD"])
def test_grad_scaler_unscales_and_skips_overflows_uncounted(backend, name):
    """Adam and SGD are asked for fused steps and divide by the scale in the kernel; NAdam leaves that to GradScaler."""
    device = device_of(backend)
    ours, reference = make_params(((50,),), torch.float32, device), make_params(((50,),), torch.float64)
    before = [p.detach().clone() for p in reference]
    options = {"lr": 0.05, "momentum": 0.9, "maximize": True} if name == "SGD" else {"lr": 0.05}
    fused = {} if name == "NAdam" else {"fused": True}
    mine, oracle = (
        getattr(optim, name)(ours, **options, **fused, backend=backend),
        getattr(torch.optim, name)(reference, **options),
    )
    scaler = torch.amp.GradScaler(device, init_scale=3 * 2.0**10, growth_interval=100)
    for seed in range(6):
        grad = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        scaler.scale(torch.ones((), device=device))  # initialises the scale
        ours[0].grad = grad.to(device) * scaler.get_scale()
        reference[0].grad = grad.double()
        overflow, kept = seed == 2, []
        if overflow:
            ours[0].grad[7] = float("inf")
            kept = [ours[0].detach().clone(), *(v.clone() for v in mine.state[ours[0]].values())]
        if seed == 4:
            scaler.unscale_(mine)  # as before clipping: the step must not unscale again
        scaler.step(mine)
        scaler.update()
        if overflow:
            assert all(torch.equal(a, b) for a, b in zip(kept, [ours[0], *mine.state[ours[0]].values()], strict=True))
        else:
            oracle.step()
            torch.testing.assert_close(ours[0].grad.cpu(), grad)  # unscaled, as after torch's fused step
    assert getattr(mine, "_step_supports_amp_scaling", False) == (name != "NAdam")
    assert mine.state[ours[0]]["step"].item() == 5
    assert_same_updates(ours, reference, before, 5, 1e-5)
