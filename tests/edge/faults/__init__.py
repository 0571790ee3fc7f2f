"""A disk that fails flushes, or forgets what was not flushed."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("disk.c")


@functools.cache
def library() -> Path:
    """Build disk.c, once for each form of it; skip the test where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the disk with faults")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"blackroad-disk-{digest}.so"
    if not built.exists():
        fresh = built.with_suffix(f".{id(built)}")
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", fresh, SOURCE, "-ldl", "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the disk with faults cannot be built here: {done.stderr[:500]}")
        fresh.replace(built)
    return built
