"""A UDP server that answers as the test says: for answers that no good server gives."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from objmapper_client.protocol.udp import Pull, decode_request

Script = Callable[[Pull], list[bytes]]


@contextmanager
def fake_udp_server(script: Script) -> Iterator[str]:
    """Answers every PULL with what `script` makes of it, in a thread, until the end of the block."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        address = server.getsockname()

        def serve() -> None:
            while True:
                datagram, client = server.recvfrom(65536)
                if datagram == b"end":
                    return
                pull = decode_request(datagram)
                for answer in script(pull) if isinstance(pull, Pull) else []:
                    server.sendto(answer, client)

        thread = threading.Thread(target=serve, name="pretender")
        thread.start()
        try:
            yield f"udp://127.0.0.1:{address[1]}"
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"end", address)
            thread.join(30)
            assert not thread.is_alive()
