"""A link between two ends on this machine that can be slow, cut, or damage bytes."""
from __future__ import annotations

import select
import socket
import threading
import time
from typing import List, Tuple

PIECE_BYTES = 16 << 10
BURST_S = 0.005  # what a sleep overslept is caught up
BUFFER_BYTES = 64 << 10  # of the sockets towards the relay: what a home router would hold


class Relay:
    """Forwards connections to `target`; `mbps` 0: as fast as it can."""

    def __init__(self, target: Tuple[str, int], mbps: float = 0.0) -> None:
        self.target, self.mbps = target, mbps
        self.is_cut = False  # no packets, no reset
        self.corrupt_at: int = -1  # flip a bit of the byte at this position of the stream towards the target
        self._listener = socket.create_server(('127.0.0.1', 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.port = self._listener.getsockname()[1]
        self._sockets: List[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            try:
                far = socket.create_connection(self.target, timeout=5)
            except OSError:
                near.close()
                continue
            for sock in (near, far):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [near, far]
            for source, drain, damaged in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._forward, args=(source, drain, damaged), daemon=True).start()

    def _forward(self, source: socket.socket, drain: socket.socket, damaged: bool) -> None:
        seen, free_at = 0, 0.0
        try:
            while True:
                while self.is_cut or not select.select([source], [], [], 0.05)[0]:
                    if self.is_cut:
                        time.sleep(0.02)
                data = bytearray(source.recv(PIECE_BYTES))
                if not data:
                    break
                if damaged and seen <= self.corrupt_at < seen + len(data):
                    data[self.corrupt_at - seen] ^= 1
                    self.corrupt_at = -1
                seen += len(data)
                if self.mbps:  # the bytes occupy the link one piece after the other
                    free_at = max(free_at, time.perf_counter() - BURST_S) + 8e-6 * len(data) / self.mbps
                    time.sleep(max(0.0, free_at - time.perf_counter()))
                while self.is_cut:
                    time.sleep(0.02)
                drain.sendall(data)
        except (OSError, ValueError):
            pass
        for sock in (source, drain):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        """End all connections."""
        self.is_cut = False
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()
