"""The library that programs use: Client, futures, Needs."""

from blackroad.client.client import Client, ObjectRef
from blackroad.client.futures import GatheredFuture, TaskFuture
from blackroad.requirements import Needs

__all__ = ["Client", "GatheredFuture", "Needs", "ObjectRef", "TaskFuture"]
