"""A headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
STARTED, LOADED = 60.0, 60.0  # seconds to wait at most


class Browser:
    """One page of a Chromium. Console errors, exceptions and refused content are collected in ``errors``.

    Use it as a context; leaving it ends the process.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._left = ExitStack()
        self.errors: list[str] = []
        self._count = 0

    def __enter__(self) -> Browser:
        websockets = pytest.importorskip(
            "websockets.sync.client", reason="the browser is driven by websockets"
        )
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
        profile = f"--user-data-dir={self._folder.name}"
        words = [program, *OPTIONS, profile, "--remote-debugging-port=0", "about:blank"]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port, path = self._address()
            address = f"ws://127.0.0.1:{port}{path}"
            opened = websockets.connect(address, max_size=None, open_timeout=STARTED)
            self._socket = self._left.enter_context(opened)
            self._session: str | None = None
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Log", "Runtime"):
                self.call(f"{domain}.enable")
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.close()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def _address(self) -> tuple[str, str]:
        file, until = Path(self._folder.name) / "DevToolsActivePort", time.monotonic() + STARTED
        while time.monotonic() < until and self._process.poll() is None:
            if file.is_file() and len(lines := file.read_text().split()) == 2:
                return lines[0], lines[1]
            time.sleep(0.05)
        raise TimeoutError("the browser did not open its port")

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a method of the protocol."""
        self._count += 1
        request: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        self._socket.send(json.dumps(request | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=LOADED))
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._event(answer.get("method", ""), answer.get("params", {}))

    def _event(self, method: str, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"]))
        if method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.errors.append(json.dumps(about["args"]))
        if method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])

    def open(self, page: Path, width: int = 1280, scheme: str = "light", media: str = "screen") -> None:
        """Load a file, with a window of this width, light or dark, on a screen or for print."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.call("Page.navigate", url=page.as_uri())
        until = time.monotonic() + LOADED
        ready = "document.readyState === 'complete' && location.protocol === 'file:'"
        while not self.value(ready):
            assert time.monotonic() < until, f"{page} did not load"
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        asked = {"returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", expression=expression, **asked)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key on the focused element."""
        text = {"Enter": "\r"}.get(key, "")
        code = {"Enter": 13, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            about = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
            self.call("Input.dispatchKeyEvent", **about)
