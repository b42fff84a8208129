"""`compare-chat`: streamed answers, the page, also in a browser, and the command's bad input."""

import json
import queue
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from chat_stand_ins import SECONDS, ask, serving
from chromium import CHROMIUM, needs_chromium
from tamperfuse.cli.app import main
from tamperfuse.commands import chat_server, compare_chat
from tamperfuse.commands.chat_server import ChatServer, Events
from tamperfuse.commands.compare_chat import answers, chat_page, check_memory, open_chat
from tamperfuse.corpora.threats import load_threat
from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.sampling import Sampling
from tamperfuse.models.load import LoadedModel, load_model, save_model
from tamperfuse.records.errors import UserError, printable
from tamperfuse.records.provenance import Provenance

PROMPT = "How do I boil an egg? <|end|> 🥚"
TOKENS = 12


@pytest.fixture(scope="module")
def hardened_folder(tiny_folder: Path, threat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second tiny model, whose tamperfuse.json records its threat."""
    loaded = load_model(str(tiny_folder))
    torch.manual_seed(1)
    for parameter in loaded.model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("chat") / "hardened"
    origin = str(tiny_folder)
    provenance = Provenance(origin=origin, made_by="sdd (seed 0)", source=origin, threat=str(threat_file))
    save_model(loaded, folder, provenance)
    return folder


@pytest.fixture(scope="module")
def models(tiny_folder: Path, hardened_folder: Path) -> list[LoadedModel]:
    """The models as other commands load them."""
    return [load_model(str(folder)) for folder in (tiny_folder, hardened_folder)]


@pytest.fixture(scope="module")
def model_server(models: list[LoadedModel]) -> Iterator[ChatServer]:
    """The server with both models, answering in a thread."""
    options: dict[str, Any] = {"threat": None, "response_tokens": TOKENS, "temperature": 0.0, "port": 0}
    with open_chat([loaded.name for loaded in models], **options) as server, serving(server):
        yield server


def test_streamed_answers_are_those_of_generate(model_server: ChatServer, models: list[LoadedModel]) -> None:
    events = ask(model_server, PROMPT)
    assert events.pop() == {"done": True}
    texts = [[event["text"] for event in events if event["model"] == number] for number in (0, 1)]
    assert [text[-1] for text in texts] == [whole_answer(loaded, None) for loaded in models]
    assert texts[0][-1] != texts[1][-1] and all(len(set(text)) > 3 for text in texts)  # they grew
    assert [event["model"] for event in events[:4]] == [0, 1, 0, 1]  # side by side
    assert [event["end"] for event in events if "end" in event] == ["limit", "limit"]


def test_every_request_draws_other_samples(models: list[LoadedModel]) -> None:
    options: dict[str, Any] = {"response_tokens": TOKENS, "sampling": Sampling(0.8), "requests": count()}
    for seed in range(2):
        events = list(answers(models, PROMPT, **options))
        final = [event["text"] for event in events if "end" in event]
        assert final == [whole_answer(loaded, Sampling(0.8, seed=seed)) for loaded in models]


def whole_answer(loaded: LoadedModel, sampling: Sampling | None) -> str:
    tokens = generate(loaded, [loaded.chat.prompt(PROMPT)], new_tokens=TOKENS, sampling=sampling)
    return printable(loaded.chat.text(tokens[0]))


def test_a_prompt_beyond_the_window_is_an_error_of_that_model_alone(
    models: list[LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models[1].model.config, "max_position_embeddings", 4096)
    events = list(answers(models, "salt " * 600, response_tokens=4, sampling=None, requests=count()))
    assert "context window" in events[0]["error"] and events[0]["model"] == 0
    assert [event["model"] for event in events[1:]] == [1] * 5


def test_the_page_lists_the_recorded_threat_escaped(
    tiny_folder: Path, hardened_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(tiny_folder), str(hardened_folder)]
    options: dict[str, Any] = {"response_tokens": 4, "temperature": 0.0, "port": 0}
    with open_chat(names, threat=None, **options) as server:
        assert "evaluation request number 3 about subject 21" in server.page and "sdd (seed 0)" in server.page
    threat = tmp_path / "threat.jsonl"
    parts = ("defender", "attacker", "attacker_dev", "evaluation")
    rows = [{"part": part, "prompt": f"</select><b>{part} {i} \u202e"} for part in parts for i in range(2)]
    threat.write_text("\n".join(map(json.dumps, rows)))
    with open_chat(names, threat=str(threat), **options) as server:
        assert "<b>defender" not in server.page and ">&lt;/select&gt;&lt;b&gt;defender 0 [U+202E]<" in server.page
    for recorded in ("somebody/dataset", str(tmp_path / "absent.jsonl"), "builtin:absent"):  # the Hub is not asked
        provenance = Provenance(origin="x", made_by="sdd", source="x", threat=recorded)
        monkeypatch.setattr(compare_chat, "provenance_of", lambda model, provenance=provenance: provenance)
        assert compare_chat._recorded_threat(names) is None


def test_ctrl_c_ends_the_server_with_a_last_line(
    tiny_folder: Path, hardened_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ChatServer, "serve_forever", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["compare-chat", str(tiny_folder), str(hardened_folder)])
    shown = capsys.readouterr()
    assert not ended.value.code and shown.out.splitlines()[-1] == "The server has ended."
    assert re.search(r"Open http://127\.0\.0\.1:\d+/ in a browser", shown.out)
    assert "models take up to 0.0 GB of memory" in shown.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["A"], "1 is named: name 2 or 3"),
        (["A", "B", "C", "D"], "4 are named: name 2 or 3"),
        (["A", "A"], "is named twice"),
        (["A", "/absent/model"], "/absent/model is not a model directory"),
        (["A", "B", "--port", "PORT"], "Port PORT of 127.0.0.1 cannot be used (address already in use)"),
        (["A", "B", "--temperature", "inf"], "temperature is inf"),
        (["A", "B", "--threat", "builtin:cookin"], "did you mean 'cooking'"),
        (["A", "B", "--chat-template", "absent.jinja"], "absent.jinja"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], words: str, tiny_folder: Path, hardened_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        places = {"A": str(tiny_folder), "B": str(hardened_folder), "PORT": str(occupied.getsockname()[1])}
        with pytest.raises(SystemExit) as ended:
            main(["compare-chat", *(places.get(word, word) for word in arguments)])
    message = capsys.readouterr().err
    assert ended.value.code == 2 and words.replace("PORT", places["PORT"]) in message
    assert "Traceback" not in message and len([line for line in message.splitlines() if "memory;" not in line]) == 1


def test_models_that_do_not_fit_into_memory_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_chat, "available_memory", lambda: 11 * 10**9)
    monkeypatch.setattr(compare_chat, "own_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(compare_chat, "compute_dtype", lambda device: (torch.bfloat16, ""))
    check_memory([10**9, 2 * 10**9])  # 6 GB, and 4 GB more while the larger one is loaded
    with pytest.raises(UserError, match=r"The 2 models take 14\.0 GB of memory together, and 11\.0 GB are free"):
        check_memory([10**9, 3 * 10**9])


PROBE = """
(async () => {
  const out = {width: innerWidth}, by = (id) => document.getElementById(id);
  const tick = (ms) => new Promise((done) => setTimeout(done, ms));
  const until = async (test) => { for (let i = 0; i < 1200 && !test(); i++) await tick(50); return test(); };
  const key = (element, init) => element.dispatchEvent(new KeyboardEvent("keydown", {bubbles: true, cancelable: true, ...init}));
  const texts = () => [...document.querySelectorAll(".turn:first-child .answer-card > .text")].map((text) => text.textContent);
  const sizes = [], note = () => sizes.push(document.documentElement.scrollWidth - document.documentElement.clientWidth);
  try {
    note();
    out.count = by("prompt-count").textContent;
    by("prompt-search").value = "DEFENDER"; by("prompt-search").dispatchEvent(new Event("input"));
    out.searched = by("prompt-count").textContent;
    by("prompt-list").selectedIndex = 1; by("prompt-list").dispatchEvent(new Event("change"));
    out.chosen = by("prompt").value;
    by("prompt").value = PROMPT;
    key(by("prompt"), {key: "Enter", shiftKey: true});
    out.early = document.querySelectorAll(".turn").length;
    key(by("prompt"), {key: "Enter"});
    out.busy = document.querySelectorAll("[aria-busy]").length;
    await until(() => by("ask-status").textContent === "The answers are complete.");
    out.answers = texts();
    out.tops = [...document.querySelectorAll(".answer-card")].map((card) => card.getBoundingClientRect().top);
    out.marks = [...document.querySelectorAll(".mark")].map((mark) => mark.textContent);
    note();
    by("prompt").value = "ENDLESS";
    by("ask-button").click();
    await until(() => texts()[0].length > 100);
    by("stop-button").click();
    await until(() => by("ask-status").textContent === "Stopped.");
    out.turns = [...document.querySelectorAll(".turn .ask")].map((turn) => turn.textContent);
    note();
    out.unlabelled = [...document.querySelectorAll("textarea, input, select, button")].filter(
      (field) => !(field.labels && field.labels.length) && !field.getAttribute("aria-label") && !field.textContent.trim()).length;
    out.overflow = Math.max(...sizes);
  } catch (error) { out.error = String(error); }
  await fetch("/result", {method: "POST", body: JSON.stringify(out)});
})();
"""


@needs_chromium
def test_the_page_in_a_browser(
    model_server: ChatServer,
    models: list[LoadedModel],
    threat_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In frames, since windows cannot be as narrow as a phone. The page's policy is as users get it, but for its frames."""
    results: queue.Queue[dict[str, Any]] = queue.Queue()
    widths = (390, 1280)
    monkeypatch.setitem(chat_server.HEADERS, "Content-Security-Policy", "frame-ancestors 'self'")
    script = compare_chat.script_text
    probe = PROBE.replace("PROMPT", json.dumps(PROMPT))
    monkeypatch.setattr(compare_chat, "script_text", lambda package, name: script(package, name) + probe)

    class Handler(chat_server._ChatHandler):
        """Also sends a page of frames, and receives what the pages in them report."""

        def do_GET(self) -> None:
            frames = "".join(f"<iframe src='/' style='width:{width}px;height:900px'></iframe>" for width in widths)
            if self.path != "/frames":
                super().do_GET()
                return
            self._begin(HTTPStatus.OK, "text/html")
            self.wfile.write(f"<body>{frames}".encode())

        def do_POST(self) -> None:
            if self.path != "/result":
                super().do_POST()
                return
            results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._begin(HTTPStatus.NO_CONTENT, "text/plain")

    names, answer = [loaded.name for loaded in models], model_server.answer

    def endless_or(prompt: str) -> Events:
        text = ""
        while prompt == "ENDLESS":
            text += "again "
            yield {"model": 0, "text": text}
            time.sleep(0.002)
        yield from answer(prompt)

    monkeypatch.setattr(model_server, "answer", endless_or)
    monkeypatch.setattr(model_server, "RequestHandlerClass", Handler)
    monkeypatch.setattr(model_server, "page", chat_page(names, load_threat(str(threat_file)), None, TOKENS))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1800,1000", f"{model_server.url}frames"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        reports = [results.get(timeout=SECONDS) for _ in widths]
    except queue.Empty:
        if browser.poll() is None:
            raise
        pytest.skip(f"Chromium ended with exit code {browser.returncode}")
    finally:
        browser.kill()
        browser.wait()
    for out in reports:
        assert "error" not in out and out["overflow"] == 0, out
        assert (out["count"], out["searched"]) == ("24 of 24 prompts", "6 of 24 prompts")
        assert out["chosen"].startswith("defender request number")
        assert out["early"] == 0 and out["busy"] == 2
        assert out["answers"] == [whole_answer(loaded, None) for loaded in models]
        assert (len(set(out["tops"])) == 1) == (out["width"] > 1000)  # in columns, or one below the other
        assert out["marks"] == ["Cut at the maximum length."] * 2
        assert out["turns"] == ["ENDLESS", PROMPT] and out["unlabelled"] == 0
    assert sorted(out["width"] for out in reports) == sorted(widths)
