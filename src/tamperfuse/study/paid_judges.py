"""Judges that have to be available, and those that cost something: what is checked and estimated before a run computes anything.

A run may train for hours before its last judge reads a response. So whatever such a judge needs (a package, a key) is checked at
the start, and the requests that it will send are estimated from the plan, where the responses do not exist yet.
"""

from collections.abc import Collection, Iterator, Sequence

from tamperfuse.evaluation.judges import Answer
from tamperfuse.study.context import StudyContext
from tamperfuse.study.further_judges import FURTHER_JUDGE
from tamperfuse.study.judging import Judging
from tamperfuse.study.node import Node

CHARACTERS_PER_TOKEN = 4


def check_judges(context: StudyContext, nodes: Sequence[Node], done: Collection[str]) -> None:
    """Check that every judge with verdicts left to give can be used.

    Args:
        context: of the study.
        nodes: that will run.
        done: keys of those with a result.

    Raises:
        UserError: one of them cannot, such as an endpoint without a key.
    """
    for judging, _ in _judges_left(context, nodes, done):
        judging.check()


def request_estimates(context: StudyContext, nodes: Sequence[Node], done: Collection[str]) -> list[str]:
    """What every judge that costs something will cost at most if it can decide at once, in a sentence each.

    The judge's own estimate is taken of as many distinct responses of full length, to the longest prompt, as the plan has. Equal
    responses are judged once, so it is an upper bound.

    Args:
        context: of the study.
        nodes: that will run.
        done: keys of those with a result.
    """
    sentences = []
    for judging, count in _judges_left(context, nodes, done):
        if judging.traits.estimate is not None:
            prompts = [*judging.threat.prompts, *(prompt.prompt for prompt in judging.harmless)]
            responses = _placeholders(count, max(map(len, prompts)), judging.response_tokens)
            sentence = judging.traits.estimate(responses, judging.parameters)
            name = judging.name or judging.judge.judge
            sentences.append(f"Judge {name}, at most, if every reply can be parsed: {sentence}")
    return sentences


def _judges_left(context: StudyContext, nodes: Sequence[Node], done: Collection[str]) -> Iterator[tuple[Judging, int]]:
    """Every judge with verdicts left to give, and the number of responses that wait for them."""
    counts: dict[str, int] = {}
    for node in {node.key: node for node in nodes if node.key not in done}.values():
        if node.kind == FURTHER_JUDGE:
            name, observed = node.about["judge"], node.parents[0]
        elif node.kind in ("judge", "search"):  # a search judges its trials itself
            name, observed = "", node.parents[0] if node.kind == "judge" else node
        else:
            continue
        counts[name] = counts.get(name, 0) + observed.responses
    for name, count in counts.items():
        yield context.further_judging(name) if name else context.judging, count


def _placeholders(count: int, prompt_characters: int, response_tokens: int) -> list[Answer]:
    """So many different responses of the longest length to prompts of the longest one."""
    prompt, length = "p" * prompt_characters, response_tokens * CHARACTERS_PER_TOKEN
    return [Answer(prompt, str(i).rjust(length, "r")) for i in range(count)]
