"""Lightning's Trainer and Fabric drive our classes as they do torch's."""

import pytest
import torch

import optim
from tests.clients import (
    N_BATCHES,
    OWNERS,
    RECIPES,
    assert_same_bits,
    assert_same_training,
    loss_of,
    make,
    make_batches,
    make_model,
    need,
)

EPOCHS, ACCUMULATE = 3, 2
STEPS = EPOCHS * N_BATCHES // ACCUMULATE
# How far two trainings may be apart, of the largest move of a tensor and for each step.
PRECISIONS = {"32-true": 1e-5, "bf16-mixed": 2e-3, "16-mixed": 1e-3, "bf16-true": 1e-2}
CLIPPING = {"norm": 0.2, "value": 0.02}

pytestmark = [
    pytest.mark.slow,
    # Lightning 2.6 asks torch 2.13's trees as those of torch 2.8.
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def lightning():
    return need("lightning.pytorch")


def precision_options(lightning, precision: str) -> dict:
    """On a CPU Lightning takes 16-mixed for bf16-mixed, unless it is given the parts."""
    if precision != "16-mixed":
        return {"precision": precision}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    return {"plugins": [lightning.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}


def fit(lightning, folder, owner, name, precision, clip="norm", epochs=EPOCHS, resume=None, **options):
    """Train the module for so many epochs altogether; the module and the trainer."""

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_model()

        def training_step(self, batch, _):
            x, y = batch
            return loss_of(self.net, x.to(self.dtype), y)

        def configure_optimizers(self):
            optimizer = make(owner, name, self.parameters(), **options)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=STEPS)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=CLIPPING[clip],
        gradient_clip_algorithm=clip,
        accumulate_grad_batches=ACCUMULATE,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **precision_options(lightning, precision),
    )
    trainer.fit(module, make_batches(), ckpt_path=resume)
    assert trainer.global_step == epochs * N_BATCHES // ACCUMULATE
    return module.net, trainer


@pytest.mark.parametrize("clip", CLIPPING)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_trainer_that_clips_and_accumulates_ends_as_with_torchs_class(lightning, tmp_path, name, precision, clip):
    ours, theirs = (fit(lightning, tmp_path, owner, name, precision, clip)[0] for owner in OWNERS.values())
    before = make_model(next(ours.parameters()).dtype)
    assert_same_training(ours, theirs, before, STEPS, PRECISIONS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_trainer_goes_on_from_its_checkpoint(lightning, tmp_path, name, precision):
    whole, theirs = (fit(lightning, tmp_path, owner, name, precision)[0] for owner in OWNERS.values())
    resumed = {}
    for kind, owner in OWNERS.items():
        file = tmp_path / f"{kind}.ckpt"
        _, trainer = fit(lightning, tmp_path, owner, name, precision, epochs=1)
        trainer.save_checkpoint(file)
        for other, heir in OWNERS.items():
            resumed[kind, other], _ = fit(lightning, tmp_path, heir, name, precision, resume=file)
    assert_same_bits(resumed["ours", "ours"], whole)
    before = make_model(next(whole.parameters()).dtype)
    for kinds in (("ours", "torch's"), ("torch's", "ours")):
        assert_same_training(resumed[kinds], theirs, before, STEPS, PRECISIONS[precision])


def train_with_fabric(folder, owner, name, precision, clip, resume=None, **options):
    """Half of the steps, saved, then the others; or from a checkpoint only the others. The model, and the checkpoint."""
    fabric_module = need("lightning.fabric")
    lightning_options = precision_options(fabric_module, precision)
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1, **lightning_options)
    net = make_model()
    model, optimizer = fabric.setup(net, make(owner, name, net.parameters(), **options))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=N_BATCHES)
    state = {"model": model, "optimizer": optimizer, "schedule": schedule, "step": 0}
    if resume:
        fabric.load(resume, state)
    file = folder / "fabric.ckpt"
    for i, (x, y) in enumerate(make_batches()):
        if i < state["step"]:
            continue
        if i == N_BATCHES // 2 and not resume:
            fabric.save(file, state | {"step": i})
        optimizer.zero_grad()
        fabric.backward(loss_of(model, x, y))
        fabric.clip_gradients(model, optimizer, **{"max_norm" if clip == "norm" else "clip_val": CLIPPING[clip]})
        optimizer.step()
        schedule.step()
    return net, file


@pytest.mark.parametrize("clip", CLIPPING)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", RECIPES)
def test_fabric_trains_saves_and_loads_as_with_torchs_class(tmp_path, name, precision, clip):
    folders = {kind: tmp_path / kind for kind in OWNERS}
    (ours, file), (theirs, foreign) = (
        train_with_fabric(folders[kind], owner, name, precision, clip) for kind, owner in OWNERS.items()
    )
    before = make_model(next(ours.parameters()).dtype)
    assert_same_training(ours, theirs, before, N_BATCHES, PRECISIONS[precision])
    resumed, _ = train_with_fabric(tmp_path, optim, name, precision, clip, file)
    assert_same_bits(resumed, ours)
    moved, _ = train_with_fabric(tmp_path, optim, name, precision, clip, foreign)
    assert_same_training(moved, theirs, before, N_BATCHES, PRECISIONS[precision])
