"""Install blackroad on a machine with a living systemd and look at what it does.

Runs inside the tree that `run` boots, as root, with the standard library only.  Each check prints
one line; the last line counts them.
"""

import json
import os
import pwd
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

UNIT = "blackroad-node"
FAKE = bool(os.environ.get("FAKE"))
PROGRAM = "/usr/local/bin/blackroad"
CONFIG = Path("/etc/blackroad/blackroad.toml")
DROP_IN = Path(f"/etc/systemd/system/{UNIT}.service.d/test.conf")

results: list[bool] = []


def run(*command: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def check(what: str, good: object, shown: object = "") -> None:
    results.append(bool(good))
    print("ok  " if good else "FAIL", what, "" if good else f"[{shown!r}]", flush=True)


def until(condition: Callable[[], object], seconds: float = 60) -> bool:
    """Ask again and again until it is so; False when the time is over."""
    never, end = threading.Event(), time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        never.wait(0.1)
    return False


def shown(key: str) -> str:
    return run("systemctl", "show", "--value", "-p", key, UNIT).stdout.strip()


def main_pid() -> int:
    return int(shown("MainPID") or 0)


def processes_of(user: str) -> set[int]:
    uid = pwd.getpwnam(user).pw_uid
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                found.add(int(entry.name))
        except FileNotFoundError:
            continue
    return found


def journal() -> str:
    return run("journalctl", "-u", UNIT, "-n", "40", "--no-pager", "-o", "cat").stdout


def install() -> None:
    done = run("make", "-C", "/src", "install", "EXTRAS=pocl", seconds=300)
    check("make install", done.returncode == 0, done.stdout + done.stderr)
    account = pwd.getpwnam("blackroad")
    groups = run("id", "-nG", "blackroad").stdout.split()
    check("the user is made, in the groups of GPUs", {"video", "render"} <= set(groups), groups)
    check("nobody logs in as it", account.pw_shell.endswith("nologin"), account.pw_shell)
    log = run("systemctl", "status", UNIT).stderr
    check("systemd knows the unit", "could not be found" not in log, log)
    private = run("find", "/opt/blackroad", "!", "-perm", "-o+r", "!", "-type", "l").stdout
    check("everybody can read the program", private == "", private)
    stale = run("grep", "-rlIF", "/opt/blackroad.new", "/opt/blackroad/bin").stdout
    check("nothing points to where it was made", stale == "", stale)
    command = ["/opt/blackroad/bin/python", "-c", "import blackroad, numpy, zmq; zmq.Context()"]
    done = run("runuser", "-u", "blackroad", "--", *(command if FAKE else (PROGRAM, "--version")))
    check("the program runs as that user", done.returncode == 0, done.stderr)

    CONFIG.write_text(CONFIG.read_text() + "\n# mine\n")
    done = run("make", "-C", "/src", "install", "EXTRAS=pocl", seconds=300)
    check("a second make install", done.returncode == 0, done.stdout + done.stderr)
    check("keeps the configuration", CONFIG.read_text().endswith("# mine\n"))
    check("and lays the new one beside it", Path(f"{CONFIG}.new").is_file())


def sandbox() -> None:
    """Run sandbox.py once in a unit that differs from the node's only in what it runs."""
    unit = Path(f"/usr/local/lib/systemd/system/{UNIT}.service").read_text()
    for key, value in (
        ("Type", "oneshot"),
        ("NotifyAccess", "none"),
        ("Restart", "no"),
        ("WatchdogSec", "0"),
        ("ExecStart", "/opt/blackroad/bin/python -B /src/tests/systemd/sandbox.py"),
    ):
        unit = re.sub(f"(?m)^{key}=.*$", f"{key}={value}", unit)
    unit = unit.replace("[Service]\n", "[Service]\nStandardOutput=file:/sandbox.json\n")
    Path("/run/systemd/system/sandbox.service").write_text(unit)
    run("systemctl", "daemon-reload")
    done = run("systemctl", "start", "sandbox")
    told = run("journalctl", "-u", "sandbox", "-n", "40", "--no-pager", "-o", "cat").stdout
    check("something runs inside the unit", done.returncode == 0, told)
    facts = json.loads(Path("/sandbox.json").read_text().strip().splitlines()[-1])
    check("as blackroad", facts["uid"] == pwd.getpwnam("blackroad").pw_uid, facts)
    check("it can do what tasks need", facts["cannot"] == [], facts["cannot"])
    check("and nothing it should not", facts["can"] == [], facts["can"])
    if os.uname().machine == "x86_64":
        check("OpenCL compiles and computes", facts["computed"] == 6, facts)
        check("and keeps its kernels in the cache", facts["kernels kept"], facts)


def start() -> None:
    if FAKE:
        shutil.copy("/src/tests/systemd/fake_node.py", "/opt/blackroad/bin/blackroad")
        os.chmod("/opt/blackroad/bin/blackroad", 0o755)
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text("[Service]\nWatchdogSec=8\n")
    run("systemctl", "daemon-reload")
    done = run("systemctl", "enable", "--now", UNIT)
    check("systemctl enable --now", done.returncode == 0, done.stderr + journal())
    check("it says that it is ready", shown("ActiveState") == "active", journal())
    pid = main_pid()
    status = Path(f"/proc/{pid}/status").read_text()
    check("it runs as blackroad", pid in processes_of("blackroad"))
    check("without capabilities", "CapEff:\t0000000000000000" in status, status)
    check("and none to be had", "NoNewPrivs:\t1" in status, status)
    for place in ("/run/blackroad", "/var/lib/blackroad", "/var/cache/blackroad"):
        facts = os.stat(place)
        mode = f"{facts.st_mode & 0o777:o} {pwd.getpwuid(facts.st_uid).pw_name}"
        check(f"{place} is its own", mode == "700 blackroad", mode)
    warned = run("systemctl", "status", UNIT).stderr + journal()
    check("systemd has nothing to object", "nknown key" not in warned, warned)


TASK = "import os; print(os.getuid(), 'NOTIFY_SOCKET' in os.environ)"


def use() -> None:
    """Let the real program compute something, hardened as it is."""
    done = run(PROGRAM, "nodes", "--json")
    check("root's client finds the daemon", done.returncode == 0, done.stdout + done.stderr)
    done = run(PROGRAM, "submit", "--wait", "--", "/usr/bin/python3", "-c", TASK)
    check("a task ends well", done.returncode == 0, done.stdout + done.stderr + journal())
    told = done.stdout.split()
    check("as blackroad", told[:1] == [str(pwd.getpwnam("blackroad").pw_uid)], told)
    check("and cannot speak for the daemon", told[1:] == ["False"], told)
    done = run(PROGRAM, "submit", "--wait", "--kernel", "collatz", "start=1", "count=100000")
    check("a kernel runs", done.returncode == 0, done.stdout + done.stderr + journal())


def survive() -> None:
    first = main_pid()
    if not FAKE:
        run(PROGRAM, "submit", "--", "/bin/sh", "-c", "trap '' TERM; while :; do sleep 100; done")
        check("a long task runs", until(lambda: len(processes_of("blackroad")) > 1), journal())
    before = processes_of("blackroad")
    os.kill(first, 9)
    check("killed, it comes back", until(lambda: main_pid() not in (0, first)), journal())
    check("and becomes ready", until(lambda: shown("SubState") == "running"), journal())
    left = before & processes_of("blackroad")
    check("nothing of its former life is left", not left, left)

    second = main_pid()
    os.kill(second, 19)
    check("frozen, it is replaced", until(lambda: main_pid() not in (0, second)), journal())
    check("by the watchdog", "atchdog" in journal(), journal())
    check("and is ready again", until(lambda: shown("SubState") == "running"), journal())
    check("systemd counted both", shown("NRestarts") == "2", shown("NRestarts"))

    began = time.monotonic()
    done = run("systemctl", "stop", UNIT)
    took = time.monotonic() - began
    check("it stops when told to", done.returncode == 0 and took < 45, (took, journal()))
    check("as a success", shown("Result") == "success", shown("Result") + journal())
    check("and leaves no process", not processes_of("blackroad"), processes_of("blackroad"))
    check("nor its runtime directory", not Path("/run/blackroad").exists())


def refuse() -> None:
    good = CONFIG.read_text()
    CONFIG.write_text("nonsense = 1\n")
    run("systemctl", "reset-failed", UNIT)
    check("a wrong configuration is an error", run("systemctl", "start", UNIT).returncode != 0)
    check("that is not tried again", until(lambda: shown("SubState") == "failed", 20), journal())
    check("and was status 2", shown("ExecMainStatus") == "2", shown("ExecMainStatus"))
    CONFIG.write_text(good)
    check("mended, it starts", run("systemctl", "start", UNIT).returncode == 0, journal())


def uninstall() -> None:
    done = run("make", "-C", "/src", "uninstall")
    check("make uninstall", done.returncode == 0, done.stdout + done.stderr)
    gone = ["/opt/blackroad", PROGRAM, f"/usr/local/lib/systemd/system/{UNIT}.service"]
    left = [place for place in gone if os.path.lexists(place)]
    check("takes everything away", not left, left)
    check("stops the node", not processes_of("blackroad"), processes_of("blackroad"))
    check(
        "and keeps configuration and state", CONFIG.exists() and os.path.isdir("/var/lib/blackroad")
    )


def main() -> None:
    steps = [install, sandbox, start, survive, refuse, uninstall]
    if not FAKE:
        steps.insert(3, use)
    for step in steps:
        try:
            step()
        except Exception as error:
            check(step.__name__, False, error)
    print(f"{results.count(True)} passed, {results.count(False)} failed", flush=True)


if __name__ == "__main__":
    main()
