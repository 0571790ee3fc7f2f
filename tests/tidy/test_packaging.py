"""What is imported is declared, and what is declared for daemons is imported."""

from __future__ import annotations

import re
import sys
import tomllib

from tests.tidy.source import ROOT, imported, name_of, python_files, tree

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Where the name to import is not the name to install.
IMPORTED_AS = {
    "nvidia-ml-py": "pynvml",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "pillow": "PIL",
    "pocl-binary-distribution": "pocl_binary_distribution",
    "pywavelets": "pywt",
    "pyzmq": "zmq",
}
OPTIONAL = ("opencl", "pocl", "nvidia", "demo", "redis", "history", "postgres", "otel", "tui")


def modules(requirements: list[str]) -> set[str]:
    names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower() for line in requirements]
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def third_party() -> dict[str, str]:
    """Collect {module: one place that imports it} over the whole program."""
    found: dict[str, str] = {}
    for path in python_files("blackroad"):
        for module, line in imported(tree(path)):
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "blackroad":
                found.setdefault(top, f"{name_of(path)}:{line}")
    return found


def test_every_import_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = modules(PROJECT["dependencies"])
    declared |= modules([line for name in OPTIONAL for line in extras[name]])
    missing = {top: place for top, place in third_party().items() if top not in declared}
    assert missing == {}


def test_every_dependency_is_imported() -> None:
    assert sorted(modules(PROJECT["dependencies"]) - set(third_party())) == []
