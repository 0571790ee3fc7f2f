"""A bare socket between two processes, plain or TLS 1.3: what encrypted bulk is measured by.

Where this program may make network namespaces, the two stand in two of them; the other side
is `python -m bench.sockets ADDRESS [CERTIFICATE KEY]`.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from bench.pair import Spaces

HEAD_BYTES = 8
MIB = 1 << 20


def read_into(connection: socket.socket, view: memoryview) -> None:
    """Fill a buffer from a connection.

    Raises  EOFError.
    """
    done = 0
    while done < len(view):
        count = connection.recv_into(view[done:])
        if not count:
            raise EOFError("the other side hung up")
        done += count


def serve(address: str, secret: list[str]) -> None:
    """Print a port, take one connection, and send back all that comes, message by message."""
    with socket.create_server((address, 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if secret:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(*secret)
        connection = context.wrap_socket(connection, server_side=True)
    head = memoryview(bytearray(HEAD_BYTES))
    room = memoryview(bytearray(64 * MIB))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            read_into(connection, head)
            body = room[: int.from_bytes(head, "big")]
            read_into(connection, body)
            connection.sendall(body)


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for an hour and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - hour)
        .not_valid_after(now + hour)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


class Wire:
    """One connection to a process that sends everything back."""

    def __init__(self, *, secure: bool) -> None:
        self._secure = secure
        self._end = contextlib.ExitStack()

    def __enter__(self) -> Wire:
        spaces = self._end.enter_context(Spaces.made())
        folder = Path(self._end.enter_context(tempfile.TemporaryDirectory(prefix="br-")))
        secret = [str(path) for path in certificate(folder)] if self._secure else []
        address = spaces.addresses[1]
        words = [*spaces.inside(1), sys.executable, "-m", "bench.sockets", address, *secret]
        server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self._end.callback(server.wait)
        self._end.callback(server.kill)
        assert server.stdout is not None
        port = int(server.stdout.readline())
        connection = spaces.connect(0, address, port)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._secure:
            context = ssl.create_default_context(cafile=secret[0])
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False
            connection = context.wrap_socket(connection)
        self._connection = self._end.enter_context(connection)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def echo(self, array: Any) -> Any:
        """Send an array, and read it back into a new one."""
        import numpy as np

        body = memoryview(array).cast("B")
        back = np.empty_like(array)
        # The other side reads all before it answers, so nobody waits for anybody.
        self._connection.sendall(len(body).to_bytes(HEAD_BYTES, "big"))
        self._connection.sendall(body)
        read_into(self._connection, memoryview(back).cast("B"))
        return back


def within(space: str, address: str, port: int) -> socket.socket:
    """Connect from inside a network namespace; the thread that does it stays there and ends."""
    import os

    made: list[socket.socket] = []

    def connect() -> None:
        # A namespace belongs to a thread: the others of this process stay where they are.
        libc = __import__("ctypes").CDLL(None, use_errno=True)
        file = os.open(f"/run/netns/{space}", os.O_RDONLY)
        if libc.setns(file, 0x40000000) == 0:
            made.append(socket.create_connection((address, port), 10))
        os.close(file)

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    if not made:
        raise OSError(f"no connection to {address} from namespace {space}")
    made[0].settimeout(None)
    return made[0]


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
