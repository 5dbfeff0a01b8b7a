"""transformers.Trainer and accelerate drive our classes as they do torch's."""

import pytest
import torch

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

pytestmark = pytest.mark.slow

# transformers.Trainer: 16 texts in batches of 2, two of which make a step.
N_TEXTS, N_TOKENS, EPOCHS = 16, 6, 2
TRAINER_STEPS = EPOCHS * N_TEXTS // 4
PRECISIONS = {"no": 1e-5, "bf16": 2e-3}


def make_texts() -> list[dict]:
    texts = torch.randint(0, 20, (N_TEXTS, N_TOKENS), generator=torch.Generator().manual_seed(2))
    return [{"input_ids": text, "labels": text} for text in texts]


def make_gpt2(transformers) -> torch.nn.Module:
    """8-wide GPT-2 of random weights, with tied embeddings, on 20 tokens."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=N_TOKENS, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return transformers.GPT2LMHeadModel(config)


def train_with_trainer(folder, owner, name, precision, resume=None) -> torch.nn.Module:
    """Two epochs, with a checkpoint after the first, in `folder`; or the second only, from a checkpoint."""
    transformers = need("transformers")
    model = make_gpt2(transformers)
    optimizer = make(owner, name, model.parameters(), lr=1e-2)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 2, TRAINER_STEPS)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        bf16=precision == "bf16",
        use_cpu=True,
        save_strategy="epoch",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=make_texts(), optimizers=(optimizer, schedule))
    trainer.train(resume_from_checkpoint=resume and str(resume))
    assert trainer.state.global_step == TRAINER_STEPS
    return model


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", RECIPES)
def test_trainer_of_transformers_trains_saves_and_resumes_as_with_torchs_class(tmp_path, name, precision):
    ours, theirs = (train_with_trainer(tmp_path / kind, owner, name, precision) for kind, owner in OWNERS.items())
    before = make_gpt2(need("transformers"))
    assert_same_training(ours, theirs, before, TRAINER_STEPS, PRECISIONS[precision])
    for kind in OWNERS:
        checkpoint = tmp_path / kind / f"checkpoint-{TRAINER_STEPS // EPOCHS}"
        resumed = train_with_trainer(tmp_path / "resumed", OWNERS["ours"], name, precision, checkpoint)
        if kind == "ours":
            assert_same_bits(resumed, ours)
        assert_same_training(resumed, theirs, before, TRAINER_STEPS, PRECISIONS[precision])


def train_with_accelerate(folder, owner, name, precision, resume=None) -> torch.nn.Module:
    """Two epochs, saved in `folder` after the first; or the second only, from a folder."""
    accelerate = need("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(mixed_precision=precision, gradient_accumulation_steps=2, cpu=True)
    net = make_model()
    optimizer = make(owner, name, net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=N_BATCHES)
    model, optimizer, schedule, batches = accelerator.prepare(net, optimizer, schedule, make_batches())
    if resume:
        accelerator.load_state(str(resume))
    for epoch in range(1 if resume else 0, 2):
        if epoch == 1 and not resume:
            accelerator.save_state(str(folder))
        for x, y in batches:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, x, y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.2)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return net


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", RECIPES)
def test_accelerate_trains_saves_and_loads_as_with_torchs_class(tmp_path, name, precision):
    ours, theirs = (train_with_accelerate(tmp_path / kind, owner, name, precision) for kind, owner in OWNERS.items())
    before = make_model()
    assert_same_training(ours, theirs, before, N_BATCHES, PRECISIONS[precision])
    for kind in OWNERS:
        resumed = train_with_accelerate(tmp_path, OWNERS["ours"], name, precision, tmp_path / kind)
        if kind == "ours":
            assert_same_bits(resumed, ours)
        assert_same_training(resumed, theirs, before, N_BATCHES, PRECISIONS[precision])
