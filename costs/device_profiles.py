"""Simulated clients: device profiles, and the kernel-level latency model of one that has no device behind it.

A profile is `edge-cpu`, `jetson-tx2` or a JSON file of a few lines (docs/device_profiles.md). It is of one of two
kinds: 'measured' (blocks are timed on this machine and multiplied by a slowdown) or 'kernel-model', in which a block
under a γ is the list of kernels that it launches, and

    work(κ)  = max( FLOP(κ) · (1 + h/P) / (rate · peak),  bytes(κ) / (memory_rate · bandwidth) )
    start(κ) = max( launches so far · launch_ms,  end of the kernel before )
    T        = sync_ms + end of the last kernel

with P the output pixels and rate, h those of the kernel's kind. The CPU issues launches one after another while the
GPU works, so a launch costs time only where the GPU would wait for it. Streams share the GPU, and a small GPU has
nothing to spare for a second one: kernels of different streams run one after another, which explains the TX2's figures.
"""
from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Dict, Iterable, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from config import Settings
from costs.checks import BUILT_IN, EDGE_CPU, JETSON_TX2, profile_path
from costs.energy import WATTS, Power, possible
from network.gammas import GAMMAS
from network.shapes import DENSE, IDENTITY, BlockShape
from pipeline import documents
from pipeline.documents import SCHEMA_VERSION, Document

MAX_FILE_BYTES = 1 << 20  # a profile is a few lines; a larger file is something else
FLOAT_BYTES = 4


@dataclass(frozen=True)
class MeasuredProfile:
    """Blocks are timed on `threads` threads of this machine; every time is multiplied by `slowdown`."""
    kind: ClassVar[str] = 'measured'
    name: str
    slowdown: float
    threads: int = 1
    source: str = ''
    power: Optional[Power] = None


@dataclass(frozen=True)
class KernelProfile:
    """Parameters of the kernel model (formulas above). Rates are fractions of the peak or of the bandwidth."""
    kind: ClassVar[str] = 'kernel-model'
    name: str
    peak_gflops: float  # 1e9 FLOP/s, float32, 2 FLOP a multiply-add
    bandwidth_gbs: float  # 1e9 byte/s
    sync_ms: float  # once a block: wait until the device is done
    launch_ms: float  # CPU time to issue one kernel
    memory_rate: float
    winograd_rate: float  # 3x3 with stride 1, in FLOP of the direct algorithm: may be above 1
    winograd_half_pixels: float  # h: at this many output pixels half the rate is reached
    direct_rate: float  # 3x3 with a stride
    direct_half_pixels: float
    pointwise_rate: float  # 1x1 and fully connected
    identity_alone: str = 'affine'  # what runs γ 2: 'affine' or 'conv1x1' (a 1x1 convolution with a diagonal kernel)
    source: str = ''
    power: Optional[Power] = None


DeviceProfile = Union[MeasuredProfile, KernelProfile]


# --- the kernel model -------------------------------------------------------------------------------

class Kernel(NamedTuple):
    """One GPU kernel, for one image."""
    kind: str  # 'winograd', 'direct', 'pointwise' or 'elementwise'
    flops: float  # of convolutions and fully connected layers; elementwise work is bound by its bytes
    n_bytes: float  # inputs + weights + outputs
    pixels: int  # of the output


def kernels_of(shape: BlockShape, gamma: int, identity_alone: str = 'affine') -> List[Kernel]:
    """The kernels that a block launches under γ, in order of launch: side paths, first path, sums, SE, ReLU.

    A folded path is a convolution and its bias, or an affine; an unfolded one is a convolution and a BatchNorm.
    """
    spec = GAMMAS[gamma]
    pixels = shape.out_size ** 2
    output = FLOAT_BYTES * shape.out_channels * pixels
    in_place = Kernel('elementwise', 0, 2 * output, pixels)  # BatchNorm, bias, affine, ReLU: read and write
    kernels: List[Kernel] = []
    for path in (*spec.paths[1:], spec.paths[0]):
        is_affine = path == (IDENTITY,) and not (spec.n_streams == 1 and identity_alone == 'conv1x1')
        if not is_affine:
            kernels.append(_convolution(shape, 3 if DENSE in path else 1))
        kernels.append(in_place)
    kernels += [Kernel('elementwise', 0, 3 * output, pixels)] * (spec.n_streams - 1)  # y += other
    if shape.se_channels:
        kernels += _squeeze_and_excitation(shape, output, in_place)
    return [*kernels, in_place]


def _convolution(shape: BlockShape, size: int) -> Kernel:
    kind = 'pointwise' if size == 1 else 'winograd' if shape.stride == 1 else 'direct'
    pixels = shape.out_size ** 2
    weights = size * size * (shape.in_channels // shape.groups) * shape.out_channels
    elements = shape.in_channels * shape.in_size ** 2 + weights + shape.out_channels * pixels
    return Kernel(kind, 2 * weights * pixels, FLOAT_BYTES * elements, pixels)


def _squeeze_and_excitation(shape: BlockShape, output: int, scale: Kernel) -> List[Kernel]:
    """Pool, down, bias, ReLU, up, bias, sigmoid, scale (se_block.py)."""
    weights = shape.out_channels * shape.se_channels
    linear = Kernel('pointwise', 2 * weights, FLOAT_BYTES * weights, 1)
    down, up = (Kernel('elementwise', 0, 2 * FLOAT_BYTES * width, 1) for width in (shape.se_channels,
                                                                                 shape.out_channels))
    return [Kernel('elementwise', 0, output, 1), linear, down, down, linear, up, up, scale]


def kernel_ms(profile: KernelProfile, kernel: Kernel) -> float:
    """GPU time of one kernel, ms: bound by compute, less efficient on few pixels, or by memory."""
    rate, half_pixels = {
        'winograd': (profile.winograd_rate, profile.winograd_half_pixels),
        'direct': (profile.direct_rate, profile.direct_half_pixels),
        'pointwise': (profile.pointwise_rate, 0.0), 'elementwise': (1.0, 0.0)}[kernel.kind]
    compute = kernel.flops * (1 + half_pixels / kernel.pixels) / (rate * profile.peak_gflops * 1e6)
    return max(compute, kernel.n_bytes / (profile.memory_rate * profile.bandwidth_gbs * 1e6))


def pipeline_ms(profile: KernelProfile, kernels: Iterable[Kernel]) -> float:
    """Time from the first launch until the device has finished all kernels and the CPU knows it, ms."""
    issued = finished = 0.0
    for kernel in kernels:
        issued += profile.launch_ms
        finished = max(issued, finished) + kernel_ms(profile, kernel)
    return finished + profile.sync_ms


def predict_block_ms(profile: KernelProfile, shape: BlockShape) -> np.ndarray:
    """Latency of a block under every γ, float64 [14], ms; NaN where γ needs an identity that it has not."""
    return np.array([pipeline_ms(profile, kernels_of(shape, gamma.id, profile.identity_alone))
                     if shape.has_identity or IDENTITY not in gamma.branches else np.nan for gamma in GAMMAS])


def predict_stem_ms(profile: KernelProfile, shape: BlockShape) -> float:
    """Latency of the stem, deployed as one 3x3 convolution, ms."""
    return pipeline_ms(profile, kernels_of(shape, 0))


def predict_classifier_ms(profile: KernelProfile, channels: int, num_classes: int, feature_size: int) -> float:
    """Latency of the global average pool over [channels, feature_size, feature_size] and the linear layer, ms."""
    weights = channels * num_classes
    return pipeline_ms(profile, [
        Kernel('elementwise', 0, FLOAT_BYTES * channels * (feature_size ** 2 + 1), 1),
        Kernel('pointwise', 2 * weights, FLOAT_BYTES * (channels + weights + 2 * num_classes), 1)])


# --- reading a profile ------------------------------------------------------------------------------

class _Rule(NamedTuple):
    """The range of a number in a profile's file."""
    lowest: float
    highest: float = math.inf
    lowest_allowed: bool = False


_RATE = _Rule(0, 4)  # Winograd saves at most a factor 4 on a 3x3; more is a percentage written as a fraction
_NUMBERS: Dict[str, Dict[str, _Rule]] = {
    'measured': {'slowdown': _Rule(0), 'threads': _Rule(1, 1024, True)},
    'kernel-model': {
        'peak_gflops': _Rule(0), 'bandwidth_gbs': _Rule(0), 'sync_ms': _Rule(0, lowest_allowed=True),
        'launch_ms': _Rule(0, lowest_allowed=True), 'memory_rate': _RATE, 'winograd_rate': _RATE,
        'winograd_half_pixels': _Rule(0, lowest_allowed=True), 'direct_rate': _RATE,
        'direct_half_pixels': _Rule(0, lowest_allowed=True), 'pointwise_rate': _RATE},
}
_FROM_TX2 = ('memory_rate', 'winograd_rate', 'winograd_half_pixels', 'direct_rate', 'direct_half_pixels',
             'pointwise_rate')  # a file may leave these out: how well kernels use a device varies less than the device
_COMMON = ('schema_version', 'metadata', 'kind', 'name', 'source')
IDENTITY_ALONE = ('affine', 'conv1x1')


def load_profile(name_or_path: str) -> DeviceProfile:
    """The profile of this name ('edge-cpu', 'jetson-tx2') or in this file.

    'edge-cpu' comes with the default of EDGE_CPU_SLOWDOWN. Raises `UserError`, naming the field, for a file that
    lacks one, has one that is unknown, or a value that is out of range.
    """
    path = profile_path(name_or_path)
    if not path:
        return MeasuredProfile(EDGE_CPU, Settings.EDGE_CPU_SLOWDOWN, source='this machine, one thread, slowed down')
    document = documents.read_object(path, max_bytes=MAX_FILE_BYTES)  # people write it by hand: it needs no metadata
    version = document.get('schema_version', int)
    if version != SCHEMA_VERSION:
        raise document.refuse(f"field 'schema_version' is {version}, this program reads {SCHEMA_VERSION}")
    kind, name = _text(document, 'kind', tuple(_NUMBERS)), _text(document, 'name')
    if name in BUILT_IN and name_or_path not in BUILT_IN:
        raise document.refuse(f"field 'name' is {name!r}, which is a built-in profile: give yours a name of its own")
    _refuse_unknown(document, kind)
    source = _text(document, 'source') if 'source' in document.content else path
    if kind == 'measured':
        threads = _number(document, kind, 'threads') if 'threads' in document.content else 1.0
        if threads != int(threads):
            raise document.refuse(f"field 'threads' is {threads:g}, not a whole number")
        return MeasuredProfile(name, _number(document, kind, 'slowdown'), int(threads), source, _power(document))
    missing = [] if name_or_path == JETSON_TX2 else [field for field in _FROM_TX2 if field not in document.content]
    numbers = {field: _number(document, kind, field) for field in _NUMBERS[kind] if field not in missing}
    if missing:
        numbers.update({field: getattr(load_profile(JETSON_TX2), field) for field in missing})
    alone = _text(document, 'identity_alone', IDENTITY_ALONE) if 'identity_alone' in document.content else 'affine'
    return KernelProfile(name=name, identity_alone=alone, source=source, power=_power(document), **numbers)


def profile_fields(profile: KernelProfile) -> Dict[str, Any]:
    """What to write to a file (pipeline/writing.py) so that `load_profile` gives this profile back."""
    fields = {'kind': profile.kind, **dataclasses.asdict(profile)}
    del fields['power']
    return {**fields, **({name: getattr(profile.power, name) for name in WATTS} if profile.power else {})}


def _power(document: Document) -> Optional[Power]:
    """The watts that a profile states; None where it states none."""
    if not any(name in document.content for name in WATTS):
        return None
    watts = [document.get(name, float) for name in WATTS]
    if not possible(*watts):
        raise document.refuse(f"fields {', '.join(WATTS)}: must be numbers with 0 < idle_w <= the others")
    return Power(*watts, 'profile')


def _text(document: Document, field: str, choices: Optional[Tuple[str, ...]] = None) -> str:
    value = document.get(field, str)
    if not value.strip():
        raise document.refuse(f"field '{field}' is empty")
    if choices and value not in choices:
        raise document.refuse(f"field '{field}' is {value[:40]!r}, not {' or '.join(map(repr, choices))}")
    return value


def _number(document: Document, kind: str, field: str) -> float:
    rule = _NUMBERS[kind][field]
    try:
        value = document.get(field, float)
    except OverflowError:  # a whole number of hundreds of digits
        value = math.inf
    above = value >= rule.lowest if rule.lowest_allowed else value > rule.lowest
    if not (math.isfinite(value) and above and value <= rule.highest):
        wanted = f'{rule.lowest:g} or more' if rule.lowest_allowed else f'above {rule.lowest:g}'
        wanted += '' if math.isinf(rule.highest) else f' and at most {rule.highest:g}'
        raise document.refuse(f"field '{field}' is {value:g}, must be {wanted}")
    return value


def _refuse_unknown(document: Document, kind: str) -> None:
    known = [*_COMMON, *WATTS, *_NUMBERS[kind], *(['identity_alone'] if kind == KernelProfile.kind else [])]
    for field in document.content:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1, cutoff=0.6)
            raise document.refuse(f"field '{field}' is unknown" +
                                  (f': did you mean {near[0]!r}?' if near else f' in a profile of kind {kind!r}'))


def slowdown_of(profile: DeviceProfile, settings: Settings) -> float:
    """A measured profile's factor: EDGE_CPU_SLOWDOWN for the built-in one, the file's own otherwise."""
    return settings.EDGE_CPU_SLOWDOWN if profile.name == 'edge-cpu' else profile.slowdown
