"""The service: lets clients in, sends them what they run, receives their frames, and adapts what they run.

    service = Service(settings, entries, workers=2)
    service.start()
    service.serve(listener)          # until `close`

A thread for each client receives its frames; `Dispatcher` has them run and answered.
"""
from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import torch

import cli
from config import Settings, UserError
from fleet.decisions import Conditions, load_of, switch
from network_utils import Listener
from remote.client import ClientPart, RemoteClient, folded_specs
from service.adapting import costs_of
from service.admission import admitted, shares
from service.client import Configuration, ServedClient
from service.dispatch import Dispatcher
from service.entries import Choice, Entry, ServedNetwork
from service.holding import folded_mb, held
from service.shift import References, watch
from service.tails import base_model, model_of
from service.workers import StartWorkers, start_processes
from tier.part import STATISTICS, cut_shape, head_units
from wire.connection import Connection
from wire.formats import can_be_packed, encoding_at
from wire.frames import Kind, Message, NetworkError, PeerError, ProtocolError

MAX_CLIENTS = 64  # at a time
MAX_HELD = 16  # networks on a device
JOIN_S = 10.0  # for a client that is connected to say what it wants
BEATS, SHORTEST_BEAT_S = 4, 0.05  # so often a client hears of a server that lives before it would take it for gone
ADAPT_S = 0.25  # between two looks at what clients meet
SPARE_BYTES = 4096  # of a frame: scales, offsets, and what incompressible data grows by
MAX_NAMES_BYTES = 40_000  # of the classes' names, which must fit into a message's header


class Service:
    """All clients, and what they may run."""

    def __init__(self, settings: Settings, entries: Mapping[str, Entry], workers: int, names: Sequence[str] = (),
                 say: Callable[[str], None] = cli.say, adapts: bool = True,
                 references: Optional[References] = None, start_workers: StartWorkers = start_processes) -> None:
        """`names`: of the classes; `adapts`: may clients' configurations change while they are served? `references`:
        what the entries' domains look like; clients are then switched to that which their frames look like.
        `start_workers`: where tails run."""
        self.settings, self.entries, self.names, self._say = settings, dict(entries), fitting(names), say
        self.clients: List[ServedClient] = []
        self.refused = self.left = 0
        self._lock = threading.Lock()  # guards these
        self._references = references
        self._adapts, self._closed, self._started_s = adapts, threading.Event(), time.monotonic()
        self._base = base_model(settings)
        self._parts: Dict[str, ClientPart] = {}  # whole networks, as clients are sent them
        self._threads: List[threading.Thread] = []
        networks = {network.name: network for entry in self.entries.values() for network in entry.networks}
        self._size_mb = {name: folded_mb(network, 'client', settings) for name, network in networks.items()}
        self.dispatcher = Dispatcher(settings, networks, frame_bytes(self.entries, settings), MAX_CLIENTS, workers, say,
                                     start_workers)

    # --- life ---

    def start(self) -> None:
        """Return when all workers are ready. Raises `UserError` when one could not start."""
        self.dispatcher.start()
        if self._adapts:
            self._thread(self._adapt)

    def serve(self, listener: Listener) -> None:
        """Let clients in until the service is closed."""
        while not self._closed.is_set():
            connection = listener.get(timeout_s=0.2)
            if connection is not None:
                self._thread(self._serve_client, connection, listener)

    def close(self) -> None:
        """End workers and connections."""
        self._closed.set()
        with self._lock:
            connections = [client.connection for client in self.clients]
        for connection in connections:
            connection.close()
        self.dispatcher.close()
        for thread in self._threads:
            thread.join()

    def _thread(self, target: Callable[..., None], *arguments: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=target, args=arguments, name=target.__name__, daemon=True))
        self._threads[-1].start()

    def snapshot(self) -> Dict[str, Any]:
        """The state of all of it: numbers and short texts, for reports."""
        now_s = time.monotonic()
        with self._lock:
            clients = list(self.clients)
        server = {'time_s': round(time.time(), 3), 'up_s': round(now_s - self._started_s, 3), 'n_clients': len(clients),
                  'refused': self.refused, 'left': self.left, **self.dispatcher.snapshot(now_s)}
        return {'server': server, 'clients': [client.snapshot(now_s) for client in clients]}

    # --- clients ---

    def _serve_client(self, connection: Connection, listener: Listener) -> None:
        """One client, from its JOIN to its last answer."""
        client: Optional[ServedClient] = None
        try:
            client = self._admitted(connection)
            others = f'; it holds {len(client.held)} networks' if len(client.held) > 1 else ''
            self._say(f'{client.name} joins from {connection.peer}: {described(client.current)}{others}')
            remote = RemoteClient(listener, self._say)
            for place, network in enumerate(client.held):
                self._part_of(network, remote).set_up(connection, place)
            if len(client.held) > 1:
                self._thread(self.dispatcher.prepare, [network.name for network in client.held])
            number = remote.begin(connection, 'serve', self._instructions(client))
            connection.max_payload_bytes = self.dispatcher.slot_bytes
            self._receive_frames(client)
            client.wait_until_answered()
            connection.send(Kind.END)
            remote.finish(connection, 'serve', number)
            connection.send(Kind.GOODBYE, {'text': 'all frames are answered'})
            self._say(f'{client.name} has finished: {client.figures.answered} frames, {client.figures.dropped} of them '
                      'dropped')
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
        wanted, name = message.text('entry'), message.text('name') or connection.peer
        entry = next(iter(self.entries.values())) if not wanted and len(self.entries) == 1 else self.entries.get(wanted)
        if entry is None:
            raise PeerError('refused', f"there is no entry {wanted!r}: {', '.join(list(self.entries)[:20])}")
        least_s = message.number('silent_s', 0) / BEATS
        connection.beat_every(max(SHORTEST_BEAT_S, min(connection.heartbeat_s, least_s)))
        fps, live = message.number('fps', 0) or entry.promised_fps, message.flag('live')
        there = str(message.fields.get('compressions') or 'zlib').split()
        entry = entry.for_compressions(there)
        others = [] if self._references is None else [one for one in self.entries.values() if one.name != entry.name and
                                                      can_be_packed(one.first.wire, there)]
        networks = held(entry, others, self._size_mb, message.number('hold_mb', 0), MAX_HELD)
        names = [network.name for network in networks]
        entry = entry.within(names)
        ready = {one.name: one.for_compressions(there).within(names) for one in others if one.network.name in names}
        with self._lock:
            promised, workers = sum(self._loads().values()), len(self.dispatcher.workers)
            found = admitted(entry, fps, promised, workers, self.settings)
            if found.option is None or len(self.clients) >= MAX_CLIENTS or self._closed.is_set():
                self.refused += 1
                raise PeerError('refused', found.reason or f'{MAX_CLIENTS} clients are here already')
            client = ServedClient(connection, name, entry, found.option, live, fps, networks, ready)
            self.clients.append(client)
            self.dispatcher.add_client(client)
            self._share_out()
        return client

    def _remove(self, client: ServedClient) -> None:
        """Free what a client had."""
        with self._lock:
            self.clients.remove(client)
            self.dispatcher.remove_client(client)
            self._share_out()
            self.left += 1

    def _loads(self) -> Dict[ServedClient, float]:
        """Workers that have been promised to each client; the caller holds the lock."""
        return {client: 0.0 if client.fps is None else load_of(client.fps, client.choice) for client in self.clients}

    def _share_out(self) -> None:
        """Set the shares of all clients; the caller holds the lock."""
        self.dispatcher.set_shares(shares(self._loads(), len(self.dispatcher.workers)))

    def _part_of(self, network: ServedNetwork, remote: RemoteClient) -> ClientPart:
        """A whole network under the client's γ: its first blocks are the head at every split, all of it is what the
        client goes on with alone."""
        part = self._parts.get(network.name)
        if part is None:
            model = model_of(self._base, network)
            units = 0, len(model.blocks) + 2
            spec = folded_specs(network.alpha, network.gamma['client'], units, self.settings,
                                self.settings.CLIENT_ENGINE)
            part = self._parts[network.name] = ClientPart(remote, model, spec, self.settings.INPUT_SIZE)
        return part.for_client(remote)

    def _instructions(self, client: ServedClient) -> Dict[str, Any]:
        """The fields of the request `serve`."""
        return {'input_size': self.settings.INPUT_SIZE, 'names': self.names, 'watch': self._references is not None,
                **self._choice_fields(client)}

    def _choice_fields(self, client: ServedClient) -> Dict[str, Any]:
        number = client.number
        running, n_blocks = client.configurations[number], len(self._base.blocks)
        split, wire = running.choice.split, running.choice.wire
        channels = running.network.channels_at(split, wire)
        return {'c': number, 'split': split, 'wire': encoding_at(split, n_blocks, wire), 'format': wire,
                'sent': [] if channels is None else list(channels.sent),
                'unit': head_units(split, n_blocks)[1], 'place': client.place_of(running.network),
                'network': running.network.name, 'entry': running.entry.name}

    def _receive_frames(self, client: ServedClient) -> None:
        """Queue a client's frames until its END."""
        while True:
            message = client.connection.receive()
            message.raise_error()
            if message.kind == Kind.END:
                return
            number = client.expect_frame(message)
            if self._references is not None:
                self._watch(client, message)
            client.wait_for_room()
            self.dispatcher.submit(client, message, number)

    # --- adapting ---

    def _adapt(self) -> None:
        """Look at every client from time to time: would it be better off with another choice?"""
        while not self._closed.wait(ADAPT_S):
            with self._lock:
                clients = list(self.clients)
            for client in clients:
                self._consider(client, time.monotonic())

    def _consider(self, client: ServedClient, now_s: float) -> None:
        """Switch one client where that is decided. Frames say which configuration their heads were computed under, so
        those under way are not touched."""
        now, entry = client.now(now_s), client.entry
        if now is None:
            return
        with self._lock:
            if client not in self.clients or client.entry is not entry or client.choice not in entry.choices:
                return
            costs, number = self._costs(client, entry, now), entry.choices.index(client.choice)
            client.switching, found = switch(client.switching, now_s, number, costs, self.settings)
            if found is None:
                return
            before = client.current
            client.switch(entry, entry.choices[found])
            self._share_out()
        self._tell(client, before, f'T_eff {costs.get(number, math.inf):.1f} -> {costs[found]:.1f} ms at '
                                   f'{now.bandwidth_mbps:.1f} Mbit/s')

    def _costs(self, client: ServedClient, entry: Entry, now: Conditions) -> Dict[int, float]:
        """T_eff of an entry's choices for a client; the caller holds the lock."""
        loads, workers = self._loads(), len(self.dispatcher.workers)
        free = self.settings.MAX_LOAD * workers - sum(loads.values()) + loads[client]
        share = min(1.0, shares(loads, workers)[client]) if client.fps is None else 1.0
        return costs_of(entry.choices, now, client.fps, share, free, self.settings.OMEGA)

    def _tell(self, client: ServedClient, before: Configuration, why: str) -> None:
        """Say that a client has been switched, to itself, too."""
        self._say(f'{client.name} switches from {described(before)} to {described(client.current)}: {why}')
        with client.telling, contextlib.suppress(NetworkError):  # its own thread finds out
            client.connection.send(Kind.SWITCH, self._choice_fields(client))

    def _watch(self, client: ServedClient, message: Message) -> None:
        """Take what a frame looks like, and switch its client to another domain's entry where that is decided: to what
        is best there under what the client meets. Raises `ProtocolError`."""
        statistics = message.tensor(STATISTICS, torch.float32, 2).numpy()
        if statistics.size != self._references.means.shape[1] or len(statistics) != 2:
            raise ProtocolError(f'FRAME: statistics of shape {statistics.shape}')
        del message.tensors[STATISTICS]
        client.looks, found = watch(client.looks, statistics, client.entry.name, self._references,
                                    self.settings.SHIFT_AFTER_FRAMES)
        entry = client.entries.get(found or '')
        if entry is None:
            return
        now = client.now(time.monotonic()) or Conditions(entry.bandwidth_mbps, entry.rtt_ms)
        with self._lock:
            costs = self._costs(client, entry, now)
            if not costs:  # nothing there fits beside what was promised
                return
            before = client.current
            client.switch(entry, entry.choices[min(costs, key=costs.__getitem__)])
            self._share_out()
        self._tell(client, before, 'its frames look so')


def described(configuration: Configuration) -> str:
    """What a client runs, in words."""
    return f'{configuration.network.name}, λ {configuration.choice.split}, {configuration.choice.wire}'


def frame_bytes(entries: Mapping[str, Entry], settings: Settings) -> int:
    """What the largest frame of these entries needs, whatever its format."""
    def bytes_of(choice: Choice, n_blocks: int) -> int:
        unit = head_units(choice.split, n_blocks)[1]
        shape = cut_shape(settings.MODEL_NAME, settings.NUM_CLASSES, settings.INPUT_SIZE, unit)
        return int(4 * math.prod(shape) * 1.01) + 8 * shape[0] + SPARE_BYTES

    return max(bytes_of(choice, len(entry.network.alpha)) for entry in entries.values()
               for choice in (entry.first, *entry.choices))


def fitting(names: Sequence[str]) -> List[str]:
    """The classes' names, if they fit into a message."""
    return list(names) if sum(len(name.encode()) + 8 for name in names) < MAX_NAMES_BYTES else []
