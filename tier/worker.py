"""The client's main loop: answers one connection after the other, and what the operator asks on the control port."""
from __future__ import annotations

import os
import ssl
import threading
import time
from typing import Any, Dict, Optional

import torch

import cli
from config import Settings, UserError
from hyper_repvgg import create_network
from network_utils import Address, Listener, connect_with_retries, token_from_environment
from tier import devices
from tier.part import pack_unit, units_of
from tier.tasks import Tasks
from wire.blobs import BlobStore
from wire.connection import Connection
from wire.frames import ConnectionLost, Kind, Message, NetworkError, PeerError, ProtocolError

PROGRESS_S = 0.5  # at most this often
MAX_OPERATORS = 4  # whose questions are answered at a time; as many more may be in their handshake
OPERATOR_S = 10.0  # for an operator's question to come


class Worker:
    """Serves one connection after the other; `state` is what the control port tells."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.stopping = threading.Event()
        self.state: Dict[str, Any] = {'state': 'connecting', 'op': '', 'done': 0, 'total': 0, 'requests': 0}
        self._last_progress_s = 0.0

    def serve(self, connection: Connection) -> None:
        """Answer requests until the connection ends. Raises `NetworkError`."""
        self.tasks.connection = connection
        self.tasks.cancelled.clear()  # of an earlier connection's job
        while not self.stopping.is_set():
            self.state.update(state='idle', op='', done=0, total=0)
            message = connection.receive()
            if message.kind in (Kind.GOODBYE, Kind.ERROR):
                cli.say(f'the server says: {message.text("text")}')
                return
            if message.kind != Kind.REQUEST:
                connection.fail('protocol', f'expected a request, got {message.kind.name}')
                raise ProtocolError(f'expected a request, got {message.kind.name}')
            self.answer(connection, message)

    def answer(self, connection: Connection, message: Message) -> None:
        """One request, one reply or error."""
        number = message.integer('id', 0, 2 ** 62)
        self.state.update(state='working', op=message.text('op'), requests=self.state['requests'] + 1)

        def progress(done: int, total: int) -> None:
            self.state.update(done=done, total=total)
            now = time.monotonic()
            if now - self._last_progress_s < PROGRESS_S:
                return
            self._last_progress_s = now
            cli.say(f"{self.state['op']}: {done} of {total}")
            if self.state['op'] != 'stream':  # its results are progress enough
                connection.send(Kind.PROGRESS, {'id': number, 'done': done, 'total': total})

        self.tasks.progress = progress
        try:
            fields, tensors = self.tasks.run(message)
            self.state.update(state='idle', op='', done=0, total=0)  # before the server can know and ask
            connection.send(Kind.REPLY, {'id': number, **fields}, tensors)
        except (PeerError, ValueError) as error:  # ValueError: a reply that is larger than a message may be
            cli.say(f"{message.text('op')} not done: {error}")
            if not connection.is_closed:
                code = error.code if isinstance(error, PeerError) else 'failed'
                connection.send(Kind.ERROR, {'id': number, 'code': code, 'text': str(error)[:1000]})

    def control(self, connection: Connection) -> None:
        """One operator's question, on the control port."""
        connection.max_payload_bytes = 0
        try:
            message = connection.receive(OPERATOR_S)
            if message.kind != Kind.REQUEST:
                raise ProtocolError(f'expected a request, got {message.kind.name}')
            number, op = message.integer('id', 0, 2 ** 62), message.text('op', ('status', 'cancel', 'shutdown'))
            if op == 'shutdown':
                self.stopping.set()
            connection.send(Kind.REPLY, {'id': number, 'text': self.consequence(op), **self.state})
            if op == 'shutdown' and self.tasks.connection is not None:
                self.tasks.connection.close()
            connection.receive(OPERATOR_S)  # until the operator hangs up
            raise ProtocolError('one question a connection')
        except NetworkError as error:
            if not connection.is_closed:
                connection.fail('protocol', str(error))

    def consequence(self, op: str) -> str:
        """Do what the operator asks; what will happen, in words."""
        server = self.tasks.connection
        works = server is not None and not server.is_closed
        if op in ('cancel', 'shutdown') and works:
            self.tasks.cancelled.set()
        if op == 'cancel':
            return ("what runs, or else the server's next request, is cancelled, and the server ends its job"
                    if works else 'there is nothing to cancel: no server is connected')
        return 'the client stops, and a job of the server waits for another client' if op == 'shutdown' else ''

    def listen_for_control(self, port: int, token: bytes) -> None:
        """Open the control port; everything works without it."""
        try:
            listener = Listener(Address('127.0.0.1', port), token, 'worker', ('control',), cli.say,
                                max_handshakes=MAX_OPERATORS)
        except UserError as error:
            cli.say(f'no control port: {error}')
            return

        def serve() -> None:
            for connection in listener:
                self.control(connection)

        for _ in range(MAX_OPERATORS):
            threading.Thread(target=serve, name='control', daemon=True).start()


def preload(path: str, settings: Settings, tasks: Tasks) -> None:
    """Put the weights of a local checkpoint into the cache: the server then need not send them."""
    for unit in units_of(create_network(path, settings.MODEL_NAME, settings.NUM_CLASSES)):
        tasks.store.add(pack_unit(unit))
    cli.say(f'weights of {path} are ready')


def make_tasks(settings: Settings, cache_dir: str, cache_gib: float) -> Tasks:
    """The handlers on this device."""
    threads = settings.threads(settings.CLIENT_THREADS)
    torch.set_num_threads(threads)
    try:
        store = BlobStore(cache_dir, int(cache_gib * (1 << 30)))
    except OSError as error:
        raise UserError(f'cannot use --cache_dir {cache_dir}: {error.strerror}') from None
    return Tasks(devices.device_of(settings.CLIENT_DEVICE), threads, store)


def run(settings: Settings, server_ip: str, port: int, control_port: int, cache_dir: str, cache_gib: float, once: bool,
        tls: Optional[ssl.SSLContext] = None) -> None:
    """Work for the server until told to stop, over as many connections as it takes; with `once` over one.
    `control_port` 0: there is none. Ends the process after a shutdown."""
    tasks = make_tasks(settings, cache_dir, cache_gib)
    if settings.WEIGHT_PATH_CLIENT:
        preload(settings.WEIGHT_PATH_CLIENT, settings, tasks)
    worker, token, server = Worker(tasks), token_from_environment(), Address(server_ip, port)
    if control_port:
        worker.listen_for_control(control_port, token)
    while not worker.stopping.is_set():
        worker.state.update(state='connecting', op='')
        connection = connect_with_retries(server, token, 'worker', 'server', cli.say, worker.stopping.wait,
                                          tls=tls)
        if connection is None:
            break
        cli.say(f'connected to {server}')
        try:
            worker.serve(connection)
            if once:
                break
        except (ConnectionLost, NetworkError) as error:
            if not worker.stopping.is_set():
                cli.say(f'connection lost ({error}); connecting again')
        connection.close()
        worker.stopping.wait(1.0)
    cli.say('client stopped')
    os._exit(0) if worker.stopping.is_set() else None  # a computation under way would hold the process
