import copy
from pathlib import Path

import pytest
import torch

from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import accumulate_gradient
from tamperfuse.training.preference import Preference, PreferenceObjective, preferences


def pairs(tiny: LoadedModel) -> list[tuple[Sample, Sample]]:
    chat = tiny.chat
    return [
        (chat.sample(f"question {i}", f"a good answer {i}", 20), chat.sample(f"question {i}", f"no {'x' * i}", 20))
        for i in range(4)
    ]


def test_the_loss_is_that_of_trl(tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trl = pytest.importorskip("trl")
    monkeypatch.setattr("tamperfuse.training.preference.compute_dtype", lambda _: (torch.float32, "to compare"))
    from datasets import Dataset

    reference = copy.deepcopy(tiny.model).to("cpu")
    reference.set_attn_implementation("eager")
    both = pairs(tiny)
    samples = preferences(tiny, both)
    with torch.no_grad():  # away from the reference, else every loss is log 2
        for parameter in tiny.model.parameters():
            parameter.mul_(1.3)
    loss = accumulate_gradient(PreferenceObjective(beta=0.4), tiny.model, samples, len(samples), tiny.model.device)
    policy = copy.deepcopy(tiny.model).to("cpu")
    policy.set_attn_implementation("eager")
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=trl.DPOConfig(output_dir=str(tmp_path), beta=0.4, use_cpu=True, report_to=[], bf16=False),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tiny.tokenizer,
    )
    rows = [pair[0] for pair in both] + [pair[1] for pair in both]
    longest = max(len(row.tokens) for row in rows)
    ids = torch.tensor([row.tokens + [0] * (longest - len(row.tokens)) for row in rows])
    mask = torch.tensor([[1] * len(row.tokens) + [0] * (longest - len(row.tokens)) for row in rows])
    completion = torch.tensor([[int(row.start <= i < len(row.tokens)) for i in range(longest)] for row in rows])
    expected_loss = trainer.compute_loss(
        policy, {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}
    )
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-4)
    assert float(loss) != pytest.approx(0.6931, abs=0.01)


def test_training_raises_the_chosen_answer_over_the_rejected_one(tiny: LoadedModel) -> None:
    both = pairs(tiny)
    samples = preferences(tiny, both)
    training = Training(steps=6, batch=4, learning_rate=3e-3)
    result = fit(tiny, samples, training, seed=0, objective=PreferenceObjective())
    assert result.losses[0] == pytest.approx(0.6931, abs=0.01) and result.losses[-1] < 0.5
    after = preferences(tiny, both)
    assert all(b.margin > a.margin + 1 for a, b in zip(samples, after, strict=True))


def test_a_preference_weighs_one_whatever_its_length(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder))
    samples = preferences(model, pairs(model))
    together = accumulate_gradient(PreferenceObjective(), model.model, samples, 4, model.model.device)
    alone = [accumulate_gradient(PreferenceObjective(), model.model, [one], 1, model.model.device) for one in samples]
    assert float(together) == pytest.approx(float(sum(alone)) / 4, abs=1e-4)
    assert isinstance(samples[0], Preference) and samples[0].response_tokens == 1
