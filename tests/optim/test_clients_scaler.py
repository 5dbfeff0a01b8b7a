"""Scripts that scale their losses by hand: with fused=True a step unscales, without it GradScaler does."""

import copy

import pytest
import torch

import optim
from tests.optim.clients import (
    OWNERS,
    assert_same_training,
    loss_of,
    make,
    make_batches,
    make_model,
    parameters,
)

pytestmark = pytest.mark.slow
# Those of torch's classes that scale inside a fused step on a CPU.
NAMES = ["Adam", "AdamW", "SGD", "Adagrad"]
OVERFLOW = 3


def make_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=3 * 2.0**9, growth_interval=3)


def train(model, optimizer, scaler, clip: float | None = None, accumulate: int = 1, first=0, last=None) -> list[tuple]:
    """The batches in turn, one of which overflows; the scale and the gradients' norm after each step."""
    seen = []
    for i, (x, y) in list(enumerate(make_batches()))[first:last]:
        factor = float("inf") if i == OVERFLOW else 1.0
        scaler.scale(loss_of(model, x, y) * factor / accumulate).backward()
        if (i + 1) % accumulate:
            continue
        if clip is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        before = copy.deepcopy(parameters(model))
        scaler.step(optimizer)
        scaler.update()
        skipped = i // accumulate == OVERFLOW // accumulate
        assert skipped == all(map(torch.equal, before, parameters(model)))
        seen.append((scaler.get_scale(), torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()))
        optimizer.zero_grad()
    return seen


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_scaled_step_ends_as_with_torchs_class(name, fused, clip, accumulate):
    before, models, seen, counts = make_model(), {}, {}, {}
    for kind, owner in OWNERS.items():
        model = models[kind] = make_model()
        optimizer = make(owner, name, model.parameters(), fused=fused)
        assert getattr(optimizer, "_step_supports_amp_scaling", False) == bool(fused)
        seen[kind] = train(model, optimizer, make_scaler(), clip, accumulate)
        counts[kind] = [optimizer.state[p]["step"].item() for p in model.parameters() if name != "SGD"]
    n_steps = len(seen["ours"])
    assert_same_training(models["ours"], models["torch's"], before, n_steps)
    scales, norms = ([row[i] for row in seen["ours"]] for i in range(2))
    assert scales == [row[0] for row in seen["torch's"]]
    assert counts["ours"] == counts["torch's"]
    if not fused:
        # What a script logs after a step: the gradients are those of the loss, not of the scaled loss.
        torch.testing.assert_close(norms, [row[1] for row in seen["torch's"]], rtol=1e-4, atol=0, equal_nan=True)


@pytest.mark.parametrize("first", [None, True])
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_state_of_a_fused_run_goes_on_without_and_the_other_way_round(name, first):
    """Loading takes the groups' flags along, as in torch."""
    whole, halves = make_model(), make_model()
    plain = make(torch.optim, name, whole.parameters())
    scaler = make_scaler()
    train(whole, plain, scaler)
    optimizer, scaler = make(optim, name, halves.parameters(), fused=first), make_scaler()
    train(halves, optimizer, scaler, last=5)
    saved = copy.deepcopy((optimizer.state_dict(), scaler.state_dict()))
    optimizer = make(optim, name, halves.parameters(), fused=None if first else True)
    optimizer.load_state_dict(saved[0])
    scaler.load_state_dict(saved[1])
    train(halves, optimizer, scaler, first=5)
    assert_same_training(halves, whole, make_model(), 8)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy], ids=["deepcopy", "copy"])
@pytest.mark.parametrize("fused", [None, True])
def test_a_copy_of_an_optimizer_scales_as_the_first(fused, copied):
    whole, model = make_model(), make_model()
    train(whole, make(torch.optim, "AdamW", whole.parameters()), make_scaler())
    optimizer, scaler = make(optim, "AdamW", model.parameters(), fused=fused), make_scaler()
    train(model, optimizer, scaler, last=5)
    model, optimizer = copied((model, optimizer)) if copied is copy.deepcopy else (model, copy.copy(optimizer))
    train(model, optimizer, scaler, first=5)
    assert_same_training(model, whole, make_model(), 8)


def test_one_scaler_serves_a_fused_and_an_ordinary_optimizer():
    """As of two networks that are trained by one loss; an overflow in one of them does not stop the other."""
    results = []
    for owner in OWNERS.values():
        models = [make_model(), make_model()]
        flags = zip(models, (True, None), strict=True)
        optimizers = [make(owner, "AdamW", model.parameters(), fused=fused) for model, fused in flags]
        scaler = make_scaler()
        for i, (x, y) in enumerate(make_batches()):
            scaler.scale(sum((loss_of(m, x, y) for m in models), torch.zeros(()))).backward()
            if i == OVERFLOW:
                grad = next(models[1].parameters()).grad
                assert grad is not None
                grad.fill_(float("nan"))
            for optimizer in optimizers:
                scaler.step(optimizer)
                optimizer.zero_grad()
            scaler.update()
        results.append(models)
    for ours, theirs in zip(*results, strict=True):
        assert_same_training(ours, theirs, make_model(), 8)
