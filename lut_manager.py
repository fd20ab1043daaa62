"""The hardware table: measure or simulate a tier, save, merge, load and check.

One tier's costs are a `TierCosts`; two of them and the link make a `cost_model.HardwareTable`, whose file is
`results/hardware_lut_complete.json`.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np
import torch

import cli
from config import INT8, TORCH, Settings, UserError
from costs.correction import Correction, HeldOut, fit_correction
from costs.cost_model import FLOAT32, TIERS, EndCosts, HardwareTable, Link, Roofline
from costs.device_profiles import load_profile, predict_block_ms, predict_classifier_ms, predict_stem_ms, slowdown_of
from costs.energy import Power, possible, power_from_json
from costs.power_sensors import watts_of
from costs.wire_costs import WireCosts, block_bytes_of, with_shares
from costs.work import block_work, classifier_work, work_table
from gamma_mask_builder import runnable_gammas
from hyper_repvgg import Network, create_network
from network.gammas import GAMMAS, N_GAMMA, fused_gamma
from network.outline import outline_for
from network.shapes import GraphShape
from pipeline import documents, fingerprints, kinds, provenance, writing
from pipeline.documents import Document
from pipeline.writing import numbers_or_none
from tier.block_timing import NetworkTiming, PartTiming, ThisMachine, branch_counts, pooled, time_network
from tier.devices import device_of, facts_of
from wire.formats import WIRE_FORMATS

BATCH_SIZE = 1  # images a forward pass: a camera delivers one frame at a time


@dataclass(frozen=True)
class TierCosts:
    """One tier's times as measured, ms for one image; NaN where a block cannot run a γ."""
    tier: str
    info: Dict[str, Any]  # name, simulated, threads, ...
    block_ms: np.ndarray  # [N, 14]
    block_iqr_ms: np.ndarray  # [N, 14]; zero where simulated by a formula
    stem_ms: float
    classifier_ms: float
    roofline: Roofline
    parts: Tuple[PartTiming, ...] = ()  # heads, tails and whole networks timed as a whole
    power: Optional[Power] = None  # None: not known

    def sum_ms(self, part: PartTiming) -> float:
        """The sum of the entries of a part."""
        blocks = range(part.first, part.last)
        ends = self.stem_ms * (part.first == 0) + self.classifier_ms * (part.last == len(self.block_ms))
        return ends + float(self.block_ms[blocks, [part.gamma[k] for k in blocks]].sum())

    def correction(self) -> Correction:
        """What the sums miss of the parts that were timed as a whole."""
        return fit_correction(np.array([self.sum_ms(part) for part in self.parts]),
                              np.array([part.ms for part in self.parts]), min(self.stem_ms, self.classifier_ms))


def measure_tier(tier: str, settings: Settings, roofline: Roofline,
                 progress: Optional[Callable[[int, int], None]] = None) -> TierCosts:
    """Measure this machine as a tier."""
    name, threads = ((settings.SERVER_DEVICE, settings.SERVER_THREADS) if tier == 'server' else
                     (settings.CLIENT_DEVICE, settings.CLIENT_THREADS))
    return _measured(tier, settings, device_of(name), settings.threads(threads), 1.0, {}, roofline, progress)


def simulate_client(settings: Settings, roofline: Roofline,
                    progress: Optional[Callable[[int, int], None]] = None) -> TierCosts:
    """The client tier by DEVICE_PROFILE: this machine slowed down, or the profile's kernel model."""
    profile = load_profile(settings.DEVICE_PROFILE)
    if profile.kind == 'measured':
        return _measured('client', settings, torch.device('cpu'), profile.threads, slowdown_of(profile, settings),
                         {'profile': profile.name}, roofline, progress, profile.power)
    if settings.CLIENT_ENGINE != TORCH:
        raise UserError(f'DEVICE_PROFILE={settings.DEVICE_PROFILE} describes a device that runs PyTorch: CLIENT_ENGINE '
                        f'must be {TORCH}')
    outline = outline_for(settings)
    if isinstance(outline.stem, GraphShape):
        raise UserError(f'DEVICE_PROFILE={settings.DEVICE_PROFILE} models the kernels of RepVGG and no others: take '
                        'edge-cpu, a profile with a slowdown, or measure a device')
    block_ms = np.stack([predict_block_ms(profile, shape) for shape in outline.blocks])
    return TierCosts('client', {'name': profile.name, 'simulated': True, 'profile': profile.name,
                                'source': profile.source},
                     block_ms, np.where(np.isnan(block_ms), np.nan, 0.0), predict_stem_ms(profile, outline.stem),
                     predict_classifier_ms(profile, *outline.classifier), roofline, power=profile.power)


def _measured(tier: str, settings: Settings, device: torch.device, threads: int, slowdown: float,
              extra: Dict[str, Any], roofline: Roofline, progress: Optional[Callable[[int, int], None]],
              power: Optional[Power] = None) -> TierCosts:
    """This machine as a tier; `power`: of the device that it stands for, where it stands for one (`extra`)."""
    torch.manual_seed(settings.SEED)  # random weights: times do not depend on their values
    model = create_network(None, settings.MODEL_NAME, settings.NUM_CLASSES).to(device)
    image = torch.rand(BATCH_SIZE, 3, settings.INPUT_SIZE, settings.INPUT_SIZE, device=device)
    engine = settings.SERVER_ENGINE if tier == 'server' else settings.CLIENT_ENGINE
    timing = time_network(ThisMachine(model, image, threads, engine), branch_counts(model), same_work(settings),
                          settings.LUT_ROUNDS, progress or (lambda done, total: None))
    info = {**facts_of(device, threads), 'engine': engine, 'simulated': slowdown != 1.0 or
            bool(extra), 'slowdown': slowdown, **extra}
    if not info['simulated']:
        power = measured_power(model, image)
    return replace(costs_of(tier, timing, info, roofline, slowdown), power=power)


def measured_power(model: Network, image: torch.Tensor) -> Optional[Power]:
    """What this machine draws by its own sensors; sending is not measured and counts as idling."""
    found = watts_of(lambda: float(model(image).sum()))  # waits for a GPU
    if found is None or not possible(*found, found[1]):
        cli.say('note: no power sensor (INA3221, RAPL) can be read: the energy of this tier is not known')
        return None
    return Power(*found, found[1], 'measured')


def costs_of(tier: str, timing: NetworkTiming, info: Dict[str, Any], roofline: Roofline, slowdown: float = 1.0,
             ) -> TierCosts:
    """A tier's costs from its timing."""
    timing = pooled(timing) if info.get('engine') == INT8 else timing
    info = {**info, 'samples_per_entry': timing.n_samples, 'cells_timed_again': timing.n_timed_again}
    parts = tuple(part._replace(ms=slowdown * part.ms) for part in timing.parts)
    return TierCosts(tier, info, slowdown * timing.block_ms, slowdown * timing.block_iqr_ms,
                     slowdown * timing.stem_ms, slowdown * timing.classifier_ms, roofline, parts)


def same_work(settings: Settings) -> np.ndarray:
    """Cells that do the same work have the same number: int [N, 14], below 0 where a block cannot run a γ."""
    shapes = outline_for(settings).blocks
    flops, n_bytes = work_table(shapes)
    operators = [shape.operators if isinstance(shape, GraphShape) else '' for shape in shapes]
    kinds_of = np.broadcast_to(np.unique(operators, return_inverse=True)[1][:, None], flops.shape)
    work = np.stack([flops, n_bytes, kinds_of], axis=-1).reshape(-1, 3)
    numbers = np.unique(np.nan_to_num(work, nan=-1.0), axis=0, return_inverse=True)[1].reshape(flops.shape)
    return np.where(np.isnan(flops), -1, numbers)


# --- one tier's file ----------------------------------------------------------------------------

def save_tier(costs: TierCosts, settings: Settings) -> str:
    """Write results/lut_{tier}.json; returns its path."""
    outline = outline_for(settings)
    names, kind = list(outline.block_names), f'lut_{costs.tier}'
    path = kinds.path_of(kind, settings)
    metadata = {**writing.make_metadata(settings, kind, fingerprints.inputs_of(kind, settings)),
                **shape_metadata(settings), costs.tier: costs.info}
    key = f'T_{costs.tier}'
    writing.write(path, {
        'tier': costs.tier, 'block_names': names, 'has_identity': dict(zip(names, outline.has_identity)),
        key: rows_to_json(names, costs.block_ms), 'IQR': rows_to_json(names, costs.block_iqr_ms),
        'stem': {key: costs.stem_ms}, 'classifier': {key: costs.classifier_ms},
        'power': costs.power.as_dict() if costs.power else None,
        'roofline': roofline_to_json(costs.roofline), 'parts': [part._asdict() for part in costs.parts]}, metadata)
    return path


def load_tier(tier: str, settings: Settings, path: Optional[str] = None) -> TierCosts:
    """Read a tier's file (the client's may have been copied from the device); `UserError` if it does not fit."""
    path = path or kinds.path_of(f'lut_{tier}', settings)
    document = documents.read(path, kinds.command_for(f'lut_{tier}', settings))
    check_shape(document, settings)
    key = f'T_{tier}'
    return TierCosts(tier, document.get(f'metadata.{tier}'), rows_from_json(document, key, settings),
                     rows_from_json(document, 'IQR', settings),
                     document.number(f'stem.{key}', 0), document.number(f'classifier.{key}', 0),
                     roofline_from_json(document, 'roofline'), parts_from_json(document, settings),
                     power_from_json(document, 'power'))


def parts_from_json(document: Document, settings: Settings) -> Tuple[PartTiming, ...]:
    """The parts that were timed as a whole: spans and γ that the network can run."""
    outline, found = outline_for(settings), []
    n, runnable = outline.n_blocks, runnable_gammas(outline.n_branches)
    for i, entry in enumerate(document.get('parts', list)):
        part = Document(document.path, {f'parts[{i}]': entry}, document.made_by)
        first, last = (part.get((f'parts[{i}]', name), int) for name in ('first', 'last'))
        ms = part.number((f'parts[{i}]', 'ms'), 0)
        gamma = part.numbers((f'parts[{i}]', 'gamma'), n, lowest=0)
        runs = all(g in np.flatnonzero(row) for g, row in zip(gamma, runnable))
        if not 0 <= first < last <= n or not runs or ms <= 0:
            raise document.refuse(f"field 'parts[{i}]' is no part of the network with a time")
        found.append(PartTiming(first, last, tuple(int(g) for g in gamma), ms))
    return tuple(found)


def shape_metadata(settings: Settings) -> Dict[str, Any]:
    """What a table must agree on with the settings that read it."""
    return {'num_classes': settings.NUM_CLASSES, 'input_shape': [3, settings.INPUT_SIZE, settings.INPUT_SIZE],
            'batch_size': BATCH_SIZE}


def check_shape(document: Document, settings: Settings) -> None:
    """Refuse a table of another model, shape or block list."""
    document.require_model(settings)
    for name, wanted in shape_metadata(settings).items():
        found = document.get(f'metadata.{name}', type(wanted))
        if found != wanted:
            raise document.refuse(f'was made for {name} {found}, the settings say {wanted}')
    outline = outline_for(settings)
    if document.get('block_names', list) != list(outline.block_names):
        raise document.refuse(f'its block names are not those of {settings.MODEL_NAME}')
    if document.get('has_identity') != dict(zip(outline.block_names, outline.has_identity)):
        raise document.refuse(f'has_identity does not fit {settings.MODEL_NAME}')


def rows_to_json(names: List[str], values: np.ndarray) -> Dict[str, List[Optional[float]]]:
    """[N, 14] with NaN -> {block: [14 numbers or None]}."""
    return {name: numbers_or_none(row) for name, row in zip(names, values)}


def rows_from_json(document: Document, key: str, settings: Settings) -> np.ndarray:
    """{block: [14]} -> [N, 14]; a number exactly where the block can run the γ."""
    outline = outline_for(settings)
    names = outline.block_names
    values = np.array([document.numbers((key, name), N_GAMMA, none_allowed=True, lowest=0) for name in names])
    wrong = np.isnan(values) == runnable_gammas(outline.n_branches)
    if wrong.any():
        block, gamma = (int(i) for i in np.argwhere(wrong)[0])
        raise document.refuse(f"field '{key}.{names[block]}[{gamma}]' must be "
                              f"{'null' if not np.isnan(values[block, gamma]) else 'a number'}")
    return values


def roofline_to_json(roofline: Roofline) -> Dict[str, float]:
    """{peak_gflops, bandwidth_gbs, i_knee}."""
    return {'peak_gflops': roofline.peak_gflops, 'bandwidth_gbs': roofline.bandwidth_gbs, 'i_knee': roofline.i_knee}


def roofline_from_json(document: Document, field: str) -> Roofline:
    """The inverse; the knee follows from the other two."""
    return Roofline(document.number(f'{field}.peak_gflops', 1e-9), document.number(f'{field}.bandwidth_gbs', 1e-9))


# --- the complete table ---------------------------------------------------------------------------

def merge(server: TierCosts, client: TierCosts, settings: Settings, link: Optional[Link] = None,
          wire: Optional[WireCosts] = None, image_codec_ms: Optional[Mapping[str, Tuple[float, float]]] = None,
          ) -> HardwareTable:
    """Two tiers, a link (None: the settings'), the wire formats' costs (None: sizes by formula where they do not
    depend on values, encoding taken as free) and what PNG and JPEG take (None: not measured) make the complete table.
    The tiers' times are corrected (costs/correction.py)."""
    outline = outline_for(settings)
    flops, bytes_moved = work_table(outline.blocks)
    stem_work = block_work(outline.stem, fused_gamma((True,) * outline.stem.n_branches))
    last = classifier_work(*outline.classifier)
    tiers = {'server': server, 'client': client}
    corrections = {tier: costs.correction() for tier, costs in tiers.items()}
    return HardwareTable(
        model=settings.MODEL_NAME, num_classes=settings.NUM_CLASSES,
        input_shape=(3, settings.INPUT_SIZE, settings.INPUT_SIZE), batch_size=BATCH_SIZE,
        tier_info={'server': server.info, 'client': client.info},
        block_names=outline.block_names, has_identity=np.array(outline.has_identity),
        T_ms={tier: corrections[tier].scale * costs.block_ms for tier, costs in tiers.items()},
        flops=flops, bytes_moved=bytes_moved,
        stem=EndCosts({tier: corrections[tier].part_ms(costs.stem_ms) for tier, costs in tiers.items()}, *stem_work),
        classifier=EndCosts({tier: corrections[tier].part_ms(costs.classifier_ms) for tier, costs in tiers.items()},
                            *last), correction=corrections,
        input_bytes=3 * settings.INPUT_SIZE ** 2,
        **vars(with_shares(wire or WireCosts(block_bytes_of(outline.blocks), {}), outline.blocks, settings)),
        image_codec_ms=image_codec_ms or {},
        logits_bytes=4 * settings.NUM_CLASSES,
        link=link or Link(settings.BANDWIDTH_MBPS, settings.RTT_MS, measured=False),
        roofline={'server': server.roofline, 'client': client.roofline},
        power={tier: costs.power for tier, costs in tiers.items() if costs.power})


def save(table: HardwareTable, settings: Settings) -> str:
    """Write results/hardware_lut_complete.json; returns its path."""
    names = list(table.block_names)
    path = kinds.path_of('lut', settings)

    def end(costs: EndCosts) -> Dict[str, float]:
        return {'T_server': costs.T_ms['server'], 'T_client': costs.T_ms['client'], 'FLOPs': costs.flops,
                'Bytes': costs.bytes_moved}

    writing.write(path, {
        'block_names': names, 'has_identity': dict(zip(names, table.has_identity.tolist())),
        'T_server': rows_to_json(names, table.T_ms['server']), 'T_client': rows_to_json(names, table.T_ms['client']),
        'FLOPs': rows_to_json(names, table.flops), 'Bytes': rows_to_json(names, table.bytes_moved),
        'Intensity': rows_to_json(names, table.flops / table.bytes_moved),
        'stem': end(table.stem), 'classifier': end(table.classifier), 'N_stream': [g.n_streams for g in GAMMAS],
        'Comm_size': {'input': {'uint8': table.input_bytes},
                      **{name: {wire: int(sizes[k]) for wire, sizes in table.block_bytes.items()}
                         for k, name in enumerate(names)},
                      'logits': {FLOAT32: table.logits_bytes}},
        'codec_ms': {wire: {tier: dict(zip(names, values.tolist())) for tier, values in by_tier.items()}
                     for wire, by_tier in table.codec_ms.items()},
        'image_codec_ms': {name: list(values) for name, values in table.image_codec_ms.items()},
        'bandwidth': {'bandwidth_mbps': table.link.bandwidth_mbps, 'rtt_ms': table.link.rtt_ms,
                      'measured': table.link.measured},
        'roofline': {tier: roofline_to_json(table.roofline[tier]) for tier in TIERS},
        'power': {tier: table.power[tier].as_dict() if tier in table.power else None for tier in TIERS},
        'correction': {tier: correction_to_json(table.correction[tier]) for tier in TIERS},
    }, {**writing.make_metadata(settings, 'lut', fingerprints.inputs_of('lut', settings)), **shape_metadata(settings),
        **{tier: table.tier_info[tier] for tier in TIERS}})
    return path


def load(path: str, settings: Settings) -> HardwareTable:
    """Read a complete table under these settings: with their link, unless a link was measured and they name no other.

    `UserError` when it is damaged, of another model, shape, wire format or version; and, unless the user named it
    (`--lut_file`), when it was made under other settings of the two tiers.
    """
    if not provenance.is_named_table(path, settings):
        provenance.require('lut', path, settings)
    table = read(path, settings)
    for tier, engine in (('client', settings.CLIENT_ENGINE), ('server', settings.SERVER_ENGINE)):
        found = str(table.tier_info[tier].get('engine', TORCH))
        if found != engine and INT8 in (found, engine):  # it changes what networks compute
            raise UserError(f'{path}: its {tier} was timed in {found}, and {tier.upper()}_ENGINE is {engine}')
    link = Link(**fingerprints.link_in_force(vars(table.link), settings))
    head_tier = fingerprints.metadata_of(path).get('config', {}).get('HEAD_TIER', settings.HEAD_TIER)
    if link.measured and head_tier != settings.HEAD_TIER:
        raise UserError(f'{path}: its link was measured with HEAD_TIER={head_tier} (now {settings.HEAD_TIER}), in the '
                        'other direction; measure it in real mode, or name a link with BANDWIDTH_MBPS or RTT_MS')
    return with_link(table, link)


def read(path: str, settings: Settings) -> HardwareTable:
    """Read a complete table as it was written, under whatever settings of the tiers and the link."""
    document = documents.read(path, kinds.command_for('lut', settings))
    check_shape(document, settings)
    outline = outline_for(settings)
    names = list(outline.block_names)
    if document.get('N_stream', list) != [g.n_streams for g in GAMMAS]:
        raise document.refuse("field 'N_stream' is not that of the 14 γ configurations")
    rows = {key: rows_from_json(document, key, settings)
            for key in ('T_server', 'T_client', 'FLOPs', 'Bytes')}
    wires = [wire for wire in dict.fromkeys((*WIRE_FORMATS, *settings.WIRE_FORMATS))
             if wire in document.get(('Comm_size', names[0]))]
    costs = with_shares(WireCosts({wire: np.array([document.number(('Comm_size', name, wire), 1) for name in names])
                                   for wire in wires}, codec_from_json(document, wires, names)),
                        outline.blocks, settings)
    for what, there in (('sizes', costs.block_bytes), ('times', costs.codec_ms or costs.block_bytes)):
        missing = [wire for wire in settings.WIRE_FORMATS if wire not in there]
        if missing:
            raise document.refuse(f'has no {what} for wire format {missing[0]!r}, only for {", ".join(there)}')
    def end(part: str) -> EndCosts:
        return EndCosts({tier: document.number(f'{part}.T_{tier}', 0) for tier in TIERS},
                        document.number(f'{part}.FLOPs', 0), document.number(f'{part}.Bytes', 0))

    return HardwareTable(
        model=settings.MODEL_NAME, num_classes=settings.NUM_CLASSES,
        input_shape=(3, settings.INPUT_SIZE, settings.INPUT_SIZE), batch_size=BATCH_SIZE,
        tier_info={tier: document.get(f'metadata.{tier}') for tier in TIERS},
        block_names=outline.block_names, has_identity=np.array(outline.has_identity),
        T_ms={'server': rows['T_server'], 'client': rows['T_client']},
        flops=rows['FLOPs'], bytes_moved=rows['Bytes'], stem=end('stem'), classifier=end('classifier'),
        input_bytes=int(document.number('Comm_size.input.uint8', 1)),
        **vars(costs), image_codec_ms=image_codec_from_json(document),
        logits_bytes=int(document.number(('Comm_size', 'logits', FLOAT32), 1)),
        link=Link(document.number('bandwidth.bandwidth_mbps', 1e-9), document.number('bandwidth.rtt_ms', 0),
                  document.get('bandwidth.measured', bool)),
        roofline={tier: roofline_from_json(document, f'roofline.{tier}') for tier in TIERS},
        correction={tier: correction_from_json(document, tier) for tier in TIERS},
        power={tier: found for tier in TIERS for found in [power_from_json(document, f'power.{tier}')] if found})


def correction_to_json(found: Correction) -> Dict[str, Any]:
    """{scale, offset_ms, held_out {n, median, worst, share} or None}; the times of the file are corrected by it."""
    return {'scale': found.scale, 'offset_ms': found.offset_ms,
            'held_out': None if found.held_out is None else found.held_out._asdict()}


def correction_from_json(document: Document, tier: str) -> Correction:
    """The inverse."""
    field = f'correction.{tier}'
    held_out = None if document.find(f'{field}.held_out') is None else HeldOut(
        document.get(f'{field}.held_out.n', int),
        *(document.number(f'{field}.held_out.{name}', 0) for name in HeldOut._fields[1:]))
    return Correction(document.number(f'{field}.scale', 1e-9), document.number(f'{field}.offset_ms'), held_out)


def codec_from_json(document: Document, wires: List[str], names: List[str]) -> Dict[str, Dict[str, np.ndarray]]:
    """By wire format and tier: [N, 2] ms; empty where nothing was measured."""
    measured = document.get('codec_ms') if 'codec_ms' in document.content else {}
    return {wire: {tier: np.array([document.numbers(('codec_ms', wire, tier, name), 2, lowest=0) for name in names])
                   for tier in TIERS} for wire in wires if wire in measured}


def image_codec_from_json(document: Document) -> Dict[str, Tuple[float, float]]:
    """Encoding and decoding an image, ms, by format; empty where nothing was measured."""
    measured = document.get('image_codec_ms') if 'image_codec_ms' in document.content else {}
    return {name: tuple(document.numbers(('image_codec_ms', name), 2, lowest=0)) for name in measured}


def with_link(table: HardwareTable, link: Link) -> HardwareTable:
    """The table with another link in it."""
    return replace(table, link=link)
