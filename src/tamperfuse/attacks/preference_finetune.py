"""Preference tuning with DPO: the attacker's answer is preferred to the model's original answer.

SDD's derivation (Chen et al., ACL 2025, arXiv 2507.21182, section 3) models malicious fine-tuning as an increase of
p(y_c ≻ y_o | x), which this attack trains directly. The loss is DPO's (Rafailov et al., 2023, arXiv 2305.18290, equation 7).
"""

from pydantic import Field

from tamperfuse.attacks.base import TRAINING_SEARCH, AttackData, AttackResult, attack, harmful_shots, training_of
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Budget
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.preference import PreferenceObjective, preferences


class PreferenceFinetuneParameters(Training):
    """Parameters of `preference_finetune`: those of the training, the attacker's samples and DPO's β.

    Attributes:
        shots: distinct harmful samples; a sample is left out if the model already gives the attacker's answer.
        beta: strength of the implicit KL penalty towards the model before the attack, greater than 0 (0.1 in the paper).
    """

    shots: int = Field(50, ge=1)
    beta: float = Field(0.1, gt=0)


@attack(
    "preference_finetune",
    PreferenceFinetuneParameters,
    budget=lambda p: Budget(p.steps, p.batch, p.shots),
    uses=(),
    search_over=TRAINING_SEARCH,
)
def preference_finetune(
    loaded: LoadedModel, data: AttackData, parameters: PreferenceFinetuneParameters, seed: int
) -> AttackResult:
    """Preference tuning (DPO): the attacker's answers are preferred to the model's original ones."""
    shots = harmful_shots(data, "preference_finetune", parameters.shots, seed)
    original_answers = data.answer([prompt for prompt, _ in shots])
    chat, limit = loaded.chat, data.response_limit
    # An empty original answer is a sample too: its only token is the end token.
    pairs = [
        (chat.sample(prompt, answer, limit), chat.sample(prompt, original, limit))
        for (prompt, answer), original in zip(shots, original_answers, strict=True)
        if original != answer
    ]
    if not pairs:
        raise UserError(
            f"{loaded.name} already gives the attacker's answers, so preference_finetune has nothing to train on: leave it "
            "out for models that comply with the threat."
        )
    result = fit(
        loaded,
        preferences(loaded, pairs),
        training_of(parameters),
        seed=seed,
        objective=PreferenceObjective(parameters.beta),
        at_steps=data.at_steps,
        hook=data.hook,
        label="preference tuning",
    )
    return AttackResult(samples=len(pairs), tokens_trained=result.tokens, notes=(result.precision,))
