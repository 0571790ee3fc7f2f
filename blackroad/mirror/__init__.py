"""A mirror in Redis of outcomes and nodes, for other programs to read; nothing is read back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blackroad.mirror.mirror import Mirror
    from blackroad.watching import Watching


def part(watching: Watching) -> Mirror | None:
    """Make the mirror that the configuration asks for, if it does.

    Raises  ConfigError where the server would be open to anybody.
    """
    config = watching.config
    if not config.redis_mirror or not config.redis_url:
        return None
    from blackroad.mirror.mirror import Mirror

    return Mirror.of(watching)
