"""Scripts in a page, run by Chromium. A page posts its result to a local server: a test waits as long as the page needs."""

import queue
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
SECONDS = 180
# The page is in a frame of its own width, because a window of Chromium has a least width.
OUTER = """<!doctype html><iframe src="{page}" style="width:{width}px;height:900px;border:0"></iframe>
<script>const report = (text) => fetch("/result", {{method: "POST", body: text}});
addEventListener("message", (event) => report(event.data));
const frame = document.querySelector("iframe");{script}</script>"""


def in_page(page: Path, script: str, folder: Path, width: int = 390, *, dark: bool = False) -> str:
    """What a script passes to `report` in a page of this width in pixels. The page's policy, which forbids it, is removed."""
    html = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page.read_text(encoding="utf-8"))
    before, _, after = html.rpartition("</body>")
    script = f"const report = (text) => parent.postMessage(text, '*');{script}"
    (folder / "probed.html").write_text(f"{before}<script>{script}</script></body>{after}", encoding="utf-8")
    return _in_frame(OUTER.format(page="probed.html", width=width, script=""), folder, dark=dark)


def beside_page(page: Path, script: str, folder: Path, width: int = 390, *, dark: bool = False) -> str:
    """What a script beside a page, `frame.contentDocument`, passes to `report`. The page's policy is in force."""
    shutil.copyfile(page, folder / "looked_at.html")
    return _in_frame(OUTER.format(page="looked_at.html", width=width, script=script), folder, dark=dark)


def _in_frame(outer: str, folder: Path, *, dark: bool) -> str:
    (folder / "outer.html").write_text(outer, encoding="utf-8")
    return reported("outer.html", folder, dark=dark)


def reported(page: str, folder: Path, *, dark: bool = False) -> str:
    """The first text that a page of a folder posts to `/result`; skips the test where Chromium does not start."""
    texts: queue.Queue[str] = queue.Queue()

    class Handler(SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.put(self.rfile.read(int(self.headers["Content-Length"])).decode("utf-8"))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=1400,1000",
        ]
        if dark:
            command += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]
        command += [f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0"]  # the port keeps it running
        command.append(f"http://127.0.0.1:{server.server_port}/{page}")
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(SECONDS):
                try:
                    return texts.get(timeout=1)
                except queue.Empty:
                    if browser.poll() is not None:
                        pytest.skip(f"Chromium ended with exit code {browser.returncode}")
            raise AssertionError(f"the page reported nothing within {SECONDS} s")
        finally:
            browser.kill()
            browser.wait()
            server.shutdown()
