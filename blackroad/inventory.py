"""What this machine has to offer: the quick answer at start, the whole one when it has been probed.

Edge.  The probe is a process of its own, since drivers may hang or crash.  This file must not know
what is done with the answer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from blackroad.discovery import probe as probing
from blackroad.starting import as_configured

if TYPE_CHECKING:
    from pathlib import Path

    from blackroad.capabilities import Capabilities
    from blackroad.config import Config
    from blackroad.discovery.probe import Probe


class Inventory:
    """The search for what one machine has, as its owner wants it told."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._probe: Probe | None = None
        # What task processes need to find the devices again.
        self.environment: dict[str, str] = {}
        self._serves = ""

    def quick(self) -> Capabilities:
        """What can be said at once."""
        config = self._config
        found = probing.quick(config.name or "", config.labels, config.programs)
        return self._told(found)

    def serving(self, address: str) -> Capabilities:
        """Say from now on where figures of this node are served; return what is known so far."""
        self._serves = address
        return self.quick()

    def _told(self, caps: Capabilities) -> Capabilities:
        return msgspec.structs.replace(as_configured(caps, self._config), metrics=self._serves)

    def start(self, scratch: Path, environment: Mapping[str, str]) -> None:
        """Look for the rest, devices above all, in a process of its own."""
        config = self._config
        probed = {**os.environ, **environment}
        if config.opencl == "off":
            probed["BLACKROAD_OPENCL_DEVICE"] = "off"
        self._probe = probing.start_probe(
            config.name or "", config.labels, config.programs, scratch=scratch, env=probed
        )

    def fileno(self) -> int:
        """What becomes readable when there is more to know; -1 where nothing will."""
        return self._probe.fileno() if self._probe is not None else -1

    def look(self, log: Any) -> Capabilities | None:
        """Return everything when the probe has ended, once; None until then and after."""
        if self._probe is None or not self._probe.poll():
            return None
        findings = self._probe.finish()
        self._probe = None
        self.environment = dict(findings.environment)
        caps = findings.capabilities
        if self._config.opencl == "off":
            caps = msgspec.structs.replace(caps, devices=())
        for device in caps.devices:
            if device.problem:
                log.warning("device.quarantined", device=device.name, problem=device.problem)
        log.info(
            "probe.ended",
            took_ms=findings.took_ms,
            devices=[device.name for device in caps.devices if not device.problem],
            notes=list(caps.notes),
        )
        return self._told(caps)

    def close(self) -> None:
        """End the probe, if it goes on."""
        if self._probe is not None:
            self._probe.close()
