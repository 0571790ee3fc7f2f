"""How code travels: functions by content, and which classes and modules go along by value.

What every node can import (the standard library, installed packages, ourselves) travels by name;
what stands in the user's own files travels itself, so that user code needs no installation.  This
file must not know how values are laid out in a payload.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import threading
import types
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Protocol

from blackroad.digest import blake2b
from blackroad.errors import NotPicklable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIGEST_BYTES: Final = 32
BUFFERS_MAX: Final = 1024  # arrays beyond these travel inside the body
BUFFER_BYTES_MIN: Final = 1024  # smaller ones too: padding would cost more than the copy
NAME_CHARS_MAX: Final = 120


class _ByValue(Exception):
    """The value holds a class or function that the other side cannot import."""


# --- pickles ------------------------------------------------------------------------------------


Pickled = tuple[bytes, list[memoryview]]


class _PicklerType(Protocol):
    def __call__(
        self, file: io.BytesIO, protocol: int, *, buffer_callback: Callable[[Any], bool] | None
    ) -> pickle.Pickler: ...


class _Pickler(pickle.Pickler):
    """Refuses what would be found by name here but not on another machine."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | types.FunctionType) and not _importable(obj.__module__):
            raise _ByValue
        return NotImplemented


@functools.cache
def _cloud_pickler() -> _PicklerType:
    import cloudpickle

    class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc, unused-ignore]
        """Refuses open files, of which cloudpickle would quietly send a copy."""

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, io.IOBase) and not isinstance(obj, io.StringIO | io.BytesIO):
                standard = (sys.stdin, sys.stdout, sys.stderr)
                if not any(obj is stream for stream in standard):
                    raise TypeError("an open file cannot be used on another machine")
            return super().reducer_override(obj)

    return CloudPickler


def pickled(value: object) -> Pickled:
    """Pickle a value whose classes can all be imported elsewhere; raises whatever goes wrong."""
    return _pickled_with(value, _Pickler)


def pickled_by_value(value: object) -> Pickled:
    """Pickle a value, and with it the classes and functions that exist only here."""
    with _local_modules_by_value():
        return _pickled_with(value, _cloud_pickler())


def _pickled_with(value: object, pickler: _PicklerType) -> Pickled:
    buffers: list[memoryview] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if len(raw) < BUFFER_BYTES_MIN or len(buffers) >= BUFFERS_MAX:
            return True
        buffers.append(raw)
        return False

    out = io.BytesIO()
    pickler(out, 5, buffer_callback=keep_inside).dump(value)
    return out.getvalue(), buffers


# Registering modules with cloudpickle changes the whole program, so it lasts for one pickle only
# and one thread at a time.
_by_value_lock = threading.RLock()


@contextmanager
def _local_modules_by_value() -> Iterator[None]:
    """Let code from outside site-packages travel by value, so that nodes need no copy of it."""
    import cloudpickle

    with _by_value_lock:
        known = cloudpickle.list_registry_pickle_by_value()
        added = []
        try:
            for name in _local_names():
                if name not in known:
                    cloudpickle.register_pickle_by_value(sys.modules[name])
                    added.append(name)
            yield
        finally:
            for name in added:
                if name in sys.modules:
                    cloudpickle.unregister_pickle_by_value(sys.modules[name])


def _local_names() -> list[str]:
    """Name local modules by their top package where that is local too, else one by one."""
    names: dict[str, None] = {}
    for name in list(sys.modules):
        if _lives_here_only(name):
            top = name.partition(".")[0]
            chosen = top if top in sys.modules and _lives_here_only(top) else name
            if sys.modules[chosen].__name__ == chosen:
                names[chosen] = None
    return list(names)


def _importable(module_name: str | None) -> bool:
    """Whether every node can import it: installed packages, the standard library, ourselves."""
    if module_name is None or module_name == "__main__" or module_name not in sys.modules:
        return False
    return not _lives_here_only(module_name)


def _lives_here_only(module_name: str) -> bool:
    """Whether a module comes from a file that is neither installed nor the main program."""
    if module_name == "__main__" or module_name.partition(".")[0] == "blackroad":
        return False
    module = sys.modules.get(module_name)
    path = getattr(module, "__file__", None)
    if path is None:
        # A namespace package is where its first directory is; the rest has no source at all.
        path = next(iter(getattr(module, "__path__", ())), None)
    return isinstance(path, str) and not _is_installed(path)


@functools.lru_cache(maxsize=8192)
def _is_installed(path: str) -> bool:
    import sysconfig

    if not {"site-packages", "dist-packages"}.isdisjoint(PurePath(path).parts):
        return True
    known = (sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    return any(PurePath(path).is_relative_to(place) for place in known if place)


# --- functions ----------------------------------------------------------------------------------

Encoded = tuple[bytes, bytes, str]
FUNCTIONS_CACHED_MAX: Final = 256
_MARKS_MAX: Final = 256
_function_cache: OrderedDict[int, tuple[Any, Encoded, Callable[[], bool]]] = OrderedDict()
_FIXED_TYPES: Final = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        range,
        type(...),
        types.CodeType,
    }
)


def encode_function(fn: Callable[..., Any]) -> Encoded:
    """Return (digest, blob, name) of a function: content, its hash, and what people call it.

    Code from outside the standard library and site-packages is carried along, so the other side
    needs only the installed packages it uses.
    Cost    half a microsecond for a function seen before whose code, defaults, closure and
            globals are the same objects and cannot change inside; else it is pickled again.
    Raises  NotPicklable naming what the function holds that cannot travel.
    """
    return sealed_function(fn)[0]


def sealed_function(fn: Callable[..., Any]) -> tuple[Encoded, Callable[[], bool] | None]:
    """Return what `encode_function` does, and what tells whether that still holds later on.

    None in the place of the latter means that only encoding it again tells.
    """
    with _by_value_lock:
        cached = _function_cache.get(id(fn))
        if cached is not None:
            known, encoded, same = cached
            if known is fn and same():
                _function_cache.move_to_end(id(fn))
                return encoded, same
            del _function_cache[id(fn)]
        # Taken down before it is pickled: what changes in between is noticed the next time.
        seal = _seal_of(fn)
        encoded = _encode_function(fn)
        if seal is None:
            return encoded, None
        _function_cache[id(fn)] = (fn, encoded, seal.same)
        if len(_function_cache) > FUNCTIONS_CACHED_MAX:
            _function_cache.popitem(last=False)
        return encoded, seal.same


def _encode_function(fn: Callable[..., Any]) -> Encoded:
    name = function_name(fn)
    if not callable(fn):
        raise NotPicklable(f"`{name}` is not callable", hint="pass the function itself")
    try:
        with _local_modules_by_value():
            out = io.BytesIO()
            _cloud_pickler()(out, 5, buffer_callback=None).dump(fn)
    except Exception as error:
        raise not_picklable(fn, f"function `{name}`", error) from None
    blob = out.getvalue()
    return blake2b(blob, digest_size=DIGEST_BYTES).digest(), blob, name


def function_name(fn: object) -> str:
    """Say what people call a function: module and qualified name, at most 120 characters."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    name = f"{getattr(named, '__module__', None) or '?'}.{getattr(named, '__qualname__', '?')}"
    return name if len(name) <= NAME_CHARS_MAX else name[: NAME_CHARS_MAX - 1] + "…"


_ABSENT: Final = object()


class _Part:
    """One by-value function of those that a function is made of, as it was when it was pickled."""

    __slots__ = ("cells", "code", "defaults", "fn", "given", "keywords", "label", "names", "scope")

    def __init__(self, fn: types.FunctionType) -> None:
        self.fn = fn
        self.code = fn.__code__
        self.defaults = fn.__defaults__
        self.keywords = fn.__kwdefaults__
        # The dictionary of keyword defaults may be changed while it stays the same object.
        self.given = dict(self.keywords) if self.keywords else None
        self.cells = tuple((cell, _content(cell)) for cell in fn.__closure__ or ())
        self.scope = fn.__globals__
        found = self.scope.get
        self.names = tuple((name, found(name, _ABSENT)) for name in _global_names(self.code))
        self.label = (fn.__module__, fn.__qualname__)

    def same(self) -> bool:
        """Is it made of the very same objects?"""
        fn = self.fn
        if (
            fn.__code__ is not self.code
            or fn.__defaults__ is not self.defaults
            or fn.__kwdefaults__ is not self.keywords
        ):
            return False
        for cell, content in self.cells:
            if _content(cell) is not content:
                return False
        if self.names:
            found = self.scope.get
            for name, value in self.names:
                if found(name, _ABSENT) is not value:
                    return False
        if self.given is not None and not _same_items(self.keywords, self.given):
            return False
        label = self.label
        return fn.__module__ is label[0] and fn.__qualname__ is label[1] and not fn.__dict__


class _Seal:
    """What a pickled function was made of; `same` is true while it would be pickled alike.

    Everything else that belongs to it cannot change: numbers, texts, code, tuples of those, and
    what every node has installed.
    """

    __slots__ = ("_modules", "_partials", "_parts")

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._partials: list[tuple[functools.partial[Any], dict[str, Any]]] = []
        self._modules: dict[str, types.ModuleType | None] = {}

    def add_function(self, fn: types.FunctionType) -> None:
        """Take down a function that travels by value."""
        self._parts.append(_Part(fn))

    def add_partial(self, partial: functools.partial[Any]) -> None:
        """Take down a partial, whose keywords are a dictionary that may change."""
        self._partials.append((partial, dict(partial.keywords)))

    def add_module(self, name: str | None) -> None:
        """Take down a module on which it depends whether something travels by value."""
        if name is not None:
            self._modules[name] = sys.modules.get(name)

    def same(self) -> bool:
        """Would the function be pickled to the same bytes?"""
        for part in self._parts:
            if not part.same():
                return False
        for partial, keywords in self._partials:
            if not _same_items(partial.keywords, keywords):
                return False
        known = sys.modules.get
        for name, module in self._modules.items():  # noqa: SIM110 - the usual loop of one, inline
            if known(name) is not module:
                return False
        return True


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return _ABSENT  # a name that is not bound yet


def _same_items(now: dict[str, Any] | None, before: dict[str, Any]) -> bool:
    if now is None or len(now) != len(before):
        return False
    return all(now.get(name, _ABSENT) is value for name, value in before.items())


def _seal_of(fn: object) -> _Seal | None:
    """Take down every object that the pickled function is made of.

    None where a part may change while staying the same object (a list, an instance, a class, a
    module of the user's own): such a function is pickled each time, or stale code would run.
    """
    seal = _Seal()
    waiting: list[Any] = [fn]
    seen: dict[int, object] = {}
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if len(seen) > _MARKS_MAX:
            return None
        kind = type(item)
        if kind in _FIXED_TYPES:
            continue
        if kind is types.FunctionType:
            seal.add_module(item.__module__)
            if not _importable(item.__module__):
                if item.__dict__:
                    return None
                seal.add_function(item)
                waiting += _function_parts(item).values()
        elif kind in (tuple, frozenset):
            waiting += item
        elif kind is types.BuiltinFunctionType:
            # A method of a list is one, too.
            waiting.append(getattr(item, "__self__", None))
        elif kind is functools.partial:
            seal.add_partial(item)
            waiting += (item.func, *item.args, *item.keywords.values())
        elif isinstance(item, type):
            seal.add_module(item.__module__)
            if not _importable(item.__module__):
                return None
        elif kind is types.ModuleType and _importable(item.__name__):
            seal.add_module(item.__name__)
        else:
            return None
    return seal


def _function_parts(fn: types.FunctionType) -> dict[str, Any]:
    """What a function refers to, by the words a person would look for it."""
    parts: dict[str, Any] = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            parts[f"closure variable `{name}`"] = cell.cell_contents
        except ValueError:
            continue  # a name that is not bound yet
    for name in _global_names(fn.__code__):
        if name in fn.__globals__:
            parts[f"global `{name}`"] = fn.__globals__[name]
    for index, default in enumerate(fn.__defaults__ or ()):
        parts[f"default {index}"] = default
    for name, default in (fn.__kwdefaults__ or {}).items():
        parts[f"default of `{name}`"] = default
    return parts


def _global_names(code: types.CodeType) -> list[str]:
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _global_names(constant)
    return names


# --- what could not be sent ---------------------------------------------------------------------

_SEARCH_STEPS: Final = 200
_SEARCH_DEPTH: Final = 6
_HINTS: Final = (
    (("lock", "RLock", "Condition", "Semaphore", "Event"), "create the lock inside the function"),
    (
        ("TextIOWrapper", "BufferedReader", "BufferedWriter", "BufferedRandom", "FileIO"),
        "pass the path and open the file inside the function",
    ),
    (("socket", "SSLSocket"), "pass the address and connect inside the function"),
    (("generator", "async_generator", "map", "filter", "zip"), "make a list of it first"),
    (("coroutine",), "await it, or call asyncio.run inside the function"),
    (("Connection", "Cursor"), "pass the address and connect inside the function"),
    (("Thread", "_local"), "start the thread inside the function"),
    (("module",), "import the module inside the function"),
)


def not_picklable(value: object, label: str, error: Exception) -> NotPicklable:
    path, culprit, why = _culprit(value, label, error)
    kind = type(culprit)
    reason = (str(why) or type(why).__name__).splitlines()[0][:200]
    if _too_deep(why):
        reason = "it is nested too deeply"
    hint = next(
        (hint for names, hint in _HINTS if kind.__name__ in names),
        "pass what it is made from, and make it inside the function",
    )
    return NotPicklable(
        f"cannot send {path} ({kind.__module__}.{kind.__qualname__}): {reason}", hint=hint
    )


def _too_deep(error: Exception) -> bool:
    return isinstance(error, RecursionError) or "recursion" in str(error)


def _culprit(value: object, label: str, error: Exception) -> tuple[str, object, Exception]:
    """Follow the first part that fails, down to one whose own parts all can travel."""
    steps = _SEARCH_STEPS
    path, culprit, why = label, value, error
    if _too_deep(error):
        return path, culprit, why
    for _ in range(_SEARCH_DEPTH):
        for name, part in _children(culprit):
            steps -= 1
            failure = _failure(part)
            if failure is not None:
                path, culprit, why = f"{path}{name}", part, failure
                break
            if steps <= 0:
                return path, culprit, why
        else:
            break
    return path, culprit, why


def _failure(value: object) -> Exception | None:
    try:
        pickled_by_value(value)
    except Exception as error:
        return error
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{str(key)[:40]!r}]", item
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, set | frozenset):
        for item in value:
            yield "{…}", item
    elif isinstance(value, types.FunctionType):
        for name, item in _function_parts(value).items():
            yield f", {name}", item
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif not isinstance(value, type):
        for name, item in list(getattr(value, "__dict__", {}).items()):
            yield f".{name}", item
