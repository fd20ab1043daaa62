"""A connected client, and the hardware table measured through it.

    with open_session(settings, listening) as session:
        table = session.table(domain=0)                     # measured: both tiers, the link, the wire formats

What is measured is kept in the result files round by round, so a restarted server goes on where it was.
"""
from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Callable, Dict, List, Optional, Sequence, Type

import numpy as np
import torch
from tqdm import tqdm

import cli
import lut_manager
import roofline_measure
from config import Settings, UserError
from costs.cost_model import HardwareTable
from costs.wire_costs import WireCosts, block_bytes_of, with_shares
from domains import image_formats
from domain_dataset import load_domain
from hyper_repvgg import create_network, deploy
from lut_manager import TierCosts
from network.inputs import normalise
from network.outline import outline_for
from pipeline import documents, fingerprints, kinds, writing
from remote import replies
from remote.client import OtherDevice, RemoteClient, wait_for_client
from remote.link import measure_link
from tier import devices, tasks
from tier.block_timing import Gammas, NetworkTiming, PartTiming, Round, thread_count, time_network
from wire import codec as wire_codec
from wire.certificates import listening_context
from wire.formats import channels_sent, check_compressions, encoding_of, formats_of

WIRE_SAMPLES = 4  # images whose feature maps are encoded to measure a format's size
MAX_DEVICES = 3  # clients of different kinds that may come, one after the other, while a table is measured


def open_session(settings: Settings, listening: cli.Listening) -> 'Session':
    """Wait for a client. Raises `UserError` when none comes. Real mode means a real device: no DEVICE_PROFILE."""
    formats_of(settings.WIRE_FORMATS)
    if settings.DEVICE_PROFILE:
        raise ValueError('real mode simulates nothing: replace DEVICE_PROFILE by an empty text')
    client = wait_for_client(settings, listening.bind, listening.port, listening.allow_open,
                             tls=listening_context(listening.tls))
    try:
        there = str(client.facts().get('compressions') or 'zlib').split()
        check_compressions(settings.WIRE_FORMATS, there, 'the client')
    except UserError as error:
        client.close(str(error))
        raise
    return Session(client, settings)


class Session:
    """A connected client and what is measured through it."""

    def __init__(self, client: RemoteClient, settings: Settings) -> None:
        self.client, self.settings = client, settings

    def __enter__(self) -> 'Session':
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.client.__exit__(kind, error, trace)

    def on_this_machine(self) -> bool:
        """Does the client run on the server's machine, as far as both can tell?"""
        here, there = devices.machine_facts(), self.client.facts()
        return all(there.get(name) == value for name, value in here.items())

    # --- the table ---

    def table(self, domain: int, remeasure: bool = False) -> HardwareTable:
        """The measured table, kept in hardware_lut_complete.json: read when it was measured with this device under
        these settings, otherwise measured now. The wire formats are measured on validation images of a domain: the
        table decides, and test images decide nothing."""
        for left in reversed(range(MAX_DEVICES)):
            try:
                return self._table(domain, remeasure)
            except OtherDevice as error:
                if not left:
                    raise
                cli.say(f'{error}: measuring the one that is here from the beginning')
        raise AssertionError('unreachable')

    def _table(self, domain: int, remeasure: bool) -> HardwareTable:
        path = kinds.path_of('lut', self.settings)
        inputs = fingerprints.inputs_of('lut', self.settings)
        if not remeasure and fingerprints.is_current([path], inputs):
            table = lut_manager.load(path, self.settings)
            if table.link.measured and not devices.changes(table.tier_info['client'], self.client.facts()):
                cli.say(f'{path}: measured before with this client, used again')
                return table
        server, client = self.server_costs(), self.client_costs(remeasure)
        link = measure_link(self.client)
        cli.say(f'link: {link.up_mbps:.1f} Mbit/s up, {link.down_mbps:.1f} Mbit/s down, '
                f'{link.rtt_ms:.2f} ms round trip')
        images = load_domain(self.settings, domain, 'val').images
        wire = self.wire_costs(images[:WIRE_SAMPLES])
        table = lut_manager.merge(server, client, self.settings, link.towards_tail(self.settings.HEAD_TIER), wire,
                                  image_formats.codec_ms(images))
        lut_manager.save(table, self.settings)
        return table

    def server_costs(self) -> TierCosts:
        """This machine's table: the file, or measured now."""
        path = kinds.path_of('lut_server', self.settings)
        if not fingerprints.is_current([path], fingerprints.inputs_of('lut_server', self.settings)):
            cli.say('measuring this machine as the server')
            roofline = roofline_measure.current_roofline('server', self.settings)
            lut_manager.save_tier(lut_manager.measure_tier('server', self.settings, roofline), self.settings)
        return lut_manager.load_tier('server', self.settings)

    def client_costs(self, remeasure: bool) -> TierCosts:
        """The client's table: the file when it is this device's, or measured now, round by round."""
        facts = self.client.facts()
        path = kinds.path_of('lut_client', self.settings)
        if not remeasure and fingerprints.is_current([path], fingerprints.inputs_of('lut_client', self.settings)):
            costs = lut_manager.load_tier('client', self.settings)
            changed = devices.changes(costs.info, facts)
            if not changed and not costs.info.get('simulated'):
                return costs
            cli.say(f"{path}: {', '.join(changed) or 'simulated'}: measuring the client again")
        timing = self.time_client(facts)
        roofline = self.client.request('roofline', replies.roofline)
        costs = lut_manager.costs_of('client', timing, {**facts, 'engine': self.settings.CLIENT_ENGINE,
                                                   'simulated': False, 'slowdown': 1.0}, roofline)
        lut_manager.save_tier(costs, self.settings)
        return costs

    def time_client(self, facts: Dict[str, Any]) -> NetworkTiming:
        """Block timings on the client. Every finished round is kept on disk until the table is complete."""
        settings = self.settings
        rounds_file = _RoundsFile(settings, facts)
        n_branches = outline_for(settings).n_branches
        with tqdm(desc='timing blocks (client)', unit='visit', leave=False, delay=2, disable=None) as bar:
            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(max(0, done - bar.n))

            timing = time_network(_ClientMachine(self.client, settings), n_branches, lut_manager.same_work(settings),
                                  settings.LUT_ROUNDS, progress, rounds_file.read(), rounds_file.write)
        rounds_file.drop()
        return timing

    def wire_costs(self, images: torch.Tensor) -> WireCosts:
        """Sizes of the formats on feature maps of real images, and what encoding and decoding take on both tiers."""
        settings = self.settings
        shapes = outline_for(settings).blocks
        formats = tuple(dict.fromkeys(('float32', *settings.WIRE_FORMATS)))
        block_bytes = with_shares(WireCosts(block_bytes_of(shapes), {}), shapes, settings).block_bytes
        sizes = {wire: np.zeros(len(shapes), dtype=np.int64) for wire in formats}
        codec = {wire: {tier: np.zeros((len(shapes), 2)) for tier in ('client', 'server')} for wire in formats}
        device = devices.device_of(settings.SERVER_DEVICE)
        torch.manual_seed(settings.SEED)
        model = create_network(kinds.weights_file(settings), settings.MODEL_NAME, settings.NUM_CLASSES).to(device)
        with torch.inference_mode(), thread_count(settings.threads(settings.SERVER_THREADS)):
            z = deploy(model).stem(normalise(images, settings.NORM_MEAN, settings.NORM_STD).to(device))
            for k, block in enumerate(deploy(model).blocks):
                z = block(z)
                one = z[:1].clone()
                client_ms = self.client.request('time_wire', lambda reply: replies.codec_times(reply, len(formats)),
                                                {'formats': list(formats)}, {'z': one})
                for wire, here, there in zip(formats, tasks.wire_ms(one, formats), client_ms):
                    codec[wire]['server'][k], codec[wire]['client'][k] = here, there
                    sizes[wire][k] = block_bytes[wire][k] if wire in block_bytes else mean_bytes(z, wire)
        return WireCosts({**block_bytes, **sizes}, codec)


def mean_bytes(z: torch.Tensor, wire: str) -> int:
    """Of a frame of these feature maps [B, C, h, w]. Where not all channels are sent, those are taken that vary most:
    which they will be depends on the network, and these compress worst."""
    varying = torch.sort(z.var(dim=(0, 2, 3)), descending=True)[1][:channels_sent(wire, z.shape[1])]
    encoded = [wire_codec.encode(one[None, varying], encoding_of(wire)) for one in z]
    return sum(map(wire_codec.encoded_bytes, encoded)) // len(z)


class _ClientMachine:
    """The client as what times a network (`tier.block_timing.Machine`)."""

    def __init__(self, client: RemoteClient, settings: Settings) -> None:
        self.client = client
        self.fields = {'model': settings.MODEL_NAME, 'classes': settings.NUM_CLASSES,
                       'input_size': settings.INPUT_SIZE, 'engine': settings.CLIENT_ENGINE}

    def visits(self, gammas: Sequence[Gammas], progress: Callable[[int], None]) -> np.ndarray:
        """ms [visits, passes, N + 2]."""
        shape = len(gammas), len(gammas[0]) + 2
        return self.client.request('time_visits', lambda reply: replies.times(reply, shape), self.fields,
                                   {'gamma': torch.tensor(gammas)}, steps=len(gammas),
                                   progress=lambda done, total: progress(min(done, len(gammas))))

    def parts(self, parts: Sequence[PartTiming]) -> np.ndarray:
        """ms [parts, passes]."""
        return self.client.request('time_parts', lambda reply: replies.times(reply, (len(parts),)), self.fields, {
            'gamma': torch.tensor([part.gamma for part in parts]),
            'span': torch.tensor([(part.first, part.last) for part in parts])}, steps=len(parts))


class _RoundsFile:
    """The client's finished rounds on disk: a restarted server does not measure them again."""

    def __init__(self, settings: Settings, facts: Dict[str, Any]) -> None:
        self._settings, self._facts = settings, facts
        self.path = kinds.path_of('lut_client', settings).replace('.json', '_rounds.json')
        self._inputs = fingerprints.inputs_of('lut_client', settings)

    def read(self) -> List[Round]:
        """Rounds of the same device and settings; none where the file is damaged."""
        if not fingerprints.is_current([self.path], self._inputs):
            return []
        document = documents.read(self.path, '')
        if devices.changes(document.get('client'), self._facts):
            return []
        n, found = outline_for(self._settings).n_blocks, []
        try:
            for gamma, ms, part_ms in document.get('rounds', list)[:self._settings.LUT_ROUNDS]:
                gammas, times = np.array(gamma, dtype=int), np.array(ms, dtype=float)
                parts = np.array(part_ms or [[1.0]], dtype=float)
                if gammas.shape[1:] != (n,) or times.ndim != 3 or times.shape[::2] != (len(gammas), n + 2) or \
                        parts.ndim != 2 or not all(np.isfinite(values).all() for values in (times, parts)):
                    return []
                found.append(Round(gamma, ms, part_ms))
        except (UserError, ValueError, TypeError, OverflowError):
            return []
        return found

    def write(self, rounds: List[Round]) -> None:
        """Replace the file."""
        writing.write(self.path, {'client': self._facts, 'rounds': [list(entry) for entry in rounds]},
                         writing.make_metadata(self._settings, 'lut_client', self._inputs))

    def drop(self) -> None:
        """The table is complete."""
        if os.path.exists(self.path):
            os.unlink(self.path)
