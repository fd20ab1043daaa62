"""The server's view of its client: requests that survive broken connections, and what is built from them.

    with wait_for_client(settings, ...) as client:
        print(client.facts())
        part = ClientPart(client, model, spec)
        z = part.forward(x)

Every request can be repeated. When the connection breaks, the request that was not answered is sent
again to the client that comes back; what was answered is never asked again. Every connection begins with the question
what device this is: another one than before is an `OtherDevice`.
"""
from __future__ import annotations

import copy
import itertools
import math
import ssl
import time
from dataclasses import replace
from types import TracebackType
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar

import numpy as np
import torch

import cli
from config import INT8, TORCH, Settings, UserError
from hyper_repvgg import HyperRepVGG
from network.channels import CutChannels
from network_utils import Address, Listener, token_from_environment
from remote import replies
from tier import devices
from tier.part import DTYPES, PartSpec, cut_shape, pack_unit, units_of
from wire import codec, formats
from wire.blobs import hash_of
from wire.connection import Connection
from wire.frames import MAX_PAYLOAD_BYTES, ConnectionLost, Kind, Message, NetworkError, PeerError, ProtocolError
from wire.stream import HUNG_S

RETURN_S = 600.0  # a client that broke off may take this long to come back
IDENTIFY_S = 10.0  # for a client to say what device it is
BLOB_PIECE_BYTES = 4 << 20
HEADROOM_BYTES = 1 << 20  # of a message, for what travels beside the feature map
LARGEST_ITEM_BYTES = 16  # of a feature map's value, however it is encoded
MAX_REPEATS = 20  # in a row without progress: a client that dies of a request would come back for ever
MAX_PROVIDED = 3  # times that a client may say it lacks what it has just been sent
Progress = Callable[[int, int], None]
T = TypeVar('T')


class OtherDevice(UserError):
    """The client that came is another device than the one before."""


class RemoteClient:
    """One client, over as many connections as it takes."""

    def __init__(self, listener: Listener, say: Callable[[str], None] = cli.say, return_s: float = RETURN_S) -> None:
        self.listener, self._say, self._return_s = listener, say, return_s
        self.connection: Optional[Connection] = None
        self.generation = 0  # counts connections: what was set up on an earlier one must be set up again
        self.interruptions = 0
        self.progress_made = 0  # rises when work that a break does not undo has been done
        self.identity: Dict[str, Any] = {}  # what the client said it is; {} before the first one
        self._identified: Optional[Connection] = None
        self._most_kept: Dict[str, int] = {}  # by a blob's hash: bytes that the client had of it at most
        self.part_in_use: Optional[ClientPart] = None  # what is set up on this connection
        self._ids = itertools.count(1)

    def __enter__(self) -> 'RemoteClient':
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close('the server has finished' if error is None else 'the server stops')

    def close(self, text: str) -> None:
        """Say goodbye and stop listening."""
        if self.connection is not None and not self.connection.is_closed:
            try:
                self.connection.send(Kind.GOODBYE, {'text': text})
            except NetworkError:
                pass
            self.connection.close()
        self.listener.close()

    # --- connections ---

    def connected(self) -> Connection:
        """The present connection, or the next one; `UserError` when no client comes within the time."""
        if self.connection is not None and not self.connection.is_closed:
            return self.connection
        newer = self.listener.get(timeout_s=0.01)
        if newer is None:
            self._say(f'waiting for a client on {self.listener.address} (python client_worker.py --server_ip ... '
                      f'--port {self.listener.address.port})')
            newer = self.listener.get(timeout_s=self._return_s)
        if newer is None:
            raise UserError(f'no client within {self._return_s:g} s; the same command goes on from what is saved')
        self.connection, self.part_in_use = newer, None
        self.generation += 1
        self._say(f'client connected from {newer.peer}')
        return newer

    def retry_until_answered(self, work: Callable[[Connection], T]) -> T:
        """Do `work` on a connection, again from its beginning when the connection breaks, or when what the client
        answers makes no sense. Raises `OtherDevice`."""
        breaks, before = 0, self.progress_made
        while breaks < MAX_REPEATS:
            connection = self.connected()
            try:
                self._identify(connection)
                return work(connection)
            except NetworkError as error:
                self.interruptions += 1
                if not connection.is_closed:
                    connection.fail('protocol', str(error))
                self._say('client lost: ' + (str(error) if connection.peer in str(error) else
                                             f'{connection.peer}: {error}'))
            breaks = breaks + 1 if self.progress_made == before else 0
            before = self.progress_made
        raise UserError(f'the client broke off {MAX_REPEATS} times in the same piece of work; look at its own messages')

    def _identify(self, connection: Connection) -> None:
        """Ask what device this is, once a connection."""
        if connection is self._identified:
            return
        facts = replies.facts(self.ask(connection, 'facts', timeout_s=IDENTIFY_S))
        changed = devices.changes(self.identity, facts) if self.identity else []
        self.identity, self._identified = facts, connection
        if changed:
            raise OtherDevice(f"another client came ({', '.join(changed)}), and what was measured is the other's")

    # --- requests ---

    def ask(self, connection: Connection, op: str, fields: Optional[Mapping[str, Any]] = None,
            tensors: Optional[Mapping[str, torch.Tensor]] = None, progress: Optional[Progress] = None, steps: int = 0,
            reply_bytes: int = 0, timeout_s: Optional[float] = None) -> Message:
        """One request on this connection: `begin` and `finish`. Raises `NetworkError` and `PeerError`."""
        number = self.begin(connection, op, fields, tensors)
        return self.finish(connection, op, number, progress, steps, reply_bytes, timeout_s)

    def begin(self, connection: Connection, op: str, fields: Optional[Mapping[str, Any]] = None,
              tensors: Optional[Mapping[str, torch.Tensor]] = None) -> int:
        """Send a request; its number."""
        number = next(self._ids)
        connection.send(Kind.REQUEST, {'id': number, 'op': op, **(fields or {})}, tensors)
        return number

    def finish(self, connection: Connection, op: str, number: int, progress: Optional[Progress] = None, steps: int = 0,
               reply_bytes: int = 0, timeout_s: Optional[float] = None) -> Message:
        """Wait for the reply to request `number`, of at most so many bytes, for `timeout_s` (HUNG_S); each of the
        `steps` of the work that the client reports gives it as long again."""
        timeout_s = HUNG_S if timeout_s is None else timeout_s
        connection.max_payload_bytes = min(reply_bytes + HEADROOM_BYTES, MAX_PAYLOAD_BYTES)
        furthest, end = 0, time.monotonic() + timeout_s
        while True:
            message = connection.receive(max(0.0, end - time.monotonic()))
            message.raise_error()
            if message.kind not in (Kind.REPLY, Kind.PROGRESS) or message.integer('id', number, number) != number:
                raise ProtocolError(f'{op}: expected a reply, got {message.kind.name}')
            if message.kind == Kind.REPLY:
                return message
            done, total = message.integer('done', 0, 2 ** 62), message.integer('total', 0, 2 ** 62)
            if furthest < done <= steps:
                furthest, end = done, time.monotonic() + timeout_s
            if time.monotonic() > end:
                raise ConnectionLost(f'{connection.peer} reports nothing new for {timeout_s:g} s')
            if progress is not None:
                progress(done, total)

    def request(self, op: str, read: Callable[[Message], T], fields: Optional[Mapping[str, Any]] = None,
                tensors: Optional[Mapping[str, torch.Tensor]] = None, progress: Optional[Progress] = None,
                steps: int = 0, reply_bytes: int = 0) -> T:
        """`ask`, and what `read` (of remote/replies.py) finds in the reply; repeated when the connection breaks or the
        reply makes no sense. Raises `UserError` when the client refuses or fails."""
        try:
            return self.retry_until_answered(lambda connection: read(self.ask(
                connection, op, fields, tensors, progress, steps, reply_bytes)))
        except PeerError as error:
            raise UserError(f'the client could not do it: {error}') from None

    def facts(self) -> Dict[str, Any]:
        """What the device is: name, threads, software, memory, temperature."""
        return self.request('facts', replies.facts)

    def provide(self, connection: Connection, blobs: Mapping[str, Callable[[], np.ndarray]]) -> None:
        """Send what the client lacks of these blobs (hash -> its bytes), each from where it broke off."""
        hashes = list(blobs)
        for start in range(0, len(hashes), 256):
            part = hashes[start:start + 256]
            present = replies.kept_bytes(self.ask(connection, 'have', {'hashes': part}), len(part))
            for digest, done in zip(part, present):
                self._send_blob(connection, digest, blobs[digest](), done)

    def _send_blob(self, connection: Connection, digest: str, data: np.ndarray, done: int) -> None:
        """Send bytes from `done` on. The client may go back (what it had was damaged, or another process dropped it),
        but not for ever."""
        backwards = 0
        if done > data.nbytes:
            raise ProtocolError(f'have: {done} bytes of {data.nbytes}')
        while done < data.nbytes:
            piece = torch.from_numpy(data[done:done + BLOB_PIECE_BYTES].copy())
            reply = self.ask(connection, 'put', {'hash': digest, 'size': data.nbytes, 'offset': done}, {'data': piece})
            now = reply.integer('bytes', 0, data.nbytes)
            backwards += now <= done
            if backwards > MAX_PROVIDED:
                raise UserError('the client does not keep what it is sent; look at the disk of its --cache_dir')
            done = now
            if done > self._most_kept.get(digest, 0):  # the next connection goes on from here
                self._most_kept[digest] = done
                self.progress_made += 1


class ImageSetOnClient:
    """Images that the client holds under their hash, so that requests name rows instead of carrying pixels."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.contiguous()  # uint8 [n, 3, S, S]
        self.bytes = self.images.numpy().reshape(-1)
        self.digest = hash_of(self.bytes)

    @property
    def fields(self) -> Dict[str, Any]:
        """What a request says to name the set."""
        return {'images': self.digest, 'n_images': len(self.images), 'input_size': self.images.shape[-1]}

    @property
    def blobs(self) -> Dict[str, Callable[[], np.ndarray]]:
        """For `RemoteClient.provide`."""
        return {self.digest: lambda: self.bytes}


class ClientPart:
    """A part of the network on the client: sets itself up again on every new connection."""

    def __init__(self, client: RemoteClient, model: HyperRepVGG, spec: PartSpec, input_size: int,
                 images: Optional[ImageSetOnClient] = None) -> None:
        """`input_size`: of the images, pixels; `images`: those that requests will name rows of."""
        self.client, self.spec, self.images, self._input_size = client, spec, images, input_size
        self.largest_values = max(math.prod(cut_shape(spec.model_name, spec.num_classes, input_size, unit))
                                  for unit in (spec.first, spec.last))  # of an image, into the part or out of it
        self._out_shape = cut_shape(spec.model_name, spec.num_classes, input_size, spec.last)  # without the batch
        if spec.channels is not None and spec.first == 0:
            self._out_shape = spec.channels.shape(self._out_shape)
        item_bytes = 8 if spec.dtype == 'float64' else 4
        self.largest_batch = (MAX_PAYLOAD_BYTES - HEADROOM_BYTES) // (item_bytes * self.largest_values)
        units = units_of(model)[spec.first:spec.last]
        self._blobs = {hash_of(pack_unit(unit)): unit for unit in units}
        self._hashes = [hash_of(pack_unit(unit)) for unit in units]
        self._steps = itertools.count(1)

    def for_client(self, client: RemoteClient) -> 'ClientPart':
        """This part for another client: what has been hashed is hashed."""
        other = copy.copy(self)
        other.client = client
        return other

    def set_up(self, connection: Connection, place: int = 0) -> None:
        """Send the configuration, and what the client lacks, unless this connection has it. `place` k: the client is
        to hold it behind the parts 0 .. k-1 that it has."""
        if self.client.part_in_use is self:
            return
        spec = self.spec
        blobs = {digest: (lambda unit=unit: pack_unit(unit)) for digest, unit in self._blobs.items()}
        self.client.provide(connection, {**blobs, **(self.images.blobs if self.images else {})})
        fields = {'model': spec.model_name, 'classes': spec.num_classes, 'input_size': self._input_size,
                  'first': spec.first, 'last': spec.last, 'dtype': spec.dtype, 'mean': list(spec.mean),
                  'std': list(spec.std), 'hashes': self._hashes, 'folded': spec.gamma is not None, 'place': place,
                  'engine': spec.engine}
        tensors = {}
        if spec.gamma is not None:
            fields['gamma'] = list(spec.gamma)
            tensors['alpha'] = torch.tensor(spec.alpha, dtype=torch.float64).reshape(-1, 3)
        if spec.peaks is not None:
            tensors['peaks'] = torch.tensor(spec.peaks, dtype=torch.float64)
        if spec.channels is not None:
            tensors.update(sent=torch.tensor(spec.channels.sent), fill=torch.tensor(spec.channels.fill))
        self.client.ask(connection, 'part', fields, tensors)
        self.client.part_in_use = self

    def retry_until_answered(self, work: Callable[[Connection], T]) -> T:
        """`RemoteClient.retry_until_answered` with this part set up; what the client turns out to lack is sent."""
        def attempt(connection: Connection) -> T:
            for left in reversed(range(MAX_PROVIDED)):
                try:
                    self.set_up(connection)
                    return work(connection)
                except PeerError as error:
                    if error.code != 'unknown' or left == 0 or connection.is_closed:
                        raise
                    self.client.part_in_use = None
            raise AssertionError('unreachable')

        try:
            return self.client.retry_until_answered(attempt)
        except PeerError as error:
            raise UserError(f'the client could not do it: {error}') from None

    def ask_forward(self, connection: Connection, x: Optional[torch.Tensor], rows: Optional[torch.Tensor], wire: str,
                    wire_back: str, alpha: Optional[torch.Tensor], keep: bool, input_grad: bool = False,
                    ) -> Tuple[int, torch.Tensor]:
        """One forward request; (step, output). Raises `UserError` when one message could not hold it."""
        count = len(x) if rows is None else len(rows)
        if count > self.largest_batch:
            raise UserError(f'a batch of {count} images does not fit into a message of {MAX_PAYLOAD_BYTES >> 20} MiB '
                            f'at this split, at most {self.largest_batch} do: lower BATCH_SIZE and RECOVERY_BATCH_SIZE')
        step = next(self._steps)
        fields: Dict[str, Any] = {'step': step, 'keep': keep, 'input_grad': input_grad, 'wire_back': wire_back}
        tensors = {} if alpha is None else {'alpha': alpha.detach().double()}
        if rows is not None:
            fields.update(self.images.fields)
            tensors['rows'] = rows
        else:
            fields.update(wire=wire, shape=list(x.shape))
            tensors.update(codec.encode(x.detach(), wire))
        if self.spec.first == self.spec.last:  # an empty part gives back what it gets
            dtype = torch.uint8 if x is None else x.dtype
        else:
            dtype = DTYPES[self.spec.dtype]
        shape = (count, *self._out_shape)
        reply = self.client.ask(connection, 'forward', fields, tensors,
                                reply_bytes=LARGEST_ITEM_BYTES * math.prod(shape))
        return step, replies.feature_map(reply, shape, wire_back, dtype if wire_back == formats.AS_COMPUTED else
                                         torch.float32)

    def forward(self, x: Optional[torch.Tensor] = None, rows: Optional[torch.Tensor] = None,
                wire: str = formats.AS_COMPUTED, wire_back: str = formats.AS_COMPUTED,
                alpha: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Output of the part for `x`, or for these rows of its image set."""
        return self.retry_until_answered(
            lambda connection: self.ask_forward(connection, x, rows, wire, wire_back, alpha, False))[1]


# --- finding the client ------------------------------------------------------------------------------

def wait_for_client(settings: Settings, bind: Optional[str] = None, port: Optional[int] = None,
                    allow_open: bool = False, say: Callable[[str], None] = cli.say,
                    return_s: float = RETURN_S, tls: Optional[ssl.SSLContext] = None) -> RemoteClient:
    """Listen on `bind` (SERVER_IP) and `port` (PORT_MAIN), and wait for a client. Raises `UserError`."""
    address = Address(bind or settings.SERVER_IP, settings.PORT_MAIN if port is None else port)
    listener = Listener(address, token_from_environment(), 'server', ('worker',), say, allow_open, tls=tls)
    client = RemoteClient(listener, say, return_s)
    facts = client.facts()
    say(f"client: {facts.get('name')}, {facts.get('device')}, {facts.get('threads')} thread(s), "
        f"PyTorch {facts.get('torch')}, Python {facts.get('python')}")
    return client


def folded_specs(alpha: np.ndarray, gamma: Sequence[int], split_units: Tuple[int, int], settings: Settings,
                 engine: str = TORCH, channels: Optional[CutChannels] = None,
                 peaks: Optional[Tuple[float, ...]] = None) -> PartSpec:
    """The spec of the units [first, last) under γ and α [N, 3]; `channels`: those that cross the cut (None: all);
    `peaks`: see `PartSpec`."""
    spec = PartSpec(settings.MODEL_NAME, settings.NUM_CLASSES, *split_units, dtype='float32',
                    mean=tuple(settings.NORM_MEAN), std=tuple(settings.NORM_STD))
    rows: List[Tuple[float, ...]] = [tuple(float(v) for v in alpha[k]) for k in spec.blocks]
    return replace(spec, gamma=tuple(int(gamma[k]) for k in spec.blocks), alpha=tuple(rows), engine=engine,
                   channels=channels, peaks=peaks if engine == INT8 else None)
