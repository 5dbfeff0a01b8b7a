"""skorch's NeuralNetClassifier drives our classes as it does torch's."""

import pytest
import torch

from tests.optim.clients import OWNERS, assert_same_bits, assert_same_training, make_data, make_model, need

pytestmark = pytest.mark.slow
OPTIONS = {
    "Adam": {"lr": 0.02, "optimizer__betas": (0.8, 0.99), "optimizer__amsgrad": True},
    "SGD": {"lr": 0.1, "optimizer__momentum": 0.9, "optimizer__nesterov": True},
}
N_STEPS = 3 * 4


def fit(owner, name: str, epochs: int = 2):
    """A net after so many epochs; four batches in each."""
    x, y = make_data().tensors
    net = need("skorch").NeuralNetClassifier(
        make_model,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=getattr(owner, name),
        max_epochs=epochs,
        batch_size=12,
        iterator_train__shuffle=False,
        train_split=None,
        verbose=0,
        callbacks=[("clip", need("skorch.callbacks").GradientNormClipping(0.2))],
        **OPTIONS[name],
    )
    return net.fit(x, y) if epochs else net.initialize()


def go_on(net) -> None:
    """One more epoch, at another learning rate and weight decay."""
    net.set_params(lr=0.05, optimizer__weight_decay=0.1, max_epochs=1)
    net.partial_fit(*make_data().tensors)


@pytest.mark.parametrize("name", OPTIONS)
def test_skorch_fits_sets_parameters_saves_and_loads_as_with_torchs_class(tmp_path, name):
    nets = {kind: fit(owner, name) for kind, owner in OWNERS.items()}
    files = {kind: {f"f_{part}": tmp_path / f"{kind}-{part}.pt" for part in ("params", "optimizer")} for kind in nets}
    for kind, net in nets.items():
        net.save_params(**files[kind])
        go_on(net)
    ours, theirs = (net.module_ for net in nets.values())
    assert nets["ours"].optimizer_.param_groups[0]["lr"] == 0.05
    assert_same_training(ours, theirs, make_model(), N_STEPS)
    for kind in OWNERS:
        resumed = fit(OWNERS["ours"], name, epochs=0)
        resumed.load_params(**files[kind])
        go_on(resumed)
        if kind == "ours":
            assert_same_bits(resumed.module_, ours)
        assert_same_training(resumed.module_, theirs, make_model(), N_STEPS)
