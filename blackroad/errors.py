"""Every exception blackroad raises on purpose.

One tree, so that a caller can catch a family, and one exit code per family, so that a script can
tell them apart.  This file knows no other file of the project.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_OK = 0
EXIT_TASK_FAILED = 1
EXIT_USAGE = 2
EXIT_UNPLACEABLE = 3
EXIT_NO_DAEMON = 4
EXIT_ENVIRONMENT = 5


class BlackroadError(Exception):
    """Root of the tree: `message` says what is wrong, `hint` what to do next."""

    exit_code = EXIT_TASK_FAILED

    def __init__(self, message: str, *, hint: str = "", because: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.because = tuple(because)

    def __str__(self) -> str:
        return self.message


# --- what the user typed or wrote ---------------------------------------------------------------


class UsageError(BlackroadError):
    """A wrong argument, size, duration or combination."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A configuration file or BLACKROAD_* variable that cannot be used."""


class UnitError(UsageError):
    """A size, share or duration that cannot be read."""


class KernelInputError(UsageError):
    """A kernel parameter is unknown, missing, or has a wrong type, shape, dtype or range."""


class UnknownKernel(UsageError):
    """No kernel has that name."""


class JoinRefused(UsageError):
    """A cluster does not let this machine in, or is not the one that was meant."""


class NotPicklable(UsageError):
    """A function or argument cannot be sent to another process."""


# --- the machine the daemon runs on -------------------------------------------------------------


class EnvironmentProblem(BlackroadError):
    """A port, directory, disk or package is not as it must be."""

    exit_code = EXIT_ENVIRONMENT


class PortInUse(EnvironmentProblem):
    """Another program listens on the address."""


class StateDirectoryProblem(EnvironmentProblem):
    """The state directory is unreadable, unwritable or damaged."""


class AlreadyRunning(StateDirectoryProblem):
    """Another daemon holds this state directory."""


class DiskProblem(EnvironmentProblem):
    """A flush failed or the disk is full; nothing unflushed was promised."""


class MissingPackage(EnvironmentProblem):
    """An optional package is needed for what was asked."""


class HistoryProblem(EnvironmentProblem):
    """The database of the history cannot be used: down, refused, or of a newer program."""


class DeviceProblem(EnvironmentProblem):
    """An OpenCL device is missing, was lost, or cannot build or run what was asked of it."""


class ClockProblem(EnvironmentProblem):
    """The boot-time clock is missing or moved backwards."""


# --- reaching a daemon --------------------------------------------------------------------------


class NoDaemon(BlackroadError):
    """No daemon answered at any known address."""

    exit_code = EXIT_NO_DAEMON


class OwnerLost(BlackroadError):
    """The daemon that owned an attached task is gone, and the task with it."""

    exit_code = EXIT_NO_DAEMON


class Unreachable(BlackroadError):
    """The node that could answer did not, within two seconds."""

    exit_code = EXIT_NO_DAEMON


class UnknownTask(BlackroadError):
    """No task has that id on the node that should own it."""

    exit_code = EXIT_USAGE


class Busy(BlackroadError):
    """A bound was reached; the item was not taken, and may be sent again later."""

    exit_code = EXIT_ENVIRONMENT

    def __init__(self, message: str, *, retry_after_ms: int = 1000, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_ms = retry_after_ms


# --- what became of a task ----------------------------------------------------------------------


class TaskError(BlackroadError):
    """A task ended without a result; `task_id` names it."""

    def __init__(self, message: str, *, task_id: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.task_id = task_id


class TaskFailed(TaskError):
    """The task raised: `type_name`, `text` and `traceback_text` came back as plain text.

    Where `type_name` is a built-in exception, the raised object is also an instance of it, so
    `except ValueError` works across machines without rebuilding foreign classes.
    """

    def __init__(
        self,
        message: str,
        *,
        task_id: str = "",
        type_name: str = "",
        text: str = "",
        traceback_text: str = "",
        exit_status: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, task_id=task_id, hint=hint)
        self.type_name = type_name
        self.text = text
        self.traceback_text = traceback_text
        self.exit_status = exit_status


class ResultNotPicklable(TaskFailed):
    """The task ran to its end, but its result cannot be sent back."""


class WorkerCrashed(TaskError):
    """The process that ran the task died each time it was started."""


class OutOfMemory(TaskError):
    """The task used more memory than it asked for."""


class TaskTimeout(TaskError):
    """An attempt ran longer than its `timeout`, or the task passed its deadline."""


class TaskUnknown(TaskError):
    """A `once` task was lost; whether it ran cannot be known."""


class StillRunning(TaskError):
    """The task had not ended when the time to wait for it was over; it goes on."""

    exit_code = EXIT_ENVIRONMENT


class Quarantined(TaskError):
    """The task took its node down each time; `blackroad retry` lets it try again."""


class Unplaceable(TaskError):
    """No node can run the task; `rows` says item by item what is missing.

    Each row is (item, asked, nearest, verdict).
    """

    exit_code = EXIT_UNPLACEABLE

    def __init__(
        self,
        message: str,
        *,
        rows: Sequence[tuple[str, str, str, str]] = (),
        nodes_answered: int = 0,
        task_id: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, task_id=task_id, hint=hint)
        self.rows = tuple(rows)
        self.nodes_answered = nodes_answered


# --- between daemons, and inside one ------------------------------------------------------------


class RemoteProtocolError(BlackroadError):
    """A peer sent what the protocol forbids: drop the peer, count it, go on."""


class DamagedObject(BlackroadError):
    """An object's bytes are not those that its digest names."""


class LocalProtocolError(BlackroadError):
    """This program is about to send what the protocol forbids: our bug."""


class InvariantBroken(BlackroadError):
    """Our own state contradicts itself; the daemon stops, with the history that led there."""


def invariant(condition: object, text: str, *facts: object) -> None:
    """Raise InvariantBroken unless `condition` holds; stays on under `python -O`."""
    if not condition:
        raise InvariantBroken(text + "".join(f" [{fact!r}]" for fact in facts))
