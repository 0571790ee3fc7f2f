"""Who may read what over HTTP: one request in, one answer out.

Pure.  A request is read from its head alone; whatever has a body, a foreign Host or Origin, no
token where one is wanted, or a shape that is not plain HTTP/1 is refused in so many words.  This
file knows neither sockets nor figures.

Source  RFC 9110 and 9112; a page in a browser reaches 127.0.0.1 by its own name ("DNS rebinding"),
which only the Host header shows.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from blackroad.digest import compare_digest

HEAD_BYTES_MAX: Final = 8 * 1024
HEADERS_MAX: Final = 64
TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
REASONS: Final[Mapping[int, str]] = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}

_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,1023}) HTTP/([0-9])\.([0-9])")
# One way to match only: spaces are cut off afterwards, for who asks here has proved nothing yet.
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):([\t -~\x80-\xff]*)")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z._-]{1,253})(?::([0-9]{1,5}))?")
_ONCE: Final = ("host", "authorization", "content-length", "origin")


class Request(NamedTuple):
    """The head of a request: `path` is without its query."""

    method: str
    path: str
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """What goes back."""

    code: int
    body: bytes
    content_type: str = TEXT
    # What a refusal has to name beside itself: the way to prove oneself, the methods there are.
    extra: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    """A request that gets no further."""

    def __init__(self, code: int, text: str, *extra: tuple[str, str]) -> None:
        super().__init__(text)
        self.answer = Answer(code, f"{text}\n".encode(), TEXT, extra)


class Door:
    """Which requests are let in.

    `names` are the host names by which this server may be asked for, beside its IP addresses; on
    loopback only loopback itself.  `token` is the secret that everything but /health asks for;
    empty asks for none.
    """

    def __init__(self, names: tuple[str, ...], token: str, *, loopback: bool) -> None:
        self._names = frozenset(name.lower().rstrip(".") for name in (*names, "localhost"))
        self._loopback = loopback
        self.token = token.encode()

    def check_origin(self, request: Request) -> None:
        """Refuse what a page of somebody else's makes a browser send.

        Raises  Refused.
        """
        host = request.headers.get("host", "")
        if not self._is_mine(host):
            raise Refused(403, "this server is not asked for by that name: see Host")
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host}".lower():
            raise Refused(403, "this server answers no page of another origin")
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refused(403, "this server answers no page of another site")

    def _is_mine(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name.lower().rstrip(".") in self._names
        return address.is_loopback or not self._loopback

    def proves(self, request: Request) -> bool:
        """Whether the request carries the token, or none is wanted.

        Cost  the same for every wrong token, as far as it has the right length.
        """
        if not self.token:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = compare_digest(given.strip().encode("utf-8", "replace"), self.token)
        return right and scheme.lower() == "bearer"


Route = Callable[[Request, bool], Answer]


class Routes:
    """What is served: by path, and `open_path` also to those who prove nothing."""

    def __init__(self, door: Door, routes: Mapping[str, Route], open_path: str) -> None:
        self._door = door
        self._routes = routes
        self._open_path = open_path

    def answer(self, head: bytes) -> tuple[Answer, bool]:
        """Answer one request; return also whether only its head is wanted."""
        try:
            request = parse(head)
            return self._routed(request), request.method == "HEAD"
        except Refused as refused:
            return refused.answer, False

    def _routed(self, request: Request) -> Answer:
        self._door.check_origin(request)
        proves = self._door.proves(request)
        readable = request.method in ("GET", "HEAD")
        if not proves and not (readable and request.path == self._open_path):
            raise Refused(
                401,
                "say who you are: `Authorization: Bearer TOKEN`, the token of metrics_token_file",
                ("WWW-Authenticate", 'Bearer realm="blackroad"'),
            )
        route = self._routes.get(request.path)
        if route is None:
            raise Refused(404, "there are " + ", ".join(self._routes))
        if not readable:
            raise Refused(405, "this server is only read from", ("Allow", "GET, HEAD"))
        return route(request, proves)


def parse(head: bytes) -> Request:
    """Read a request from all that comes before its first empty line.

    Raises  Refused where it is none, is too long, or says that a body follows.
    """
    lines = head.split(b"\r\n")
    found = _LINE.fullmatch(lines[0])
    if found is None:
        raise Refused(400, "this is no request of HTTP/1.1")
    if found[3] != b"1":
        raise Refused(505, "only HTTP/1.1 is spoken here")
    if len(lines) - 1 > HEADERS_MAX:
        raise Refused(431, f"more than {HEADERS_MAX} headers")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        pair = _HEADER.fullmatch(line)
        if pair is None:
            raise Refused(400, "one of the headers is none")
        name = pair[1].decode("ascii").lower()
        if name in headers and name in _ONCE:
            raise Refused(400, f"{name} is there twice")
        headers[name] = pair[2].strip(b" \t").decode("latin-1")
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise Refused(413, "a request here has no body")
    path = found[2].decode("ascii").partition("?")[0]
    return Request(found[1].decode("ascii"), path, headers)


def head_of(answer: Answer) -> bytes:
    """The head of an answer; every connection serves one request."""
    lines = [
        f"HTTP/1.1 {answer.code} {REASONS[answer.code]}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'",
        "Connection: close",
        *(f"{name}: {value}" for name, value in answer.extra),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
