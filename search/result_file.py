"""The file of one domain's result: written, read back and checked."""
from __future__ import annotations

import base64
import hashlib
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from config import Settings, UserError
from costs.cost_model import Configuration, HardwareTable, ImageFormat, Times
from gamma_mask_builder import build_gamma_mask
from network.alpha import alpha_by_block, alpha_from_blocks, surviving_branches, unpruned_alpha
from network.channels import CutChannels
from network.gammas import gamma_by_id
from network.shapes import BRANCHES, architecture, block_shapes
from pipeline import documents, fingerprints, kinds, provenance, writing
from pipeline.documents import Document
from search import result_warnings
from search.frontier import OBJECTIVES, TESTS, FrontierPoint
from search.pick import PickRule
from search.result import AccuracyReport, Baseline, JointResult
from search.state import CurvePoint
from wire.formats import channels_sent, format_at, share_of


def save(kind: str, result: JointResult, settings: Settings, inputs: str, search_inputs: str = '', lut_file: str = '',
         ) -> str:
    """Write a domain's result ('joint', 'sequential', 'sequential_accuracy'); returns its path. `search_inputs`: the
    fingerprint of its search, which does not depend on what is picked. `lut_file`: the table behind it ('': the one in
    RESULTS_DIR)."""
    path = kinds.path_of(kind, settings, result.domain_id)
    choice, accuracy = result.configuration, result.accuracy
    content = {
        'domain_id': result.domain_id, 'domain_name': result.domain_name, 'mode': result.mode,
        'alpha': alpha_by_block(choice.alpha, result.block_names), 'pruned': result.pruned,
        'gamma': dict(zip(result.block_names, choice.gamma)), 'lambda': choice.split, 'wire': choice.wire,
        'channels': channels_to_json(choice.channels), 'peaks': peaks_to_json(choice.peaks),
        'pick': None if result.pick is None else vars(result.pick),
        'accuracy': {**vars(accuracy), 'ci95': list(accuracy.ci95)},
        'epsilon': result.epsilon, 'xi_A': result.xi_A, 'J': result.J, **result.times.as_dict(),
        'clients': settings.CLIENTS, 'fleet_fps': settings.CLIENTS * result.times.throughput_fps,
        'baselines': {name: baseline.as_dict() for name, baseline in result.baselines.items()}, 'energy': result.energy,
        'curve': [vars(point) for point in result.curve], 'measured': result.measured,
        'block_evaluations': result.block_evaluations, 'seed': result.seed, 'wall_s': result.wall_s,
        'frontier': {name: [point_to_json(point, result.block_names) for point in points]
                     for name, points in result.frontier.items()},
        'warnings': [*result_warnings.of_settings(settings), *result.warnings]}
    if result.batchnorm is not None:
        content['batchnorm'] = batchnorm_to_json(result.batchnorm)
    metadata = writing.make_metadata(settings, kind, inputs, result.domain_id, lut=lut_file)
    writing.write(path, content, {**metadata, 'search_inputs': search_inputs} if search_inputs else metadata)
    return path


def batchnorm_to_json(values: np.ndarray) -> Dict[str, str]:
    """Re-estimated statistics as text: part of the result, so that no kill can part them from it."""
    data = values.astype('<f4').tobytes()
    return {'float32_base64': base64.b64encode(data).decode(), 'sha256': hashlib.sha256(data).hexdigest()}


def batchnorm_from_json(document: Document) -> Optional[np.ndarray]:
    """The statistics that a result holds, float32 [n]; None where it holds none, `UserError` when they are damaged."""
    if document.content.get('batchnorm') is None:
        return None
    text, digest = document.get('batchnorm.float32_base64', str), document.get('batchnorm.sha256', str)
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = b''
    if len(data) % 4 or hashlib.sha256(data).hexdigest() != digest:
        raise document.refuse("field 'batchnorm' does not hold the BatchNorm statistics of this result")
    return np.frombuffer(data, dtype='<f4').copy()


def load(domain: int, table: HardwareTable, settings: Settings, kind: str = 'joint', lut_file: str = '') -> JointResult:
    """Read and check a domain's result; `UserError` when it is missing, damaged, or made under other settings or from
    other inputs. `lut_file`: where the table lies ('': in RESULTS_DIR)."""
    return _from_document(provenance.read_kind(kind, settings, domain, lut=lut_file), domain, table, settings)


def load_anyhow(domain: int, table: HardwareTable, settings: Settings, kind: str = 'joint') -> JointResult:
    """`load` of a result that was made under whatever settings and inputs."""
    return _from_document(provenance.read_anyhow(kind, settings, domain), domain, table, settings)


def _from_document(document: Document, domain: int, table: HardwareTable, settings: Settings) -> JointResult:
    if document.get('domain_id', int) != domain:
        raise document.refuse(f"is of domain {document.get('domain_id', int)}")
    accuracy = {name: document.number(f'accuracy.{name}', 0) for name in
                ('original', 'reference', 'final', 'val_reference', 'val_final', 'cal_reference', 'cal_final',
                 'cal_p_value')}
    low, high = document.numbers('accuracy.ci95', 2, lowest=0)
    measured, shared = document.find('measured'), result_warnings.of_settings(settings)
    return JointResult(
        domain, document.get('domain_name', str), document.get('mode', str), table.block_names,
        configuration_from_json(document, table),
        AccuracyReport(**accuracy, n_test=document.get('accuracy.n_test', int),
                       n_cal=document.get('accuracy.n_cal', int), ci95=(low, high)),
        document.number('epsilon', 0), document.number('xi_A', 0), document.number('J'),
        times_from_json(document, ()),
        {name: baseline_from_json(document, ('baselines', name)) for name in document.get('baselines')},
        curve_from_json(document), None if measured is None else document.get('measured'),
        document.get('seed', int), document.number('wall_s', 0), document.get('block_evaluations', int),
        frontier_from_json(document, table), pick_from_json(document), batchnorm_from_json(document),
        warnings=tuple(str(line) for line in document.get('warnings', list) if line not in shared))


def load_finished(domain: int, table: HardwareTable, settings: Settings, search_inputs: str, mode: str,
                  ) -> Optional[JointResult]:
    """A finished result of the search with this fingerprint, whatever was picked from it; None where there is none."""
    if search_inputs_of(kinds.path_of('joint', settings, domain)) != search_inputs:
        return None
    try:
        found = load_anyhow(domain, table, settings)
    except UserError:
        return None
    return found if found.mode == mode and found.frontier.get('T_eff') else None


def search_inputs_of(path: str) -> Optional[str]:
    """The fingerprint of the search behind a joint result; None where there is no such file."""
    try:
        return documents.read(path, '').content['metadata'].get('search_inputs')
    except UserError:
        return None


def sequential_baseline(domain: int, table: HardwareTable, settings: Settings, lut_file: str = '',
                        ) -> Optional[Baseline]:
    """The sequential baseline where it has been run on the same inputs, the table included, else None."""
    path = kinds.path_of('sequential', settings, domain)
    if not fingerprints.is_current([path], fingerprints.inputs_of('sequential', settings, domain, lut=lut_file)):
        return None
    found = load(domain, table, settings, 'sequential', lut_file)
    return Baseline(found.accuracy.final, found.times)


def add_sequential_baseline(sequential: JointResult, settings: Settings, lut_file: str = '') -> None:
    """Put the sequential result among the baselines of the joint one, where that exists and its search had the same
    inputs."""
    domain = sequential.domain_id
    path = kinds.path_of('joint', settings, domain)
    same = [fingerprints.inputs_of('joint_state', settings, domain, mode, lut=lut_file) for mode in fingerprints.MODES]
    if search_inputs_of(path) not in same:
        return
    content = dict(provenance.read_anyhow('joint', settings, domain).content)
    content['baselines'] = {**content['baselines'],
                            'sequential': Baseline(sequential.accuracy.final, sequential.times).as_dict()}
    del content['schema_version']
    writing.write(path, content, content.pop('metadata'))


def baseline_from_json(document: Document, where: Tuple[str, ...]) -> Baseline:
    """The baseline in the object at `where`."""
    image = None
    if document.find((*where, 'image')) is not None:
        numbers = {name: document.number((*where, 'image', name), 0) for name in ('n_bytes', 'encode_ms', 'decode_ms')}
        quality = document.find((*where, 'image', 'quality'))
        image = ImageFormat(document.get((*where, 'image', 'name'), str),
                            None if quality is None else document.get((*where, 'image', 'quality'), int), **numbers)
    return Baseline(document.number((*where, 'accuracy'), 0), times_from_json(document, where),
                    document.get((*where, 'sends_image'), bool), image)


def times_from_json(document: Document, where: Tuple[str, ...]) -> Times:
    """The six times in the object at `where`."""
    return Times(**{name: document.number((*where, name), 0) for name in Times.__dataclass_fields__})


def point_to_json(point: FrontierPoint, names: Tuple[str, ...]) -> Dict[str, Any]:
    """One point of a frontier."""
    choice = point.configuration
    return {'accuracy': point.accuracy, 'n_pruned': point.n_pruned, 'recovered': point.recovered,
            'recalibrated': point.recalibrated,
            'lambda': choice.split, 'wire': choice.wire, 'channels': channels_to_json(choice.channels),
            'peaks': peaks_to_json(choice.peaks), **point.times.as_dict(),
            'gamma': dict(zip(names, choice.gamma)), 'alpha': alpha_by_block(choice.alpha, names)}


def frontier_from_json(document: Document, table: HardwareTable) -> Dict[str, List[FrontierPoint]]:
    """The frontier of every objective and what is to be confirmed; none where the result is not of a joint search."""
    if not document.get('frontier'):
        return {}
    found: Dict[str, List[FrontierPoint]] = {}
    for name in (*OBJECTIVES, TESTS):
        found[name] = []
        for index, entry in enumerate(document.get(('frontier', name), list)):
            label = f'frontier.{name}[{index}]'
            point = Document(document.path, {label: entry}, document.made_by)
            found[name].append(FrontierPoint(
                configuration_from_json(point, table, (label,)), point.number((label, 'accuracy'), 0),
                times_from_json(point, (label,)), point.get((label, 'recovered'), bool),
                point.get((label, 'recalibrated'), bool)))
    return found


def pick_from_json(document: Document) -> Optional[PickRule]:
    """How the configuration was picked."""
    if document.find('pick') is None:
        return None
    kinds_of = {'T_eff_ms': float, 'latency_ms': float, 'min_fps': float, 'confidence': float, 'n_tested': int,
                'n_passed': int}
    return PickRule(document.get('pick.rule', str), **{
        name: None if document.find(('pick', name)) is None else kind(document.number(('pick', name), 0))
        for name, kind in kinds_of.items()})


def curve_from_json(document: Document) -> List[CurvePoint]:
    """The accepted changes."""
    points = []
    for index, entry in enumerate(document.get('curve', list)):
        point = Document(document.path, {f'curve[{index}]': entry}, document.made_by)
        values = {name: point.number((f'curve[{index}]', name), 0) for name in
                  ('accuracy', 'T_eff_ms', 'throughput_fps')}
        points.append(CurvePoint(n_pruned=point.get((f'curve[{index}]', 'n_pruned'), int), **values))
    return points


def alpha_from_json(document: Document, table: HardwareTable, at: Tuple[str, ...] = ()) -> np.ndarray:
    """α [N, 3] of the object at `at`: null exactly where a block has no identity, a branch left in every block."""
    expected, label = unpruned_alpha(table.n_branches), ''.join(f'{part}: ' for part in at)
    by_block: Dict[str, Dict[str, Optional[float]]] = {}
    for name, row in zip(table.block_names, expected):
        by_block[name] = {}
        for branch, present in zip(BRANCHES, ~np.isnan(row)):
            where = (*at, 'alpha', name, branch)
            if not present and document.find(where) is not None:
                raise document.refuse(f"field '{'.'.join(where)}' must be null: the block has no identity branch")
            by_block[name][branch] = document.number(where) if present else None
    alpha = alpha_from_blocks(by_block, table.block_names)
    for name, alive in zip(table.block_names, surviving_branches(alpha)):
        if not alive.any():
            raise document.refuse(f'{label}block {name} has no branch left')
    return alpha


def configuration_from_json(document: Document, table: HardwareTable, at: Tuple[str, ...] = ()) -> Configuration:
    """α, γ, λ and wire format of the object at `at`, checked against each other and the table."""
    alpha, label = alpha_from_json(document, table, at), ''.join(f'{part}: ' for part in at)
    valid = build_gamma_mask(surviving_branches(alpha))
    gamma = []
    for k, name in enumerate(table.block_names):
        value = gamma_by_id(document.get((*at, 'gamma', name), int), f'{document.path}: {label}block {name}').id
        if not valid[k, value]:
            raise document.refuse(f'{label}block {name}: γ {value} does not run exactly the surviving branches')
        gamma.append(value)
    split, wire = document.get((*at, 'lambda'), int), document.get((*at, 'wire'), str)
    if not 0 <= split <= table.n_blocks:
        raise document.refuse(f'{label}lambda is {split}, not between 0 and {table.n_blocks}')
    if wire not in table.block_bytes:
        raise document.refuse(f'{label}unknown wire format {wire!r}')
    return Configuration(alpha, tuple(gamma), split, wire, channels_from_json(document, split, wire, table, at),
                         peaks_from_json(document, table, at))


def peaks_to_json(peaks: Optional[Tuple[float, ...]]) -> Optional[List[float]]:
    """The peaks of feature maps; None where no tier runs in int8."""
    return None if peaks is None else list(peaks)


def peaks_from_json(document: Document, table: HardwareTable, at: Tuple[str, ...]) -> Optional[Tuple[float, ...]]:
    """The inverse."""
    if document.find((*at, 'peaks')) is None:
        return None
    return tuple(map(float, document.numbers((*at, 'peaks'), table.n_blocks + 1, lowest=0)))


def channels_to_json(channels: Optional[CutChannels]) -> Optional[Dict[str, Any]]:
    """The channels that are sent; None for all."""
    return None if channels is None else {'sent': list(channels.sent), 'fill': list(channels.fill)}


def channels_from_json(document: Document, split: int, wire: str, table: HardwareTable, at: Tuple[str, ...],
                       ) -> Optional[CutChannels]:
    """The channels that are sent, where the wire format has a share at this split."""
    if share_of(format_at(split, table.n_blocks, wire)) == 1:
        return None
    n = block_shapes(architecture(table.model), table.input_shape[1])[1][split - 1].out_channels
    where = (*at, 'channels')
    try:
        sent = document.numbers((*where, 'sent'), channels_sent(wire, n), lowest=0)
        if not all(channel.is_integer() for channel in map(float, sent)):
            raise ValueError('channels have whole numbers')
        return CutChannels(tuple(map(int, sent)), tuple(map(float, document.numbers((*where, 'fill'), n))))
    except ValueError as error:
        raise document.refuse(f"field '{'.'.join(where)}': {error}") from None
