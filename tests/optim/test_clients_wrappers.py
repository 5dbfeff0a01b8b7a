"""Wrappers around an optimizer move the same weights with our classes inside as with torch's."""

import copy
import io

import pytest
import torch

import optim
from tests.optim.clients import (
    OWNERS,
    RECIPES,
    assert_same_bits,
    assert_same_training,
    make,
    make_batches,
    make_model,
    need,
    parameters,
)
from tests.optim.wrappers import LARC, SAM, Lookahead, OrthoGrad, SharedSAM

pytestmark = pytest.mark.slow
MOMENTA = {"AdamW": "exp_avg", "SGD": "momentum_buffer", "RMSprop": "momentum_buffer"}
WRAPPERS = {
    "SAM": (SAM, {}),
    "SharedSAM": (SharedSAM, {}),
    "Lookahead": (Lookahead, {}),
    "Lookahead that resets": (
        Lookahead,
        {"reset": {"AdamW": "exp_avg", "SGD": "momentum_buffer", "RMSprop": "momentum_buffer"}},
    ),
    "OrthoGrad": (OrthoGrad, {}),
    "LARC": (LARC, {}),
}
STATES = {"AdamW": ("exp_avg", "exp_avg_sq"), "SGD": (), "RMSprop": ("square_avg", "momentum_buffer"), "Adagrad": ()}
OPTIONS: dict[str, dict] = RECIPES | {"RMSprop": {"lr": 0.01, "momentum": 0.9}, "Adagrad": {"lr": 0.05}}


def begin(base: torch.optim.Optimizer, name: str) -> None:
    """Make the states of torch's class: it makes them only where it finds none, and some wrappers put theirs first."""
    if type(base).__module__.startswith("torch.") and STATES[name]:
        for group in base.param_groups:
            for p in group["params"]:
                base.state[p] = {"step": torch.tensor(0.0)} | {state: torch.zeros_like(p) for state in STATES[name]}


def train(model, optimizer, first: int, last: int) -> None:
    for x, y in list(make_batches())[first:last]:

        def backward(x=x, y=y):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x.double()), y)
            loss.backward()
            return loss

        backward()
        optimizer.step(*([backward] if isinstance(optimizer, (SAM, SharedSAM)) else []))


def save_and_load(model, optimizer, make_again):
    """A model and an optimizer made again, and loaded from a file with the states of these."""
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    model, optimizer = make_again()
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return model, optimizer


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_trains_saves_and_goes_on_as_with_torchs_class(wrapper, name):
    def make_both(owner):
        model = make_model(torch.float64)
        kind, options = WRAPPERS[wrapper]
        options = {key: value[name] for key, value in options.items()}
        optimizer = kind(model.parameters(), getattr(owner, name), **options, **OPTIONS[name])
        if kind is SharedSAM:
            begin(optimizer.base_optimizer, name)
        return model, optimizer

    before, ends = make_model(torch.float64), {}
    for kind, owner in OWNERS.items():
        model, optimizer = make_both(owner)
        train(model, optimizer, 0, 5)
        again = save_and_load(model, optimizer, lambda owner=owner: make_both(owner))
        train(model, optimizer, 5, 8)
        train(*again, 5, 8)
        ends[kind] = model, again[0]
    assert_same_training(ends["ours"][0], ends["torch's"][0], before, 8, 1e-9)
    assert_same_training(ends["ours"][1], ends["torch's"][1], before, 8, 1e-9)
    # SAM keeps the states of its base to itself.
    if wrapper != "SAM":
        assert_same_bits(*ends["ours"])


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "Adagrad"])
def test_schedule_free_trains_saves_and_goes_on_as_with_torchs_class(name):
    wrapper = need("schedulefree").ScheduleFreeWrapper

    def make_both(owner):
        model = make_model(torch.float64)
        base = getattr(owner, name)(model.parameters(), **OPTIONS[name])
        begin(base, name)
        return model, wrapper(base, momentum=0.9, weight_decay_at_y=0.01)

    before, ends = make_model(torch.float64), {}
    for kind, owner in OWNERS.items():
        model, optimizer = make_both(owner)
        optimizer.train()
        train(model, optimizer, 0, 5)
        optimizer.eval()
        again = save_and_load(model, optimizer, lambda owner=owner: make_both(owner))
        for pair in ((model, optimizer), again):
            pair[1].train()
            train(*pair, 5, 8)
            pair[1].eval()
        ends[kind] = model, again[0]
    assert_same_training(ends["ours"][0], ends["torch's"][0], before, 8, 1e-9)
    assert_same_bits(*ends["ours"])


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_entries_of_any_kind_that_others_add_to_a_state_are_saved_and_loaded_as_in_torch(name):
    added = {
        "count": 3,
        "ratio": 0.5,
        "ready": True,
        "nothing": None,
        "pair": [torch.ones(2, dtype=torch.float64), 7],
        "inner": {"ema": torch.full((3,), 2.0, dtype=torch.float64)},
        "slow": torch.linspace(0, 1, 4, dtype=torch.float64),
    }
    loaded = {}
    for kind, owner in OWNERS.items():
        model, again = make_model(torch.float64), make_model(torch.float64)
        optimizer, other = make(owner, name, model.parameters()), make(owner, name, again.parameters())
        train(model, optimizer, 0, 2)
        for p in model.parameters():
            optimizer.state[p].update(copy.deepcopy(added))
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        again.load_state_dict(model.state_dict())
        train(model, optimizer, 2, 4)
        train(again, other, 2, 4)
        assert_same_bits(model, again)
        loaded[kind] = [{key: other.state[p][key] for key in added} for p in again.parameters()]
    assert str(loaded["ours"]) == str(loaded["torch's"])
    # torch 2.13 makes a generator's name of a string.
    mine = make(optim, name, make_model().parameters())
    saved = mine.state_dict() | {"state": {0: {"kind": "slow"}}}
    mine.load_state_dict(saved)
    assert mine.state_dict()["state"][0]["kind"] == "slow"


def test_a_wrapper_goes_on_from_the_state_of_the_same_around_torchs_class():
    pairs = []
    for owner in OWNERS.values():
        model = make_model(torch.float64)
        pairs.append((model, Lookahead(model.parameters(), owner.AdamW, **OPTIONS["AdamW"])))
    (ours, mine), (theirs, reference) = pairs
    train(theirs, reference, 0, 4)
    mine.load_state_dict(copy.deepcopy(reference.state_dict()))
    ours.load_state_dict(theirs.state_dict())
    middle = [p.clone() for p in parameters(ours)]
    train(theirs, reference, 4, 8)
    train(ours, mine, 4, 8)
    assert_same_training(ours, theirs, middle, 4, 1e-9)
