"""Figures of real daemons over real HTTP: scraped, found, refused, and true after real tasks."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from blackroad.metrics.names import TASK_NAMES_MAX
from tests.edge.meshes import Daemon, Mesh, until
from tests.metrics.reading import Series, read, value, values

pytestmark = pytest.mark.edge

TOKEN = "shelf-of-mixed-machines"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """Two daemons that serve figures, one of them for who has the token, and one that does not."""
    made = Mesh(BLACKROAD_METRICS_PORT="0")
    try:
        made.add("attic")
        token = made.base / "token"
        token.write_text(TOKEN + "\n")
        token.chmod(0o600)
        made.add("shed", BLACKROAD_METRICS_TOKEN_FILE=str(token))
        made.add("loft", BLACKROAD_METRICS_PORT="off")
        made.settled()
        yield made
    finally:
        made.close()


def get(
    daemon: Daemon, path: str, method: str = "GET", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """One request; headers are given with `_` for `-`."""
    address = str(daemon.facts()["metrics"])
    connection = http.client.HTTPConnection(address, timeout=20)
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    connection.request(method, path, headers=named)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, dict(answer.getheaders())


def scraped(daemon: Daemon) -> Series:
    code, body, headers = get(daemon, "/metrics", Authorization=f"Bearer {TOKEN}")
    assert (code, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    return read(body)


def work(x: int) -> int:
    """Something to be done."""
    return x + 1


def broken() -> None:
    """Something that fails."""
    raise ValueError("no")


def test_tasks_show_up_in_the_figures(mesh: Mesh) -> None:
    attic = mesh.daemons[0]
    before = values(scraped(attic), "blackroad_tasks_ended_total")
    client = mesh.client(attic)
    futures = [client.submit(work, x) for x in range(50)]
    assert [one.result(timeout=60) for one in futures] == list(range(1, 51))
    failing = client.submit(broken)
    assert isinstance(failing.exception(timeout=60), Exception)

    def told() -> bool:
        ends = values(scraped(attic), "blackroad_tasks_ended_total")
        return ends["done",] >= before["done",] + 50 and ends["failed",] == before["failed",] + 1

    until(told, "51 ended tasks in the figures")
    series = scraped(attic)
    assert values(series, "cluster_jobs_total") == values(series, "blackroad_tasks_ended_total")
    by_name = values(series, "blackroad_tasks_by_name_total")
    assert sum(by_name.values()) == sum(values(series, "cluster_jobs_total").values())
    assert value(series, "blackroad_task_run_seconds_count") == sum(by_name.values())
    assert value(series, "blackroad_process_cpu_seconds_total") > 0
    assert values(series, "blackroad_nodes") == {("alive",): 3}
    assert sum(values(series, "blackroad_events_total").values()) > 0


def test_a_hundred_and_fifty_hostile_names_leave_a_page_that_is_read(mesh: Mesh) -> None:
    attic = mesh.daemons[0]
    client = mesh.client(attic)
    futures = []
    for number in range(150):

        def named(x: int = number) -> int:
            return x

        named.__qualname__ = f'{number}"}}\n# TYPE x counter\nx{{a="\\\x1b[31m$(reboot)'
        futures.append(client.submit(named))
    assert [one.result(timeout=60) for one in futures] == list(range(150))

    def told() -> bool:
        by_name = values(scraped(attic), "blackroad_tasks_by_name_total")
        return sum(by_name.values()) >= 150

    until(told, "all of them counted")
    series = scraped(attic)
    by_name = values(series, "blackroad_tasks_by_name_total")
    assert len({name for name, _ in by_name}) == TASK_NAMES_MAX + 1
    assert by_name["other", "done"] >= 150 - TASK_NAMES_MAX
    assert all(name.isprintable() for name, _ in by_name)
    assert not values(series, "x")


def test_one_node_tells_where_all_figures_are(mesh: Mesh) -> None:
    attic, shed, loft = mesh.daemons
    assert loft.facts()["metrics"] == ""

    def targets() -> set[str]:
        code, body, headers = get(attic, "/sd")
        assert (code, headers["Content-Type"]) == (200, "application/json")
        return {target for row in json.loads(body) for target in row["targets"]}

    wanted = {attic.facts()["metrics"], shed.facts()["metrics"]}
    until(lambda: targets() == wanted, "both of them listed")
    _, body, _ = get(attic, "/sd")
    assert {row["labels"]["node_name"] for row in json.loads(body)} == {"attic", "shed"}


def test_health_is_open_and_tells_more_to_who_may_know(mesh: Mesh) -> None:
    _, shed, _ = mesh.daemons
    code, body, _ = get(shed, "/health")
    assert (code, json.loads(body)) == (200, {"status": "ok"})
    code, body, _ = get(shed, "/health", Authorization=f"Bearer {TOKEN}")
    told = json.loads(body)
    assert (code, told["name"], told["problems"]) == (200, "shed", [])
    assert told["coordinator"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/metrics", "/sd", "/", "/health/x", "/metrics/../health"])
def test_without_the_token_no_route_is_open(mesh: Mesh, path: str, method: str) -> None:
    shed = mesh.daemons[1]
    assert get(shed, path, method)[0] == 401
    assert get(shed, path, method, Authorization="Bearer not-the-right-token")[0] == 401


def test_a_web_page_gets_nothing(mesh: Mesh) -> None:
    attic = mesh.daemons[0]
    for path in ("/metrics", "/sd", "/health"):
        assert get(attic, path, Host="rebound.example:80")[0] == 403
        assert get(attic, path, Origin="http://evil.example")[0] == 403
        assert get(attic, path, "DELETE", Sec_Fetch_Site="cross-site")[0] == 403
    until(lambda: attic.events("metrics.refused"), "a line about who was refused")


def test_tasks_go_on_while_200_idle_connections_stay(mesh: Mesh) -> None:
    attic = mesh.daemons[0]
    host, _, port = str(attic.facts()["metrics"]).rpartition(":")
    idle = [socket.create_connection((host, int(port)), timeout=20) for _ in range(200)]
    try:
        for one in idle:
            one.send(b"GET /metrics HT")
        client = mesh.client(attic)
        assert client.submit(work, 1).result(timeout=60) == 2
        assert value(scraped(attic), "blackroad_http_connections") <= 64
    finally:
        for one in idle:
            one.close()


def test_a_daemon_that_may_not_serve_says_why_and_stops(mesh: Mesh, tmp_path: Path) -> None:
    taken = str(mesh.daemons[0].facts()["metrics"]).rpartition(":")[2]
    open_to_all = tmp_path / "token"
    open_to_all.write_text(TOKEN)
    open_to_all.chmod(0o644)
    for settings, code, text in (
        ({"BLACKROAD_METRICS_PORT": taken}, 5, "metrics_port"),
        ({"BLACKROAD_METRICS_LISTEN": "0.0.0.0"}, 2, "metrics_token_file"),
        ({"BLACKROAD_METRICS_TOKEN_FILE": str(open_to_all)}, 2, "chmod 600"),
        ({"BLACKROAD_METRICS_TOKEN_FILE": str(tmp_path / "none")}, 2, "cannot be read"),
    ):
        daemon = Daemon(mesh, f"odd-{code}-{len(mesh.daemons)}", {**mesh._settings, **settings})
        mesh.daemons.append(daemon)
        daemon.start()
        assert daemon.exits() == code, daemon.log()
        assert text in daemon.log()
