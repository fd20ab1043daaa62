"""A client in a thread that answers as a test says: it has the token, and may lie."""
from __future__ import annotations

import contextlib
import threading
from typing import Any, Callable, Dict, Tuple

import torch

from network_utils import Address, Listener, connect
from wire.frames import Kind, Message, NetworkError

FACTS = {'name': 'a board', 'device': 'cpu', 'torch': '1.10.0', 'threads': 1}
Answer = Tuple[Dict[str, Any], Dict[str, torch.Tensor]]


class ScriptedClient:
    """Answers each request with what `answers[op](message)` gives; facts are FACTS unless told otherwise."""

    def __init__(self, address: Address, answers: Dict[str, Callable[[Message], Answer]]) -> None:
        self.answers = {'facts': lambda message: (FACTS, {}), **answers}
        self.asked = []
        self.connection = connect(address, b'', 'worker', 'server')
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(NetworkError):
            while True:
                message = self.connection.receive()
                if message.kind != Kind.REQUEST:
                    return
                self.asked.append(message.text('op'))
                fields, tensors = self.answers[self.asked[-1]](message)
                self.connection.send(Kind.REPLY, {'id': message.fields['id'], **fields}, tensors)


def listener() -> Listener:
    """On a free port, for anybody."""
    return Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), lambda text: None)
