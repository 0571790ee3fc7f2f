"""Child process: announces this daemon over mDNS and reports whom it hears.

Run as `python -m blackroad.discovery.mdns_child`; speaks JSON lines over standard input and
output.  The only file that imports zeroconf: what strangers send is parsed here, in a process
with a memory limit, and nothing here is believed by the parent.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import re
import sys
import time
from typing import IO, TYPE_CHECKING, Any, Final

if __name__ == "__main__":
    # Nothing is encrypted here, and asyncio does without it: 2 MiB.
    sys.modules["ssl"] = None  # type: ignore[assignment]

import asyncio

import msgspec

from blackroad.bus.addresses import ADDRESSES_MAX
from blackroad.discovery.children import die_with_parent, limit_memory, private_stdout
from blackroad.discovery.hints import Announcement
from blackroad.discovery.interfaces import Choice, choose, interfaces
from blackroad.limits import HINTS_MAX

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

SERVICE: Final = "_blackroad._tcp.local."
ZEROCONF_MIN: Final = (0, 149, 17)
MEMORY_BYTES_MAX: Final = 256 * 1024 * 1024
RESCAN_S: Final = 5.0
OWN_VOICE_S: Final = 5.0
# What blocked it may be gone later: then it is said again until it comes back.
VOICE_AGAIN_S: Final = 10.0
RESOLVE_MS: Final = 3000
RESOLVING_MAX: Final = 32
LINE_BYTES_MAX: Final = 16 * 1024
# A flood is reported no faster than this; what is left out is heard again with its next repetition.
SEEN_PER_S: Final = 50.0
SEEN_BURST: Final = 300.0
NICENESS: Final = 10

_KEYS: Final = ("id", "v", "p", "m", "d", "c", "a", "j", "k")


class Start(msgspec.Struct):
    """What the parent writes: whom to announce, if anybody, and where (None: on all interfaces)."""

    announce: Announcement | None = None
    interfaces: list[str] | None = None


def main() -> int:
    """Serve until standard input ends."""
    die_with_parent(int(sys.argv[sys.argv.index("--parent") + 1]))
    out = private_stdout()
    limit_memory(MEMORY_BYTES_MAX)
    # Strangers may keep this process as busy as they like, but not the machine.
    os.nice(NICENESS)
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
    trouble = _missing()
    if trouble:
        _say(out, {"problem": trouble, "final": True})
        return 0
    try:
        asyncio.run(_Service(out).run())
    except BrokenPipeError:
        return 0
    except Exception as error:
        # Whatever a stranger's packet did to the library: say so, and let the parent decide.
        _say(out, {"problem": f"mDNS stopped: {type(error).__name__}: {error}"[:300]})
        return 1
    return 0


def _missing() -> str:
    """Return why zeroconf cannot be used, or ""."""
    try:
        import zeroconf
    except ImportError as error:
        return f"no mDNS: {error}; `pip install zeroconf`, or name peers in the configuration"
    numbers = tuple(int(part) for part in re.findall(r"[0-9]+", zeroconf.__version__)[:3])
    if numbers < ZEROCONF_MIN:
        wanted = ".".join(str(number) for number in ZEROCONF_MIN)
        return (
            f"no mDNS: zeroconf {zeroconf.__version__} has known holes; "
            f"`pip install 'zeroconf>={wanted}'`"
        )
    return ""


def _say(out: IO[str], message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


class _Service:
    """The announcement, the browser, and what was said about each name."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._start: Start | None = None
        self._choice = Choice((), ())
        self._zeroconf: AsyncZeroconf | None = None
        self._own_name = ""
        self._heard_self = False
        self._voiceless = False
        self._waiting_said = False
        self._said: dict[str, dict[str, Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = SEEN_BURST
        self._counted = time.monotonic()

    async def run(self) -> None:
        """Serve until the parent closes its end.

        Raises  what ended the service, so that the parent hears of it.
        """
        reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        first = await reader.readline()
        if not first:
            return
        self._start = msgspec.json.decode(first, type=Start)
        tasks = {
            asyncio.create_task(self._follow_commands(reader)),
            asyncio.create_task(self._follow_interfaces()),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._zeroconf is not None:
                await self._zeroconf.async_close()

    async def _follow_commands(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self._start = msgspec.json.decode(line, type=Start)
            await self._say_again()

    async def _say_again(self) -> None:
        info = self._info()
        if self._zeroconf is not None and info is not None:
            await self._zeroconf.async_update_service(info)

    async def _follow_interfaces(self) -> None:
        """Follow the interfaces: networks come up after daemons, and cables are pulled."""
        while True:
            try:
                await self._rescan()
            except OSError as error:
                _say(self._out, {"problem": f"no mDNS: {error.strerror or error}"})
            await asyncio.sleep(RESCAN_S)

    async def _rescan(self) -> None:
        assert self._start is not None
        chosen = choose(interfaces(), self._start.interfaces)
        if not chosen.multicast:
            if not self._waiting_said:
                wanted = ", ".join(self._start.interfaces or [])
                _say(self._out, {"problem": f"no mDNS yet: no interface is or has {wanted}"})
            self._waiting_said = True
            return
        if chosen == self._choice:
            return
        if self._zeroconf is None:
            await self._open(chosen)
        else:
            await self._zeroconf.async_update_interfaces(list(chosen.multicast), _version(chosen))
            # Kept only now, so that what could not be done is tried again at the next scan.
            self._choice = chosen
            await self._say_again()
        self._waiting_said = False
        _say(self._out, {"ready": list(chosen.multicast), "sound": not self._voiceless})

    async def _open(self, chosen: Choice) -> None:
        from zeroconf import DNSQuestionType
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        opened = AsyncZeroconf(interfaces=list(chosen.multicast), ip_version=_version(chosen))
        # Kept only now: a socket that could not be opened is tried again at the next scan.
        self._choice = chosen
        self._zeroconf = opened
        info = self._info()
        self._own_name = info.name if info is not None else ""
        # Multicast answers: a unicast one reaches only one of several daemons on one machine.
        self._browser = AsyncServiceBrowser(
            opened.zeroconf, SERVICE, [self._changed], question_type=DNSQuestionType.QM
        )
        if info is None:
            return
        # Names are keys' digests, so nobody has to be asked whether one is free.
        announced = await opened.async_register_service(info, cooperating_responders=True)
        self._keep(asyncio.ensure_future(_quietly(announced)))
        self._keep(asyncio.create_task(self._mind_own_voice()))

    def _info(self) -> ServiceInfo | None:
        from zeroconf import ServiceInfo

        if self._start is None or self._start.announce is None:
            return None
        announce, addresses = self._start.announce, self._choice.addresses
        return ServiceInfo(
            SERVICE,
            f"{announce.node}.{SERVICE}",
            port=announce.ports[0],
            properties=dict(announce.txt(addresses)),
            server=f"{announce.node}.local.",
            parsed_addresses=list(addresses[:ADDRESSES_MAX]),
        )

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """Note that a name was added, updated or removed; called by the browser."""
        if name == self._own_name:
            self._heard_self = True
            if self._voiceless:
                self._voiceless = False
                _say(self._out, {"sound": True})
            return
        if state_change.name == "Removed":
            if self._said.pop(name, None) is not None:
                _say(self._out, {"gone": name.split(".")[0][:64]})
        elif len(self._tasks) < RESOLVING_MAX:
            self._keep(asyncio.create_task(self._resolve(zeroconf, name)))

    async def _resolve(self, zeroconf: Zeroconf, name: str) -> None:
        from zeroconf import BadTypeInNameException
        from zeroconf.asyncio import AsyncServiceInfo

        try:
            info = AsyncServiceInfo(SERVICE, name)
            known = info.load_from_cache(zeroconf)
            if not known and not await info.async_request(zeroconf, RESOLVE_MS):
                return
        except (BadTypeInNameException, ValueError):
            return
        txt = info.decoded_properties
        seen = {
            "txt": {key: (txt.get(key) or "")[:256] for key in _KEYS if txt.get(key)},
            "addresses": info.parsed_addresses()[:ADDRESSES_MAX],
        }
        if self._said.pop(name, None) != seen:
            if not self._may_say():
                return
            _say(self._out, {"seen": seen})
        self._said[name] = seen
        if len(self._said) > HINTS_MAX:
            del self._said[next(iter(self._said))]

    def _may_say(self) -> bool:
        now = time.monotonic()
        self._left = min(SEEN_BURST, self._left + SEEN_PER_S * (now - self._counted))
        self._counted = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    async def _mind_own_voice(self) -> None:
        await self._check_own_voice()
        while self._voiceless:
            await asyncio.sleep(VOICE_AGAIN_S)
            await self._say_again()

    async def _check_own_voice(self) -> None:
        """Multicast comes back to its sender; where it does not, something blocks it."""
        await asyncio.sleep(OWN_VOICE_S)
        if not self._heard_self:
            self._voiceless = True
            places = ", ".join(self._choice.multicast)
            _say(
                self._out,
                {
                    "problem": f"no mDNS: what is sent to 224.0.0.251 port 5353 on {places} does "
                    "not come back; a firewall may block it, or name peers in the configuration"
                },
            )

    def _keep(self, task: asyncio.Future[None]) -> None:
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _quietly(awaitable: Any) -> None:
    with contextlib.suppress(OSError):
        await awaitable


def _version(chosen: Choice) -> Any:
    from zeroconf import IPVersion

    versions = {ipaddress.ip_address(text).version for text in chosen.multicast}
    if versions == {4}:
        return IPVersion.V4Only
    return IPVersion.V6Only if versions == {6} else IPVersion.All


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
