"""Lightning's Trainer and Fabric drive our classes as they do torch's."""

import pytest
import torch

import optim
from tests.optim.clients import (
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

EPOCHS, ACCUMULATE = 2, 2
STEPS = EPOCHS * N_BATCHES // ACCUMULATE
# How far two trainings may be apart, of the largest move of a tensor and for each step.
PRECISIONS = {"32-true": 1e-5, "bf16-mixed": 2e-3, "16-mixed": 1e-3, "bf16-true": 1e-2}
# Adam divides by the size of gradients, so clipping by norm shows with SGD.
CLIPPING = {"AdamW": {"clip_val": 0.02}, "SGD": {"max_norm": 0.2}}

pytestmark = [
    pytest.mark.slow,
    # Lightning 2.6 asks torch 2.13's trees as those of torch 2.8.
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning"),
    # A run that resumes writes its own checkpoints elsewhere.
    pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning"),
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


def fit(lightning, folder, owner, name, precision, resume=None, clip=True, **options):
    """Train for two epochs, with a checkpoint in `folder` after each, or from a checkpoint on; return the model."""

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
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=next(iter(CLIPPING[name].values())) if clip else None,
        gradient_clip_algorithm="norm" if "max_norm" in CLIPPING[name] else "value",
        accumulate_grad_batches=ACCUMULATE,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[lightning.callbacks.ModelCheckpoint(folder, save_top_k=-1)],
        **precision_options(lightning, precision),
    )
    trainer.fit(module, make_batches(), ckpt_path=resume)
    assert trainer.global_step == STEPS
    return module.net


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_trainer_clips_accumulates_saves_and_resumes_as_with_torchs_class(lightning, tmp_path, name, precision):
    whole, theirs = (fit(lightning, tmp_path / kind, owner, name, precision) for kind, owner in OWNERS.items())
    before = make_model(next(whole.parameters()).dtype)
    assert_same_training(whole, theirs, before, STEPS, PRECISIONS[precision])
    checkpoint = f"epoch=0-step={STEPS // EPOCHS}.ckpt"
    resumed, moved = (
        fit(lightning, tmp_path / f"from {kind}", optim, name, precision, resume=tmp_path / kind / checkpoint)
        for kind in OWNERS
    )
    assert_same_bits(resumed, whole)
    assert_same_training(moved, theirs, before, STEPS, PRECISIONS[precision])


@pytest.mark.parametrize("name", RECIPES)
def test_a_fused_step_scales_inside_and_is_not_clipped_as_with_torchs_class(lightning, tmp_path, name):
    ours, theirs = (
        fit(lightning, tmp_path / kind, owner, name, "16-mixed", clip=False, fused=True)
        for kind, owner in OWNERS.items()
    )
    assert_same_training(ours, theirs, make_model(), STEPS, PRECISIONS["16-mixed"])
    for kind, owner in OWNERS.items():
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
            fit(lightning, tmp_path / f"clipped, {kind}", owner, name, "16-mixed", fused=True)


def train_with_fabric(folder, owner, name, precision, resume=None):
    """Half of the steps, saved, then the others; or only those, from a checkpoint. The model, and the checkpoint."""
    fabric_module = need("lightning.fabric")
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1, **precision_options(fabric_module, precision))
    net = make_model()
    model, optimizer = fabric.setup(net, make(owner, name, net.parameters()))
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
        fabric.clip_gradients(model, optimizer, **CLIPPING[name])
        optimizer.step()
        schedule.step()
    return net, file


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", RECIPES)
def test_fabric_trains_saves_and_loads_as_with_torchs_class(tmp_path, name, precision):
    folders = {kind: tmp_path / kind for kind in OWNERS}
    (ours, file), (theirs, foreign) = (
        train_with_fabric(folders[kind], owner, name, precision) for kind, owner in OWNERS.items()
    )
    before = make_model(next(ours.parameters()).dtype)
    assert_same_training(ours, theirs, before, N_BATCHES, PRECISIONS[precision])
    resumed, _ = train_with_fabric(tmp_path, optim, name, precision, file)
    assert_same_bits(resumed, ours)
    moved, _ = train_with_fabric(tmp_path, optim, name, precision, foreign)
    assert_same_training(moved, theirs, before, N_BATCHES, PRECISIONS[precision])
