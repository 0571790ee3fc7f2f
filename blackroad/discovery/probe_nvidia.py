"""Child process: NVIDIA cards as their own management library shows them.

Run as `python -m blackroad.discovery.probe_nvidia`.  It may hang where a card has fallen off the
bus; the parent has a time limit.  The only file that imports pynvml.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from blackroad.capabilities import printable
from blackroad.discovery.children import die_with_parent, private_stdout

NO_PYNVML: Final = "no pynvml"
NO_DRIVER: Final = "no driver"


def main() -> int:
    """Write one JSON line per card, or one that says why there is none."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    die_with_parent(parser.parse_args().parent)
    out = private_stdout()
    for message in _cards():
        out.write(json.dumps(message) + "\n")
    out.flush()
    return 0


def _cards() -> list[dict[str, Any]]:
    try:
        import pynvml
    except ImportError as error:
        return [{"failed": NO_PYNVML, "text": printable(str(error), 200)}]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [{"failed": NO_DRIVER, "text": printable(str(error), 200)}]
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return [_card(pynvml, index, driver) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return [{"failed": NO_DRIVER, "text": printable(str(error), 200)}]
    finally:
        pynvml.nvmlShutdown()


def _card(pynvml: Any, index: int, driver: str) -> dict[str, Any]:
    """Describe one card; a card that answers with an error is listed with its problem."""
    seen = {
        "kind": "gpu",
        "name": f"NVIDIA card {index}",
        "memory_bytes": 0,
        "compute_units": 0,
        "fp64": True,
        "platform": "NVIDIA CUDA",
        "vendor": "NVIDIA Corporation",
        "vendor_id": 0x10DE,
        "driver": printable(driver),
        "index": index,
    }
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        seen["name"] = printable(_text(pynvml.nvmlDeviceGetName(handle)))
        seen["memory_bytes"] = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError as error:
        return {"seen": seen, "problem": printable(str(error), 200)}
    return {"seen": seen, "problem": ""}


def _text(given: object) -> str:
    return given.decode("utf-8", "replace") if isinstance(given, bytes) else str(given)


if __name__ == "__main__":
    sys.exit(main())
