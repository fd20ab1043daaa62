"""The service: lets clients in, hands their frames to workers, and answers.

    service = Service(settings, entries, workers=2)
    service.start()
    service.serve(listener)          # until `close`

A thread for each client receives, one for each worker hands over batches and sends the answers. All of them meet in one
queue under one lock, which is held for microseconds; no lock is held while anything is computed or received.
"""
from __future__ import annotations

import math
import threading
import time
from typing import Any, Callable, Dict, Hashable, List, Mapping, Optional, Sequence

import cli
import config
from config import Settings, UserError
from network_utils import Listener
from remote.client import ClientPart, RemoteClient, folded_specs
from service.admission import admit, load_of, shares
from service.arena import Arena, Slots
from service.batches import BatchTimes
from service.client import LIVE_WAITING, MAX_UNANSWERED, Frame, ServedClient
from service.entries import Choice, Entry, Network
from service.fair_queue import FairQueue, Waiting
from service.tails import Answer, Prediction, Request, TailKey, TailWorker, WorkerDied, base_model, model_of
from tier.part import cut_shape, head_units
from wire.connection import Connection
from wire.formats import format_at
from wire.frames import Kind, Message, NetworkError, PeerError, ProtocolError

MAX_CLIENTS = 64  # at a time
MAX_ATTEMPTS = 3  # workers that may die of one frame
LONGEST_S = 1e6  # that a client may say a frame took
JOIN_S = 10.0  # for a client that is connected to say what it wants
SPARE_BYTES = 4096  # of a slot: scales, offsets, and what incompressible data grows by


class Service:
    """Clients, workers, and the frames between them."""

    def __init__(self, settings: Settings, entries: Mapping[str, Entry], workers: int, names: Sequence[str] = (),
                 say: Callable[[str], None] = cli.say) -> None:
        self.settings, self.entries, self.names, self._say = settings, dict(entries), list(names), say
        self.clients: List[ServedClient] = []
        self.refused = self.left = 0
        self._started_s = time.monotonic()
        self._queue = FairQueue()
        self._batches: Dict[TailKey, BatchTimes] = {}
        self._arena = Arena(slot_bytes(self.entries, settings), MAX_CLIENTS * MAX_UNANSWERED)
        self._slots = Slots(self._arena.n_slots)
        self._changed = threading.Condition()  # guards everything above
        self._closed = False
        self._base = base_model(settings)
        self._parts: Dict[str, ClientPart] = {}  # whole networks, as clients are sent them
        threads = min(settings.threads(settings.SERVER_THREADS), max(1, config.cores() // workers))
        networks = networks_of(self.entries)
        self.workers = [TailWorker(number, self._arena, settings, networks, threads) for number in range(workers)]
        self._threads: List[threading.Thread] = []

    @property
    def n_slots(self) -> int:
        """Frames that can be under way."""
        return self._arena.n_slots

    @property
    def free_slots(self) -> int:
        """Of them, those that could come now."""
        with self._changed:
            return len(self._slots)

    def snapshot(self) -> Dict[str, Any]:
        """The state of all of it: numbers and short texts, for reports."""
        now_s = time.monotonic()
        with self._changed:
            clients, waiting = list(self.clients), len(self._queue)
        busy = [worker.busy.share(now_s) for worker in self.workers]
        return {'server': {'time_s': round(time.time(), 3), 'up_s': round(now_s - self._started_s, 3),
                           'workers': len(self.workers), 'busy': round(sum(busy) / len(busy), 4), 'waiting': waiting,
                           'n_clients': len(clients), 'refused': self.refused, 'left': self.left,
                           'restarts': sum(worker.restarts for worker in self.workers)},
                'clients': [client.snapshot(now_s) for client in clients]}

    # --- life ---

    def start(self) -> None:
        """Return when all workers are ready. Raises `UserError` when one could not start."""
        try:
            for worker in self.workers:
                worker.wait_until_ready()
        except WorkerDied as error:
            self.close()
            raise UserError(f'{error} before it was ready; its own message says why') from None
        for worker in self.workers:
            self._thread(self._run_worker, worker)

    def serve(self, listener: Listener) -> None:
        """Let clients in until the service is closed."""
        while not self._closed:
            connection = listener.get(timeout_s=0.2)
            if connection is not None:
                self._thread(self._serve_client, connection, listener)

    def close(self) -> None:
        """End workers and connections."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            connections = [client.connection for client in self.clients]
        for connection in connections:
            connection.close()
        for worker in self.workers:
            worker.end()
        for worker in self.workers:
            worker.join()
        for thread in self._threads:
            thread.join()

    def _thread(self, target: Callable[..., None], *arguments: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=target, args=arguments, name=target.__name__, daemon=True))
        self._threads[-1].start()

    # --- clients ---

    def _serve_client(self, connection: Connection, listener: Listener) -> None:
        """One client, from its JOIN to its last answer."""
        client: Optional[ServedClient] = None
        try:
            client = self._admitted(connection)
            self._say(f'{client.name} joins from {connection.peer}: {client.entry.name}, λ {client.choice.split}, '
                      f'{client.choice.wire}')
            remote = RemoteClient(listener, self._say)
            self._part_of(client.entry.network, remote).set_up(connection)
            number = remote.begin(connection, 'serve', self._instructions(client))
            connection.max_payload_bytes = self._arena.slot_bytes
            self._receive_frames(client)
            client.wait_until_answered()
            connection.send(Kind.END)
            remote.finish(connection, 'serve', number)
            connection.send(Kind.GOODBYE, {'text': 'all frames are answered'})
            self._say(f'{client.name} has finished: {client.figures.answered} frames, '
                      f'{client.figures.dropped} of them dropped')
        except (PeerError, UserError) as error:
            connection.fail(getattr(error, 'code', 'failed'), str(error))
            self._say(f'{connection.peer if client is None else client.name}: {error}')
        except NetworkError as error:
            if not connection.is_closed:
                connection.fail('protocol', str(error))
            self._say(f'{connection.peer if client is None else client.name} is gone: {error}')
        finally:
            connection.close()
            if client is not None:
                self._remove(client)

    def _admitted(self, connection: Connection) -> ServedClient:
        """The client that this connection's JOIN describes, if there is room for it; `PeerError` with the reason if
        not."""
        connection.max_payload_bytes = 0
        message = connection.receive(JOIN_S)
        if message.kind != Kind.JOIN:
            raise ProtocolError(f'expected JOIN, got {message.kind.name}')
        wanted = message.text('entry')
        entry = next(iter(self.entries.values())) if not wanted and len(self.entries) == 1 else self.entries.get(wanted)
        if entry is None:
            raise PeerError('refused', f"there is no entry {wanted!r}: {', '.join(list(self.entries)[:20])}")
        asked = message.number('fps', 0)
        fps = asked if asked else entry.promised_fps
        with self._changed:
            if len(self.clients) >= MAX_CLIENTS or self._closed:
                self.refused += 1
                raise PeerError('refused', f'{MAX_CLIENTS} clients are here already')
            promised = sum(load_of(client.fps, client.choice.T_server_ms) for client in self.clients)
            admission = admit(promised, len(self.workers), fps, entry.first, entry.choices, entry.bandwidth_mbps)
            if admission.choice is None:
                self.refused += 1
                raise PeerError('refused', admission.reason)
            client = ServedClient(connection, message.text('name') or connection.peer, entry, admission.choice,
                                  message.flag('live'), fps)
            self.clients.append(client)
            self._queue.add_client(client)
            self._share_out()
        return client

    def _remove(self, client: ServedClient) -> None:
        """Free what a client had; a batch that a worker has of it is answered into the void."""
        with self._changed:
            self.clients.remove(client)
            for waiting in self._queue.remove_client(client):
                self._slots.give_back(waiting.work.slot)
            self._share_out()
            self.left += 1

    def _share_out(self) -> None:
        """Set the shares of all clients; the caller holds the lock."""
        loads: Dict[Hashable, float] = {client: load_of(client.fps, client.choice.T_server_ms)
                                        for client in self.clients}
        for client, share in shares(loads, len(self.workers)).items():
            self._queue.set_weight(client, share)

    def _part_of(self, network: Network, remote: RemoteClient) -> ClientPart:
        """A whole network under the client's γ: its first blocks are the head at every split, all of it is what the
        client goes on with alone."""
        with self._changed:
            part = self._parts.get(network.name)
        if part is None:
            model = model_of(self._base, network)
            units = 0, len(model.blocks) + 2
            spec = folded_specs(network.alpha, network.gamma['client'], units, self.settings)
            part = self._parts[network.name] = ClientPart(remote, model, spec, self.settings.INPUT_SIZE)
        return part.for_client(remote)

    def _instructions(self, client: ServedClient) -> Dict[str, Any]:
        """The fields of the request `serve`."""
        return {'input_size': self.settings.INPUT_SIZE, 'entry': client.entry.name,
                'names': fitting(self.names), **self._choice_fields(client)}

    def _choice_fields(self, client: ServedClient) -> Dict[str, Any]:
        n = len(self._base.blocks)
        choice = client.choice
        return {'c': client.number, 'split': choice.split, 'wire': format_at(choice.split, n, choice.wire),
                'format': choice.wire, 'unit': head_units(choice.split, n)[1]}

    def _receive_frames(self, client: ServedClient) -> None:
        """Queue a client's frames until its END."""
        while True:
            message = client.connection.receive()
            message.raise_error()
            if message.kind == Kind.END:
                return
            number = client.expect_frame(message)
            client.wait_for_room()
            self._queue_frame(client, message, number)

    def _queue_frame(self, client: ServedClient, message: Message, number: int) -> None:
        choice, now = client.choices[number], time.monotonic()
        key = TailKey(client.entry.network.name, choice.split, choice.wire)
        with self._changed:
            slot = self._slots.take()
        if slot is None:
            raise AssertionError('more frames than MAX_UNANSWERED for each of MAX_CLIENTS')
        try:
            layout = self._arena.write(slot, message.tensors)
        except ValueError as error:
            with self._changed:
                self._slots.give_back(slot)
            raise ProtocolError(f'FRAME: {error}') from None
        frame = Frame(client, message.integer('i', 0, 2 ** 62), number, key, slot, layout, message.receive_s, now)
        frame.head_s, frame.earlier_latency_s = (message.number(name, 0, LONGEST_S) for name in ('head_s', 'latency_s'))
        dropped = None
        with self._changed:
            times = self._batches.setdefault(key, BatchTimes(choice.T_server_ms))
            if client.live and self._queue.waiting(client) >= LIVE_WAITING:
                dropped = self._queue.drop_oldest(client).work
                self._slots.give_back(dropped.slot)
            if not self._queue.waiting(client):
                frame.first_s = now
            self._queue.push(Waiting(client, key, times.frame_ms, frame))
            self._changed.notify()
        if dropped is not None:
            client.answer(dropped, {'dropped': True})

    # --- workers ---

    def _run_worker(self, worker: TailWorker) -> None:
        """Hand one batch after the other to a worker."""
        while True:
            batch = self._next_batch()
            if not batch:
                return
            frames = [waiting.work for waiting in batch]
            worker.busy.begin(time.monotonic())
            try:
                answer = worker.ask(Request(frames[0].key, [(frame.slot, frame.layout) for frame in frames]))
            except WorkerDied as error:
                if self._closed:
                    return
                self._say(f'{error}; its {len(frames)} frame(s) are asked again')
                self._ask_again(batch)
            else:
                self._deliver(frames, answer)
            worker.busy.end(time.monotonic())

    def _next_batch(self) -> List[Waiting]:
        """The next frames, as soon as there are any; [] when the service is closed."""
        with self._changed:
            while not self._closed:
                batch = self._queue.take(lambda key, available: self._batches[key].best_size(
                    available, self.settings.BATCH_LATENCY_MS))
                if batch:
                    now = time.monotonic()
                    for waiting in batch:
                        frame = waiting.work
                        frame.first_s = max(frame.first_s, frame.arrived_s, frame.client.last_taken_s)
                        frame.client.last_taken_s = frame.taken_s = now
                    return batch
                self._changed.wait()
        return []

    def _deliver(self, frames: Sequence[Frame], answer: Answer) -> None:
        with self._changed:
            self._batches[frames[0].key].add(len(frames), answer.ms)
            for frame in frames:
                self._slots.give_back(frame.slot)
        for frame, found in zip(frames, answer.frames):
            if isinstance(found, Prediction):
                probability = found.probability if math.isfinite(found.probability) else None
                frame.client.answer(frame, {'prediction': [found.label], 'probability': probability}, answer.ms,
                                    len(frames))
            else:
                frame.client.connection.fail('protocol', f'frame {frame.i}: {found}')

    def _ask_again(self, batch: Sequence[Waiting]) -> None:
        """Frames of a worker that died go back to where they were; a frame that several died of ends its client."""
        again: List[Waiting] = []
        for waiting in batch:
            frame = waiting.work
            frame.attempts += 1
            if frame.attempts >= MAX_ATTEMPTS:
                frame.client.connection.fail('failed', f'{MAX_ATTEMPTS} workers ended while they had frame {frame.i}')
        with self._changed:
            for waiting in batch:
                if waiting.work.attempts < MAX_ATTEMPTS and waiting.work.client in self.clients:
                    again.append(waiting)
                else:
                    self._slots.give_back(waiting.work.slot)
            self._queue.give_back(again)
            self._changed.notify_all()


def networks_of(entries: Mapping[str, Entry]) -> Dict[str, Network]:
    """The networks of these entries, by name."""
    return {entry.network.name: entry.network for entry in entries.values()}


def slot_bytes(entries: Mapping[str, Entry], settings: Settings) -> int:
    """What the largest frame of these entries needs, whatever its format."""
    def frame_bytes(choice: Choice, n_blocks: int) -> int:
        unit = head_units(choice.split, n_blocks)[1]
        shape = cut_shape(settings.MODEL_NAME, settings.NUM_CLASSES, settings.INPUT_SIZE, unit)
        return int(4 * math.prod(shape) * 1.01) + 8 * shape[0] + SPARE_BYTES

    return max(frame_bytes(choice, len(entry.network.alpha)) for entry in entries.values()
               for choice in (entry.first, *entry.choices))


def fitting(names: Sequence[str]) -> List[str]:
    """The classes' names, if they fit into a message."""
    return list(names) if sum(len(name.encode()) + 8 for name in names) < 40_000 else []
