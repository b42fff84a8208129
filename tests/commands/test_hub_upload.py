"""`harden --push-to-hub` against a local server that answers as the Hub does: refusals before the training, upload after it."""

import base64
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tamperfuse.cli.app import main
from tamperfuse.commands import harden
from tamperfuse.commands.hub_upload import prepare_upload, upload
from tamperfuse.records.errors import UserError

REPOSITORY = "someone/hardened"


class Hub:
    """A server that answers as the Hub does, with one repository.

    Attributes:
        status: of the answers to some requests, by a part of their path; 200 for the others.
        private: whether the repository is.
        calls: method and path of every request.
        bodies: of the POST requests, by path.
        files: content of the uploaded files, by name.
    """

    def __init__(self) -> None:
        self.status: dict[str, int] = {}
        self.private = True
        self.calls: list[str] = []
        self.bodies: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(b"")

            def do_POST(self) -> None:
                self.answer(self.rfile.read(int(self.headers["Content-Length"])))

            def answer(self, body: bytes) -> None:
                hub.calls.append(f"{self.command} {self.path}")
                status = next((status for part, status in hub.status.items() if part in self.path), 200)
                if self.headers["Authorization"] != "Bearer hf_valid":
                    status = 401
                content = json.dumps(hub.reply(self.path, body) if status == 200 else {"error": "refused"}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def reply(self, path: str, body: bytes) -> Any:
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitUrl": f"{self.url}/{REPOSITORY}/commit/0", "commitOid": "0" * 40}
        if body:
            self.bodies[path] = json.loads(body)
        if "/preupload/" in path:
            paths = [file["path"] for file in self.bodies[path]["files"]]
            return {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
        return {
            "name": "someone",
            "url": f"{self.url}/{REPOSITORY}",
            "id": REPOSITORY,
            "sha": "0" * 40,
            "private": self.private,
            "siblings": [],
            "errors": [],
            "warnings": [],
        }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, with a token, as the Hub that huggingface_hub calls."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_valid")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    Thread(target=server.http.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_a_repository_is_created_private_and_the_right_to_write_is_checked(hub: Hub) -> None:
    prepare_upload(REPOSITORY)
    created = hub.bodies["/api/repos/create"]
    assert (created["organization"], created["name"], created["visibility"]) == ("someone", "hardened", "private")
    assert f"GET /api/models/{REPOSITORY}/auth-check/write" in hub.calls


@pytest.mark.parametrize("name", ["hardened", "a/b/c", "", "a/b--c", "a /b", "/b", "a/b.git"])
def test_a_malformed_name_is_refused(hub: Hub, name: str) -> None:
    with pytest.raises(UserError, match="write OWNER/NAME"):
        prepare_upload(name)
    assert not hub.calls


def test_without_the_hub_or_a_token_nothing_is_called(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        patched.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        prepare_upload(REPOSITORY)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="there is none: log in with `hf auth login`"):
        prepare_upload(REPOSITORY)
    assert not hub.calls


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"whoami": 401}, "does not accept the token"),
        ({"repos/create": 403, "api/models": 404}, f"may not create {REPOSITORY} or write to it"),
        ({"auth-check": 403}, f"may not create {REPOSITORY} or write to it"),
        ({"repos/create": 500}, "answers with status 500: try again later"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(hub: Hub, status: dict[str, int], message: str) -> None:
    hub.status = status
    with pytest.raises(UserError, match=message):
        prepare_upload(REPOSITORY)


def test_an_existing_repository_that_may_only_be_read_is_refused(hub: Hub) -> None:
    """huggingface_hub takes a refused creation of a repository that exists for a success."""
    hub.status = {"repos/create": 403, "auth-check": 403}
    with pytest.raises(UserError, match="write permission"):
        prepare_upload(REPOSITORY)


def test_a_public_repository_is_refused(hub: Hub) -> None:
    hub.private = False
    with pytest.raises(UserError, match="is public, so --push-to-hub would publish the weights"):
        prepare_upload(REPOSITORY)


def test_a_hub_that_cannot_be_reached_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot be reached \(.+\): go online"):
        prepare_upload(REPOSITORY)


def arguments(model: Path, threat: Path, benign: Path, out: Path) -> list[str]:
    words = f"harden {model} --defense refusal --threat {threat} --benign {benign} --set steps=1 --set batch=2"
    return [*words.split(), "--out", str(out), "--push-to-hub", REPOSITORY]


@pytest.mark.usefixtures("quick_judging")
def test_the_hardened_model_is_uploaded_and_a_failed_upload_leaves_it(
    hub: Hub,
    tiny_folder: Path,
    threat_file: Path,
    benign_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(arguments(tiny_folder, threat_file, benign_file, out))
    assert not ended.value.code
    assert {"model.safetensors", "tokenizer.json", "README.md", "tamperfuse.json"} <= hub.files.keys()
    record = json.loads(hub.files["tamperfuse.json"])
    assert (record["origin"], record["threat"]) == (f".../{tiny_folder.name}", f".../{threat_file.name}")
    folders = {str(path.parent).encode() for path in (tiny_folder, threat_file, out)}
    assert not [name for name, content in hub.files.items() if any(folder in content for folder in folders)]
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    assert json.loads(written.pop("tamperfuse.json"))["origin"] == str(tiny_folder), (
        "the folder itself can be used here"
    )
    assert written.items() <= hub.files.items() and len(hub.files) == len(written) + 1

    hub.status = {"preupload": 403}
    with pytest.raises(UserError, match=re.escape(f"hf upload {REPOSITORY} {out} . --exclude tamperfuse.json")):
        upload(out, REPOSITORY)
    assert (out / "model.safetensors").exists()


def test_an_interrupted_upload_says_where_the_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        upload(tmp_path, REPOSITORY)
    assert f"complete in {tmp_path}; upload it with: hf upload" in caplog.text


def test_the_command_refuses_before_the_training_with_exit_code_2(
    hub: Hub,
    tiny_folder: Path,
    threat_file: Path,
    benign_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    monkeypatch.setattr(harden, "prepare_data", lambda *_, **__: pytest.fail("the training began"))
    with pytest.raises(SystemExit) as ended:
        main(arguments(tiny_folder, threat_file, benign_file, tmp_path / "out"))
    assert ended.value.code == 2
    assert "does not accept the token" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
