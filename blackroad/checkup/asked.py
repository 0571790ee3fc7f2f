"""The question of a doctor to a daemon: what answers it is loaded when it is asked first.

Edge.  This file must not know what is found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blackroad.checkup.child import Checkup, Unwatch, Watch
    from blackroad.config import Config


class Examination:
    """What a daemon keeps of all this while nobody asks: nothing but its configuration."""

    def __init__(
        self,
        config: Config,
        clock: Callable[[], int],
        watch: Watch,
        unwatch: Unwatch,
    ) -> None:
        self._config = config
        self._clock = clock
        self._watch, self._unwatch = watch, unwatch
        self._checkup: Checkup | None = None

    def told(self) -> dict[str, Any]:
        """What is known by now: see `Checkup.told`."""
        if self._checkup is None:
            from blackroad.checkup.child import Checkup
            from blackroad.checkup.machine import wish_of

            wish = wish_of(self._config)
            self._checkup = Checkup(lambda: wish, self._clock, self._watch, self._unwatch)
        return self._checkup.told()

    def close(self) -> None:
        """End what runs."""
        if self._checkup is not None:
            self._checkup.close()
