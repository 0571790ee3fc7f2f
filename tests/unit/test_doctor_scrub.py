"""What is taken out of a support archive, and what stays readable."""

from __future__ import annotations

import json

import pytest

from blackroad.cli.doctor_bundle import environment_text, without_values
from blackroad.cli.doctor_scrub import Scrubber, of_environment, of_url

SECRET = "k9Zr-q2x/7=w"


@pytest.mark.parametrize(
    "line",
    [
        f"redis://user:{SECRET}@host:6379/0 is down",
        f"postgresql+psycopg://me:{SECRET}@db/history",
        f"cannot log in with password={SECRET}",
        f'{{"password": "{SECRET}", "user": "me"}}',
        f"requirepass '{SECRET}'",
        f"Authorization: Bearer {SECRET}{SECRET}",
        f"ran: backup --db-password {SECRET} --all",
        f"ran: backup --token={SECRET}",
        f"API_KEY={SECRET};",
        f"GET /x?access_token={SECRET}&page=2",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_secret_goes(line: str) -> None:
    clean = Scrubber([]).text(line)
    assert SECRET not in clean
    assert "***" in clean


@pytest.mark.parametrize(
    "line",
    [
        f"plain words and then {SECRET} in the middle",
        json.dumps({"odd": f'a"{SECRET}"b'}),
        "in an address it is k9Zr-q2x%2F7%3Dw as well",
    ],
)
def test_what_is_known_goes_wherever_it_stands(line: str) -> None:
    clean = Scrubber([SECRET]).text(line)
    assert SECRET not in clean
    assert "k9Zr" not in clean


def test_invitations_and_keys_go() -> None:
    token = "br1-" + "abcdefgh234567" * 4
    clean = Scrubber([]).text(f"blackroad join {token} failed; key {'0a' * 32}")
    assert clean == "blackroad join *** failed; key ***"


@pytest.mark.parametrize(
    "line",
    [
        "note: attic: the disk of /var/lib/blackroad flushes slowly: 80 ms in the middle",
        "task k3f7x2ab-m5c7qaaaaaaaaaaaaaaaaaaaaa ended on node zxy2zxy2 after 3 attempts",
        "tcp://10.0.0.1:7701 connected, redis://127.0.0.1:6379/0 is down",
        "[Service]\nDelegate=yes\nKillMode=mixed\n",
    ],
)
def test_what_helps_stays(line: str) -> None:
    assert Scrubber(["hunter2hunter2"]).text(line) == line


def test_data_is_cleaned_by_value_and_by_name() -> None:
    data = {"a": [f"x {SECRET}", 3, None], "password": "pw", "secret_key": "", SECRET: 1}
    assert Scrubber([SECRET]).data(data) == {
        "a": ["x ***", 3, None],
        "password": "***",
        "secret_key": "",
        "***": 1,
    }


def test_too_short_a_secret_does_not_blacken_everything() -> None:
    assert Scrubber(["a", "", " "]).text("a cat and a dog") == "a cat and a dog"


def test_variables_with_a_secret_are_known_by_their_names() -> None:
    found = of_environment(
        {
            "DB_PASSWORD": SECRET,
            "GH_TOKEN": "/begins-like-a-path",
            "HOME": "/root",
            "SSL_KEY_PASSPHRASE": "xyzzy1",
            "TOKEN_FILE": "/etc/hostname",
            "PROXY": f"http://me:{SECRET}1@proxy:3128",
        }
    )
    assert {SECRET, "/begins-like-a-path", "xyzzy1", f"{SECRET}1"} <= set(found)
    assert "/root" not in found
    assert "/etc/hostname" not in found
    assert of_url("no address") == []


def test_of_variables_only_the_names_are_told() -> None:
    assert environment_text({"B": "two", "A": "one"}) == "A\nB\n"


def test_a_unit_is_told_without_the_values_of_its_variables() -> None:
    unit = (
        "[Service]\n"
        "Environment=XDG_CACHE_HOME=%C/blackroad BLACKROAD_REDIS_URL=redis://:pw@h/0\n"
        'Environment="ONE=first second" TWO=3\n'
        "KillMode=mixed\n"
    )
    assert without_values(unit) == (
        "[Service]\n"
        "# Environment: XDG_CACHE_HOME BLACKROAD_REDIS_URL\n"
        "# Environment: ONE TWO\n"
        "KillMode=mixed\n"
    )
