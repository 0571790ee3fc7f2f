"""The application that Celery's worker imports."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from bench import jobs

URL = os.environ.get("BENCH_REDIS", "redis://127.0.0.1:6379/0")

app = Celery("bench", broker=URL, backend=URL)
app.conf.update(
    task_serializer="pickle",
    result_serializer="pickle",
    accept_content=["pickle", "json"],
    broker_connection_retry_on_startup=True,
)

TASKS: dict[str, Any] = {
    one.__name__: app.task(name=one.__name__)(one)
    for one in (jobs.noop, jobs.echo, jobs.whoami, jobs.pi, jobs.slow)
}
