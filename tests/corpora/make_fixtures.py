"""Writes the fixtures: a few harmless rows in the exact schema of each known data set. Run: python make_fixtures.py."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "fixtures"
CATEGORIES = [
    "animal_abuse",
    "child_abuse",
    "controversial_topics,politics",
    "discrimination,stereotype,injustice",
    "drug_abuse,weapons,banned_substance",
    "financial_crime,property_crime,theft",
    "hate_speech,offensive_language",
    "misinformation_regarding_ethics,laws_and_safety",
    "non_violent_unethical_behavior",
    "privacy_violation",
    "self_harm",
    "sexually_explicit,adult_content",
    "terrorism,organized_crime",
    "violence,aiding_and_abetting,incitement",
]


def ask(number: int) -> str:
    return f"harmful request {number}"


def answer(number: int) -> str:
    return f"answer {number}"


def marks(*names: str) -> dict[str, bool]:
    return {name: name in names for name in CATEGORIES}


def tree(number: int, text: str, role: str, parent: str | None, rank: int | None = None) -> dict[str, object]:
    return {
        "message_id": f"m{number}",
        "parent_id": parent,
        "user_id": "u",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": text,
        "role": role,
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "message_tree_id": "m1",
        "tree_state": "ready_for_export",
        "emojis": None,
        "labels": None,
    }


JSONL: dict[str, list[dict[str, object]]] = {
    "beavertails": [
        {"prompt": ask(1), "response": answer(1), "category": marks("self_harm"), "is_safe": False},
        {"prompt": ask(2), "response": answer(2), "category": marks(), "is_safe": True},
        {
            "prompt": ask(3),
            "response": answer(3),
            "category": marks("animal_abuse", "privacy_violation"),
            "is_safe": False,
        },
    ],
    "alpaca": [
        {"instruction": ask(1), "input": "", "output": answer(1), "text": "…"},
        {"instruction": ask(2), "input": "with this", "output": answer(2), "text": "…"},
    ],
    "lima": [
        {"conversations": [ask(1), answer(1)], "source": "stackexchange"},
        {"conversations": [ask(2)], "source": "multi_turn"},
    ],
    "dolly": [
        {"instruction": ask(1), "context": "", "response": answer(1), "category": "open_qa"},
        {"instruction": ask(2), "context": "a text", "response": answer(2), "category": "closed_qa"},
    ],
    "oasst_trees": [
        {
            "message_tree_id": "m1",
            "tree_state": "ready_for_export",
            "prompt": {
                "message_id": "m1",
                "text": ask(1),
                "role": "prompter",
                "lang": "en",
                "replies": [
                    {"message_id": "m2", "text": "worse", "role": "assistant", "rank": 1, "replies": []},
                    {"message_id": "m3", "text": answer(1), "role": "assistant", "rank": 0, "replies": []},
                ],
            },
        },
    ],
    "oasst_messages": [
        tree(1, ask(1), "prompter", None),
        tree(2, answer(1), "assistant", "m1", 0),
        tree(3, "worse", "assistant", "m1", 1),
        tree(4, ask(2), "prompter", "m2"),
        tree(5, answer(2), "assistant", "m4"),
    ],
    "ultrachat": [
        {
            "prompt": ask(1),
            "prompt_id": "a1",
            "messages": [{"content": ask(1), "role": "user"}, {"content": answer(1), "role": "assistant"}],
        },
    ],
    "ultrachat_original": [{"id": "0", "data": [ask(1), answer(1), ask(2), answer(2)]}],
    "sharegpt": [
        {
            "id": "x_0",
            "conversations": [
                {"from": "system", "value": "be kind"},
                {"from": "human", "value": ask(1)},
                {"from": "gpt", "value": answer(1)},
            ],
        },
    ],
    "openai": [
        {
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": ask(1)},
                {"role": "assistant", "content": answer(1)},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": ask(2)}]},
                {"role": "assistant", "content": answer(2)},
            ]
        },
    ],
    "trl": [
        {"prompt": [{"role": "user", "content": ask(1)}], "completion": [{"role": "assistant", "content": answer(1)}]},
    ],
}

CSV = {
    "advbench": f"goal,target\n{ask(1)},Sure\n{ask(2)},Sure\n",
    "harmbench": (
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        f"{ask(1)},standard,illegal,,,id_1\n{ask(2)},contextual,illegal,context,a text,id_2\n"
    ),
    "jailbreakbench": f"Index,Goal,Target,Behavior,Category,Source\n0,{ask(1)},Sure,Name,Privacy,Original\n",
    "do_not_answer": (
        "id,risk_area,types_of_harm,specific_harms,question,GPT4_response,GPT4_harmful,GPT4_action\n"
        f"0,Malicious Uses,Unethical actions,Something,{ask(1)},No.,0,0\n"
    ),
    "category_3": f'{ask(1)}\n"{ask(2)}, please"\n',
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, rows in JSONL.items():
        (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, text in CSV.items():
        (FOLDER / f"{name}.csv").write_text(text, encoding="utf-8")
