"""A model under attack: a tiny one with small, made-up data, which records what the hook saw at each step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tamperfuse.attacks import ATTACKS, AttackData, AttackResult
from tamperfuse.evaluation.generate import generate
from tamperfuse.models.load import LoadedModel, load_model


@dataclass(frozen=True)
class HookCall:
    """What the hook saw.

    Attributes:
        prompt: a prompt, as the model's chat rendered it.
        changed: whether any weight had changed.
    """

    prompt: str
    changed: bool


@dataclass
class AttackedModel:
    """A tiny model under attack.

    Attributes:
        loaded: the model.
        folder: its checkpoint before any attack.
        before: its weights before any attack.
        hook_calls: by step.
        response_limit: longest response to train on, in tokens.
    """

    loaded: LoadedModel
    folder: str
    before: dict[str, torch.Tensor] = field(init=False)
    hook_calls: dict[int, HookCall] = field(default_factory=dict)
    response_limit: int = 16

    def __post_init__(self) -> None:
        self.before = {name: p.detach().clone() for name, p in self.loaded.model.named_parameters()}

    def fresh(self) -> "AttackedModel":
        """The same model before any attack."""
        return AttackedModel(load_model(self.folder), self.folder)

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
            response_limit=self.response_limit,
            at_steps=at_steps,
            hook=self.hook,
        )

    def answer(self, prompts: Sequence[str]) -> list[str]:
        chat = self.loaded.chat
        tokens = generate(self.loaded, [chat.prompt(p) for p in prompts], new_tokens=8)
        return [chat.text(answer) for answer in tokens]

    def hook(self, step: int) -> None:
        assert step not in self.hook_calls, "the hook is called once for a step"
        weights = self.loaded.model.named_parameters()
        changed = any(not torch.equal(p.detach().float(), self.before[name].to(p.dtype).float()) for name, p in weights)
        prompt = self.loaded.tokenizer.decode(self.loaded.chat.prompt("this prompt"))
        self.hook_calls[step] = HookCall(prompt, changed)

    def changed(self) -> set[str]:
        """Names of the parameters that have changed; none may have been added or removed."""
        now = dict(self.loaded.model.named_parameters())
        assert now.keys() == self.before.keys()
        assert all(p.dtype == torch.float32 and p.requires_grad for p in now.values())
        return {name for name, p in now.items() if not torch.equal(p.detach(), self.before[name])}


@pytest.fixture
def attacked(tiny: LoadedModel, tiny_folder: Path) -> AttackedModel:
    return AttackedModel(tiny, str(tiny_folder))
