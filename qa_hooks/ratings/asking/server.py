"""The page of questions, on this machine only.

It listens on 127.0.0.1. Each request must name that host (so that no other site's name can be pointed here), and its
address must begin with a token that is new every time. Images are asked for by their number in a list; no path of a
request reaches the disk. Nothing is loaded from elsewhere, and no other page can frame it or send answers.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qa_hooks.ratings.asking.session import Session

HOSTS = ("127.0.0.1", "localhost", "[::1]")
SHOWN_AS_THEY_ARE = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".bmp": "image/bmp"
}  # fmt: skip
LARGEST_BODY = 4096
POLICY = "default-src 'none'; img-src 'self'; connect-src 'self'; {}; frame-ancestors 'none'; base-uri 'none'"


class AskingServer(ThreadingHTTPServer):
    """Serves one session; several tabs show the same question, and the first answer counts.

    Args:
        session: the questions.
        files: of the images, in the order of the session's names.
        port: 0 for one that is free.

    Raises:
        ValueError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, session: Session, files: Sequence[Path], port: int = 0) -> None:
        self.session, self.files, self.lock = session, list(files), threading.Lock()
        self.token = secrets.token_urlsafe(16)
        self.problem: str | None = None
        self.page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"port {port} cannot be used ({error}): another number, or none for a free one") from error

    @property
    def url(self) -> str:
        """Where the page is, with its token."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        asked, state = self.session.question, self.session.state()
        state["question"] = None
        if asked is not None:
            sides = (asked.a, asked.b) if asked.a_is_left else (asked.b, asked.a)
            state["question"] = {
                "number": asked.number, "left": sides[0], "right": sides[1], "reference": asked.reference
            }  # fmt: skip
        return state

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A tab that was closed in the middle of a picture is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: AskingServer
    server_version, sys_version = "qa-hooks", ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        place = self._place()
        if place == "":
            nonce = secrets.token_urlsafe(12)
            allowed = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
            self._send(self.server.page.replace("NONCE", nonce).encode(), "text/html; charset=utf-8", policy=allowed)
        elif place == "state":
            with self.server.lock:
                self._send_json(self.server.state())
        elif place is not None and place.startswith("image/"):
            self._send_image(place.removeprefix("image/"))
        elif place is not None:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        place = self._place()
        if place not in ("answer", "back"):
            if place is not None:
                self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            said = self._body()
            with self.server.lock:
                if place == "back":
                    kept = self.server.session.take_back()
                else:
                    kept = self.server.session.answer(said["question"], said["choice"])
                self._send_json({**self.server.state(), "kept": kept})
        except (ValueError, KeyError, TypeError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"the answer could not be written: {error}")

    def log_message(self, *_: Any) -> None:
        """The terminal is the rater's."""

    def _place(self) -> str | None:
        """What is asked for, after the token; None, and a refusal is sent, where host, origin or token are wrong."""
        host = (self.headers.get("Host") or "").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in HOSTS:
            self._refuse(HTTPStatus.FORBIDDEN, "this page is for this machine")
            return None
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            self._refuse(HTTPStatus.FORBIDDEN, "another page may not ask")
            return None
        _, token, place, *_ = [*urlsplit(self.path).path.split("/", 2), "", ""]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(
                HTTPStatus.FORBIDDEN, "the address has another token: take the one that the command has printed"
            )
            return None
        return place

    def _body(self) -> dict[str, Any]:
        if self.headers.get("Content-Type", "").partition(";")[0] != "application/json":
            raise ValueError("answers are JSON")
        length = int(self.headers.get("Content-Length", "-1"))
        if not 0 <= length <= LARGEST_BODY:
            self.close_connection = True
            raise ValueError("an answer is short")
        said = json.loads(self.rfile.read(length) or b"{}")
        if not isinstance(said, dict):
            raise ValueError("an answer is a JSON object")
        return said

    def _send_image(self, number: str) -> None:
        if not (number.isascii() and number.isdigit() and len(number) < 10 and int(number) < len(self.server.files)):
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            self._send(*picture(self.server.files[int(number)]))
        except (OSError, ValueError) as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _send_json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), "application/json")

    def _refuse(self, status: HTTPStatus, reason: str = "") -> None:
        self._send((reason or status.phrase).encode(), "text/plain; charset=utf-8", status=status)

    def _send(self, body: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK, policy: str = "") -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": POLICY.format(policy or "script-src 'none'"),
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        if status != HTTPStatus.OK:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def picture(path: Path) -> tuple[bytes, str]:
    """The bytes of an image for a browser and their kind: the file's own, or a PNG of a form that browsers lack."""
    if (kind := SHOWN_AS_THEY_ARE.get(path.suffix.lower())) is not None and path.is_file():
        return path.read_bytes(), kind
    import io

    from PIL import Image

    from qa_hooks.images import load_image

    pixels = load_image(path).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0]).save(file, "PNG")
    return file.getvalue(), "image/png"
