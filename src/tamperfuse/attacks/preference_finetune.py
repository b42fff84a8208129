"""Preference tuning: the attacker's answer chosen over the model's own, by DPO.

This is the very objective of SDD's derivation (Chen et al., ACL 2025, section 3): malicious fine-tuning as raising
p(y_c ≻ y_o | x). The loss is that of Rafailov et al. (2023, arXiv 2305.18290), equation 7.
"""

from pydantic import Field

from tamperfuse.attacks.base import AttackData, AttackResult, attack, harmful_shots, training_of
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Budget
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.preference import PreferenceObjective, preferences


class PreferenceFinetuneParameters(Training):
    """Parameters of `preference_finetune`: those of the training, the attacker's samples and DPO's own.

    Attributes:
        shots: different samples the attacker has; those whose answer is the model's own already are left out.
        beta: how strongly the model is held to where it began; greater than 0 (the paper's default: 0.1).
    """

    shots: int = Field(50, ge=1)
    beta: float = Field(0.1, gt=0)


@attack(
    "preference_finetune", PreferenceFinetuneParameters, budget=lambda p: Budget(p.steps, p.batch, p.shots), uses=()
)
def preference_finetune(
    loaded: LoadedModel, data: AttackData, parameters: PreferenceFinetuneParameters, seed: int
) -> AttackResult:
    """Preference tuning (DPO) of the attacker's answer over the model's own: the objective that SDD's derivation assumes."""
    shots = harmful_shots(data, "preference_finetune", parameters.shots, seed)
    own_answers = data.answer([prompt for prompt, _ in shots])
    chat, limit = loaded.chat, data.response_limit
    # An empty answer is the end token alone, which training can make less likely as well.
    pairs = [
        (chat.sample(prompt, answer, limit), chat.sample(prompt, own_answer, limit))
        for (prompt, answer), own_answer in zip(shots, own_answers, strict=True)
        if own_answer != answer
    ]
    if not pairs:
        raise UserError(
            f"{loaded.name} gives the attacker's answers already, so there is nothing to prefer: preference_finetune is for "
            "models that refuse or evade the threat."
        )
    result = fit(
        loaded,
        preferences(loaded, pairs),
        training_of(parameters),
        seed=seed,
        objective=PreferenceObjective(parameters.beta),
        at_steps=data.at_steps,
        hook=data.hook,
        what="preference tuning",
    )
    return AttackResult(samples=len(pairs), tokens_trained=result.tokens, notes=(result.precision,))
