"""Who may read what over HTTP: rows of the abuse table about routes, methods, hosts and origins."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackroad.metrics.rules import (
    HEADERS_MAX,
    Answer,
    Door,
    Refused,
    Request,
    Routes,
    head_of,
    parse,
)

TOKEN = "correct-horse-battery"
PATHS = ("/metrics", "/health", "/sd")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW")
ODD_PATHS = ("/", "/nothing", "/metrics/", "/Metrics", "//metrics", "/health/../metrics", "/sd%00")


def served(request: Request, proves: bool) -> Answer:
    return Answer(200, f"{request.path} {proves}".encode())


def routes(token: str = TOKEN, *, loopback: bool = True) -> Routes:
    door = Door(("attic", "attic.local"), token, loopback=loopback)
    return Routes(door, dict.fromkeys(PATHS, served), "/health")


def ask(line: str = "GET /metrics", *, on: Routes | None = None, **headers: str) -> Answer:
    """One request from this machine, with the right token where nothing else is said."""
    given = {"Host": "127.0.0.1:7710", "Authorization": f"Bearer {TOKEN}", **headers}
    lines = [f"{line} HTTP/1.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in given.items() if value]
    answer, _ = (on or routes()).answer("\r\n".join(lines).encode("latin-1"))
    return answer


# --- tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", [*PATHS, *ODD_PATHS])
@pytest.mark.parametrize("authorization", ["", "Bearer wrong-horse-battery", f"Basic {TOKEN}"])
def test_without_the_token_nothing_but_health_is_open(
    path: str, method: str, authorization: str
) -> None:
    answer = ask(f"{method} {path}", Authorization=authorization)
    if path == "/health" and method in ("GET", "HEAD"):
        assert (answer.code, answer.body) == (200, b"/health False")
    else:
        assert answer.code == 401
        assert ("WWW-Authenticate", 'Bearer realm="blackroad"') in answer.extra


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", PATHS)
def test_with_the_token_all_routes_are_read_and_none_is_written(path: str, method: str) -> None:
    answer = ask(f"{method} {path}")
    if method in ("GET", "HEAD"):
        assert (answer.code, answer.body) == (200, f"{path} True".encode())
    else:
        assert answer.code == 405
        assert ("Allow", "GET, HEAD") in answer.extra


@pytest.mark.parametrize("path", ODD_PATHS)
def test_what_is_not_in_the_list_of_routes_is_not_there(path: str) -> None:
    assert ask(f"GET {path}").code == 404


@pytest.mark.parametrize(
    "given",
    [
        TOKEN[:-1],
        TOKEN + "x",
        TOKEN.upper(),
        "",
        "\xe9" * 21,
    ],
)
def test_a_token_is_right_to_the_last_letter(given: str) -> None:
    assert ask(Authorization=f"Bearer {given}").code == 401


def test_the_scheme_is_read_in_any_case() -> None:
    assert ask(Authorization=f"bearer {TOKEN}").code == 200


def test_a_query_is_no_part_of_the_path_and_holds_no_token() -> None:
    assert ask("GET /metrics?x=1").code == 200
    assert ask(f"GET /metrics?token={TOKEN}", Authorization="").code == 401


def test_where_no_token_is_set_none_is_wanted() -> None:
    assert ask(on=routes(""), Authorization="").body == b"/metrics True"
    assert ask("DELETE /metrics", on=routes(""), Authorization="").code == 405


# --- hosts and origins --------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7710",
        "127.0.0.1.evil.example",
        "attic.evil.example",
        "192.168.1.5:7710",
        "[2001:db8::1]",
        "",
        "127.0.0.1:7710@evil.example",
        "127.0.0.1 evil.example",
    ],
)
def test_on_loopback_a_foreign_host_is_refused_even_with_the_token(path: str, host: str) -> None:
    assert ask(f"GET {path}", Host=host).code == 403


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:7710",
        "localhost:1",
        "LOCALHOST",
        "[::1]:7710",
        "attic",
        "attic.local.",
    ],
)
def test_its_own_names_are_answered(host: str) -> None:
    assert ask(Host=host).code == 200


def test_beyond_loopback_any_address_is_its_own_but_no_foreign_name() -> None:
    wide = routes(loopback=False)
    assert ask(on=wide, Host="192.168.1.5:7710").code == 200
    assert ask(on=wide, Host="[2001:db8::1]:7710").code == 200
    assert ask(on=wide, Host="evil.example").code == 403


@pytest.mark.parametrize("line", ["GET /metrics", "POST /metrics", "DELETE /sd", "GET /health"])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:7710", "http://127.0.0.1:8080"]
)
def test_a_page_of_another_origin_is_refused(line: str, origin: str) -> None:
    assert ask(line, Origin=origin).code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_a_browser_that_comes_from_elsewhere_is_refused(site: str) -> None:
    assert ask(Sec_Fetch_Site=site).code == 403


def test_its_own_origin_and_a_typed_address_are_answered() -> None:
    assert ask(Origin="http://127.0.0.1:7710", Sec_Fetch_Site="same-origin").code == 200
    assert ask(Sec_Fetch_Site="none").code == 200


# --- shapes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"", 400),
        (b"GET /metrics", 400),
        (b"GET metrics HTTP/1.1", 400),
        (b"get /metrics HTTP/1.1", 400),
        (b"GET  /metrics HTTP/1.1", 400),
        (b"GET /metrics\tHTTP/1.1", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"GET /\xff HTTP/1.1", 400),
        (b"GET http://127.0.0.1/metrics HTTP/1.1", 400),
        (b"GET /" + b"a" * 1024 + b" HTTP/1.1", 400),
        (b"GET /metrics HTTP/2.0", 505),
        (b"GET /metrics HTTP/1.1\nHost: x", 400),
        (b"GET /metrics HTTP/1.1\r\nHost : x", 400),
        (b"GET /metrics HTTP/1.1\r\n Host: x", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\rY: z", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\x00", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nhOST: a", 400),
        (b"GET /metrics HTTP/1.1\r\nAuthorization: a\r\nAuthorization: b", 400),
        (b"GET /metrics HTTP/1.1\r\nContent-Length: 1", 413),
        (b"GET /metrics HTTP/1.1\r\nContent-Length: 1000000000", 413),
        (b"GET /metrics HTTP/1.1\r\nContent-Length: -1", 413),
        (b"GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked", 413),
        (b"GET /metrics HTTP/1.1" + b"\r\nX: y" * (HEADERS_MAX + 1), 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
def test_what_is_no_plain_request_is_refused(head: bytes, code: int) -> None:
    with pytest.raises(Refused) as caught:
        parse(head)
    assert caught.value.answer.code == code


def test_an_empty_body_is_none() -> None:
    assert parse(b"GET / HTTP/1.0\r\nContent-Length: 0\r\nX:  y \t").headers == {
        "content-length": "0",
        "x": "y",
    }


@given(st.binary(max_size=300))
def test_any_bytes_get_an_answer(head: bytes) -> None:
    answer, bare = routes().answer(head)
    assert answer.code in (400, 401, 403, 404, 405, 413, 431, 505)
    assert not bare
    assert b"\r\n\r\n" in head_of(answer)


def test_nothing_of_the_request_comes_back_in_a_refusal() -> None:
    for answer in (
        ask("GET /<script>alert(1)</script>"),
        ask(Host="<script>alert(1)</script>"),
        ask(Origin="<script>"),
    ):
        assert b"script" not in answer.body
        assert b"script" not in head_of(answer)
        assert b"nosniff" in head_of(answer)


def test_a_header_of_spaces_costs_no_more_than_its_length() -> None:
    # Tried in a process of its own: a search without end could not be interrupted in this one.
    program = (
        "from blackroad.metrics.rules import HEAD_BYTES_MAX, Refused, parse\n"
        "line = b'a:' + b' ' * (HEAD_BYTES_MAX - 100) + b'\\0'\n"
        "try:\n"
        "    parse(b'GET / HTTP/1.1\\r\\n' + line)\n"
        "except Refused as refused:\n"
        "    print(refused.answer.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "400\n"
