"""blackroad: a shelf of mixed machines as one Python executor.

`from blackroad import Client, Needs, kernel` is all a program needs; names are loaded when they
are first used, so that `import blackroad` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blackroad.client import Client as Client
    from blackroad.client import GatheredFuture as GatheredFuture
    from blackroad.client import ObjectRef as ObjectRef
    from blackroad.client import TaskFuture as TaskFuture
    from blackroad.kernels.registry import kernel as kernel
    from blackroad.requirements import Needs as Needs

__version__ = "0.1.0"

_HOMES = {
    "Client": "blackroad.client",
    "GatheredFuture": "blackroad.client",
    "ObjectRef": "blackroad.client",
    "TaskFuture": "blackroad.client",
    "Needs": "blackroad.requirements",
    "kernel": "blackroad.kernels.registry",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'blackroad' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
