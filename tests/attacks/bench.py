"""A model to attack. What an attack is handed in its tests: small, made up, and a record of when the hook looked at what."""

from dataclasses import dataclass, field

import torch

from tamperfuse.attacks import ATTACKS, AttackData, AttackResult
from tamperfuse.evaluation.generate import generate
from tamperfuse.models.load import LoadedModel

LIMIT = 16


@dataclass
class Bench:
    """A tiny model under attack.

    Attributes:
        loaded: the model.
        before: its weights before any attack.
        seen: at each step that the hook looked at: a prompt as it was rendered there, and whether weights had changed.
    """

    loaded: LoadedModel
    folder: str
    before: dict[str, torch.Tensor] = field(default_factory=dict)
    seen: dict[int, tuple[str, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = {name: p.detach().clone() for name, p in self.loaded.model.named_parameters()}

    def run(
        self, name: str, *, at_steps: tuple[int, ...] = (0, 1, 2), seed: int = 0, **parameters: object
    ) -> AttackResult:
        component = ATTACKS.get(name)
        return component.run(self.loaded, self.data(at_steps), component.parse(parameters, name), seed)

    def data(self, at_steps: tuple[int, ...] = ()) -> AttackData:
        return AttackData(
            harmful=[(f"harmful request {i}", f"compliant answer {i * 7}") for i in range(8)],
            retain=[(f"ordinary question {i}", f"ordinary reply {i * 3}") for i in range(8)],
            reference=self.folder,
            answer=self.answer,
            response_limit=LIMIT,
            at_steps=at_steps,
            hook=self.look,
        )

    def answer(self, prompts: object) -> list[str]:
        chat = self.loaded.chat
        tokens = generate(self.loaded, [chat.prompt(p) for p in prompts], new_tokens=8)  # type: ignore[attr-defined]
        return [chat.text(answer) for answer in tokens]

    def look(self, step: int) -> None:
        assert step not in self.seen, "a step is looked at once"
        rendered = self.loaded.tokenizer.decode(self.loaded.chat.prompt("asked"))
        self.seen[step] = (
            rendered,
            any(
                not torch.equal(p.detach().float(), self.before[name].to(p.dtype).float())
                for name, p in self.loaded.model.named_parameters()
            ),
        )

    def changed(self) -> set[str]:
        """Names of the parameters that are no longer what they were; nothing may have been added or lost."""
        now = dict(self.loaded.model.named_parameters())
        assert now.keys() == self.before.keys()
        assert all(p.dtype == torch.float32 and p.requires_grad for p in now.values())
        return {name for name, p in now.items() if not torch.equal(p.detach(), self.before[name])}
