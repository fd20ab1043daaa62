"""Every setting of the project: one line each, with its default, the results that it shapes, its rule and its unit.

    PROFILE=imagenet python step1_measure_lut.py --mode server          # from the environment
    python step_3_joint.py --domain_id 3 --set EPSILON=0.01 OMEGA=1     # from the command line

The command line wins over the environment, the environment over the profile, the profile over the defaults below. Every
value is checked against its type and its rule (what takes knowledge of networks and files: costs/checks.py). An unknown
name is an error that names the nearest setting; in the environment, which other programs share, it is a warning. A name
of earlier versions is an error that says what took its place. Importing this module does nothing else: a script calls
`load()` once and passes the `Settings` on.
"""
from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import sys
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple, TypeVar, get_type_hints

ROOT = os.path.dirname(os.path.abspath(__file__))  # of the repository

OMEGA_OF = {'throughput': 0.0, 'latency': 1.0}  # what OBJECTIVE means: T_eff with all its weight on one of its terms
PICKS = ('constraint', 'knee', 'budget')
TORCH, ONNXRUNTIME, INT8 = ENGINES = ('torch', 'onnxruntime', 'onnxruntime-int8')
BUDGETS = ('BUDGET_T_EFF_MS', 'BUDGET_LATENCY_MS', 'BUDGET_MIN_FPS')

RENAMED: Dict[str, str] = {  # a setting of earlier versions: the one that took its place, or a sentence: what to do now
    'IMAGES_PER_SPLIT': 'IMAGES_PER_SUBSET',
    'LOOKS': 'MAX_EVALUATIONS',
    'QUIET_SHARE': 'every measurement sees all validation images now; leave it out',
    'SHARED_STEPS': 'recoveries start from the best network now; leave it out',
    'L1_WEIGHT': 'recovery has no L1 pressure any more; leave it out',
    'FRONTIER_LOOKS': 'the frontier holds what the search measures; leave it out, or raise MAX_EVALUATIONS',
    'FRONTIER_RECOVERIES': 'the frontier holds what the search measures; leave it out, or raise MAX_EVALUATIONS',
}


class UserError(Exception):
    """Something the user can put right; shown as one line on stderr, exit status 2."""


# --- rules: what a setting's value must be -----------------------------------------------------

class Rule(NamedTuple):
    """A check of a value of the right type, and the words for it: 'must be ...'."""
    accepts: Callable[[Any], bool]
    wanted: str


def one_of(*names: str) -> Rule:
    """One of these words."""
    quoted = [repr(name) for name in names]
    return Rule(lambda v: v in names, f'{", ".join(quoted[:-1])} or {quoted[-1]}')


def or_none(rule: Rule) -> Rule:
    """This rule, or no value at all."""
    return Rule(lambda v: v is None or rule.accepts(v), f'{rule.wanted}, or none')


anything = Rule(lambda v: True, 'anything')
above_0 = Rule(lambda v: v > 0, 'above 0')
limit = or_none(above_0)  # none: no limit
at_least_0 = Rule(lambda v: v >= 0, '0 or more')
fraction = Rule(lambda v: 0 <= v <= 1, 'between 0 and 1')
inner_fraction = Rule(lambda v: 0 < v < 1, 'between 0 and 1')
share = Rule(lambda v: 0 < v <= 1, 'above 0 and at most 1')
one_to_ten = Rule(lambda v: 1 <= v <= 10, 'between 1 and 10')
seed = Rule(lambda v: 0 <= v < 2 ** 63, '0 or more, below 2^63')
device = Rule(lambda v: re.fullmatch(r'auto|(cpu|cuda)(:\d{1,3})?', v, re.ASCII) is not None,
              "'auto', 'cpu', 'cuda' or 'cuda:N'")
port = Rule(lambda v: 0 < v < 65536, 'a port, 1 to 65535')
path = Rule(lambda v: v.strip() != '', 'a path')
three_numbers = Rule(lambda v: len(v) == 3, 'three numbers')
three_above_0 = Rule(lambda v: len(v) == 3 and min(v) > 0, 'three numbers above 0')
some_shares = Rule(lambda v: len(v) > 0 and all(0 < s <= 1 for s in v), 'shares above 0 and at most 1')
some_formats = Rule(lambda v: len(v) > 0, 'at least one format')

Value = TypeVar('Value')


def setting(default: Value, group: str, rule: Rule = anything) -> Value:
    """A field of `Settings`; `group` names the results that it shapes (see `Settings.group`)."""
    return dataclasses.field(default=default, metadata={'group': group, 'rule': rule})


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings. Groups say which outputs depend on which settings, so that the pipeline
    repeats a step only when something that shapes its result has changed."""

    PROFILE: str = setting('quickstart', 'none', one_of('quickstart', 'imagenet', 'photos'))  # see PROFILES below
    SEED: int = setting(0, 'data', seed)  # of partition, corruptions, α training and search

    # --- model -------------------------------------------------------------------------------
    MODEL_NAME: str = setting('RepVGG-Micro', 'model')  # of ARCHITECTURES in network/shapes.py, 'torchvision:resnet50'
    NUM_CLASSES: int = setting(10, 'model', above_0)
    INPUT_SIZE: int = setting(32, 'model', above_0)  # pixels; images are squares of this side, 3 channels
    WEIGHT_PATH_SERVER: str = setting('data/weights/repvgg_micro_mnist5k.pt', 'weights')  # '': random weights
    WEIGHT_PATH_CLIENT: str = setting('', 'none')  # on the client; '': the server sends what is missing

    # --- data --------------------------------------------------------------------------------
    DATASET: str = setting('mnist5k', 'data')  # 'mnist5k', 'imagefolder', 'generated', a torchvision dataset's name
    DATA_PATH: str = setting('data', 'data')  # root folder of the dataset
    PARTITION_FILE: str = setting('data/noniid_partitions/partition_info.json', 'none', path)
    NUM_DOMAINS: int = setting(10, 'data', one_to_ten)  # one corruption each (domain_transforms.py)
    TRAIN_FRACTION: float = setting(0.5, 'data', inner_fraction)  # of all images; fits the base model and α
    VAL_FRACTION: float = setting(0.15, 'data', inner_fraction)  # of all images; the search decides by them
    CAL_FRACTION: float = setting(0.25, 'data', inner_fraction)  # of all images; confirm the answer. Rest: test data
    DIRICHLET_BETA: float = setting(2.0, 'data', above_0)  # concentration of the label skew; smaller is more skewed
    IMAGES_PER_SUBSET: int = setting(700, 'data', at_least_0)  # images of each subset of a domain, at most; 0: all
    NORM_MEAN: Tuple[float, ...] = setting((0.5, 0.5, 0.5), 'data', three_numbers)  # per channel, of images in [0, 1]
    NORM_STD: Tuple[float, ...] = setting((0.5, 0.5, 0.5), 'data', three_above_0)
    BATCH_SIZE: int = setting(64, 'alpha', above_0)  # images; α training and evaluation
    NUM_WORKERS: int = setting(0, 'none', at_least_0)  # data loading processes; does not change a pixel
    TORCH_THREADS: int = setting(1, 'alpha', at_least_0)  # of training and evaluation; 0: all cores. 1: the same sums
    #                                                  everywhere, and run_pipeline.sh runs a domain on each core
    TRAIN_DEVICE: str = setting('cpu', 'none', device)  # of α training and search: 'cpu', 'cuda', 'cuda:1', 'auto'
    #                                    (CUDA if there is one); with 'cuda' domains take turns on all GPUs

    # --- α for each domain (code1) and its importance (code2) -----------------------------------
    ALPHA_EPOCHS: int = setting(4, 'alpha', at_least_0)  # passes over a domain's training images
    ALPHA_LR: float = setting(0.02, 'alpha', above_0)  # Adam

    # --- tiers: what is measured or simulated (roofline, step 1) --------------------------------
    SERVER_DEVICE: str = setting('auto', 'server', device)  # 'auto' (CUDA if there is one), 'cpu', 'cuda', 'cuda:1'
    SERVER_THREADS: int = setting(1, 'server', at_least_0)  # CPU threads of the server tier; 0: all cores
    SERVER_ENGINE: str = setting('torch', 'server', one_of(*ENGINES))  # that runs its part (docs/deployment.md)
    CLIENT_DEVICE: str = setting('auto', 'client', device)  # of a real client
    CLIENT_THREADS: int = setting(1, 'client', at_least_0)  # CPU threads of a real client; 0: all cores
    CLIENT_ENGINE: str = setting('torch', 'client', one_of(*ENGINES))  # that runs its part, real or simulated
    DEVICE_PROFILE: str = setting('edge-cpu', 'client')  # simulated client: 'edge-cpu', 'jetson-tx2', a JSON file,
    #                                               or '' when a real client is meant
    EDGE_CPU_SLOWDOWN: float = setting(6.0, 'client', above_0)  # edge-cpu: the time of one thread here, times this
    LUT_ROUNDS: int = setting(21, 'lut', above_0)  # timed visits of every (block, γ); the median is kept

    # --- link --------------------------------------------------------------------------------
    HEAD_TIER: str = setting('client', 'link', one_of('client', 'server'))  # the tier that runs the head
    RESULT_AT: str = setting('client', 'link', one_of('client', 'server'))  # the tier that needs the answer
    BANDWIDTH_MBPS: float = setting(100.0, 'link', above_0)  # Mbit/s; a measured link replaces it in real mode
    RTT_MS: float = setting(2.0, 'link', at_least_0)  # round-trip time, ms
    WIRE_FORMATS: Tuple[str, ...] = setting(('float32',), 'link', some_formats)  # what a feature map may travel as
    WIRE_CHANNELS: Tuple[float, ...] = setting((1.0,), 'none', some_shares)  # shares of a cut's channels that may be
    #                                   sent: `load` adds every format of WIRE_FORMATS with each, such as uint4@0.5

    # --- fleet: equal clients that share one server -------------------------------------------------
    CLIENTS: int = setting(8, 'objective', above_0)  # K; frame rates and times in results are those of one of them
    SERVER_WORKERS: int = setting(1, 'objective', above_0)  # frames that the server works on at a time
    LINK_SHARED: bool = setting(False, 'objective')  # BANDWIDTH_MBPS is what all clients share; 0: each has its own

    # --- step 2: γ and λ -----------------------------------------------------------------------
    OMEGA: float = setting(0.5, 'objective', fraction)  # T_eff = ω·T_lat + (1-ω)·T_cyc
    LAMBDA_MIN: int = setting(1, 'objective', at_least_0)  # smallest split to choose from (1: no raw image leaves)
    LAMBDA_MAX: Optional[int] = setting(None, 'objective', or_none(at_least_0))  # largest one; none: N-1
    OBJECTIVE: str = setting('T_eff', 'objective', one_of('T_eff', *OMEGA_OF, 'energy'))  # docs/limits.md
    MAX_CLIENT_MS: Optional[float] = setting(None, 'objective', limit)  # docs/limits.md; none: no limit
    MAX_SERVER_MS: Optional[float] = setting(None, 'objective', limit)
    MAX_CLIENT_MEMORY_MB: Optional[float] = setting(None, 'objective', limit)  # weights, peak activations; 2^20 bytes
    MAX_BYTES_PER_FRAME: Optional[float] = setting(None, 'objective', limit)  # across the link
    MAX_LATENCY_MS: Optional[float] = setting(None, 'objective', limit)  # T_lat + wait, round trip included
    MIN_FPS: Optional[float] = setting(None, 'objective', limit)  # frames a second of a client, 1000 / T_cyc
    MAX_CLIENT_MJ: Optional[float] = setting(None, 'objective', limit)  # energy of a frame on the client, mJ
    SIGMA: float = setting(5.0, 'gradient', above_0)  # steepness of the soft split
    ROOFLINE_BETA: float = setting(0.01, 'gradient', at_least_0)  # β: weight of the roofline loss beside a tier's time
    ROOFLINE_LAMBDA: float = setting(0.05, 'gradient', at_least_0)  # λ_I
    ROOFLINE_RHO: float = setting(0.1, 'gradient', at_least_0)  # ρ
    THROUGHPUT_OPTIM_STEPS: int = setting(800, 'gradient', at_least_0)  # Adam steps
    THROUGHPUT_OPTIM_LR: float = setting(0.01, 'gradient', above_0)

    # --- step 3: α, γ and λ together -----------------------------------------------------------
    EPSILON: float = setting(0.02, 'accuracy', fraction)  # allowed loss of accuracy, fraction of 1
    KAPPA: float = setting(100.0, 'joint', at_least_0)  # price of violating it
    MU: float = setting(1.0, 'joint', at_least_0)  # reward of accuracy
    MAX_PRUNING_ROUNDS: int = setting(30, 'joint', at_least_0)  # accepted changes at most
    MIN_SAVING: float = setting(0.01, 'joint', fraction)  # of the unpruned T_eff; less is within the table's noise
    MAX_EVALUATIONS: int = setting(0, 'joint', at_least_0)  # networks measured before the end, at most; 0: 4 a block
    ACTIVATION_CACHE_MB: int = setting(512, 'none', at_least_0)  # memory of a search for what blocks put out, MiB
    PRUNING_THRESHOLD: float = setting(0.02, 'joint', at_least_0)  # a branch whose |α| is below is offered for pruning
    #                                             for accuracy's sake even when it saves no time
    RECOVERY_STEPS: int = setting(48, 'joint', at_least_0)  # α steps (batches) of a recovery, at most
    RECOVERY_BATCH_SIZE: int = setting(32, 'joint', above_0)  # images a step
    RECOVERY_LR: float = setting(0.05, 'joint', above_0)  # Adam
    RECALIBRATE_BN: bool = setting(False, 'joint')  # re-estimate BatchNorm's statistics for pruned networks
    RECALIBRATION_IMAGES: int = setting(128, 'joint', above_0)  # training images for it, without labels
    PICK: str = setting('constraint', 'pick', one_of(*PICKS))  # the point of the frontier that is the answer
    CONFIDENCE: Optional[float] = setting(0.9, 'confidence', or_none(inner_fraction))  # that the loss is at most ε on
    #                                             new data (docs/frontier.md); none: validation images alone decide
    BUDGET_T_EFF_MS: Optional[float] = setting(None, 'pick', limit)  # of PICK=budget; none: no bound
    BUDGET_LATENCY_MS: Optional[float] = setting(None, 'pick', limit)  # T_lat + wait, round trip included
    BUDGET_MIN_FPS: Optional[float] = setting(None, 'pick', limit)  # frames a second of a client, 1000 / T_cyc

    # --- many different clients and servers: plan_fleet.py, simulate_fleet.py ----------------------
    FLEET_OBJECTIVE: str = setting('max_min', 'fleet', one_of('max_min', 'max_total', 'fewest_servers',
                                                              'max_accuracy'))
    MAX_LOAD: float = setting(0.9, 'fleet', share)  # a plan uses every device, link and server for so much of its time
    SWITCH_GAIN: float = setting(0.10, 'none', at_least_0)  # a client switches to what is better by more than this
    SWITCH_AFTER_S: float = setting(3.0, 'none', at_least_0)  # for so long
    SWITCH_PAUSE_S: float = setting(60.0, 'none', at_least_0)  # and not sooner than this after its last switch
    FALLBACK_AFTER_S: float = setting(1.0, 'none', above_0)  # without a sign of life of its server a client goes on
    RETURN_AFTER_S: float = setting(3.0, 'none', at_least_0)  # with a server that answers again it returns
    LINK_TRACE: str = setting('', 'fleet')  # CSV of seconds, mbps, rtt_ms: the link of clients that name none

    # --- real mode ---------------------------------------------------------------------------
    SERVER_IP: str = setting('127.0.0.1', 'none')
    PORT_MAIN: int = setting(6006, 'none', port)  # carries work; the client connects to it
    PORT_CONTROL: int = setting(6008, 'none', port)  # status, cancel, shut down; the client listens on loopback

    # --- service (docs/service.md) -------------------------------------------------------------
    BATCH_LATENCY_MS: float = setting(20.0, 'none', above_0)  # frames share a batch only while it takes at most this

    SHIFT_AFTER_FRAMES: int = setting(10, 'none', above_0)  # that clearly look like another domain before its network
    #                                             takes over
    HELD_NETWORKS_MB: float = setting(512.0, 'none', above_0)  # memory for networks that a client may be switched to,
    #                                             on the device and in each worker of a service; 2^20 bytes

    # --- files -------------------------------------------------------------------------------
    RESULTS_DIR: str = setting('results', 'none', path)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata['rule']
            if not rule.accepts(value):
                raise UserError(f'setting {field.name}={value!r}: must be {rule.wanted}')

    def group(self, *groups: str) -> Dict[str, Any]:
        """The settings of these groups, by name: what a result's metadata records."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
                if f.metadata['group'] in groups}

    def threads(self, count: int) -> int:
        """A thread setting with 0 replaced by the cores that this process may use (`cores`)."""
        return count or cores()


def cores(groups: str = '/proc/self/cgroup', mounted: str = '/sys/fs/cgroup') -> int:
    """How many cores this process may use: those that it is bound to, or a container's share where that is less (whole
    cores, at least one). `groups` and `mounted` are where Linux describes control groups, version 1 and 2."""
    found = float(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)
    try:
        own = [line.split(':', 2)[2].strip().strip('/') for line in _text(groups).splitlines() if line.count(':') >= 2]
    except OSError:
        own = []
    for group in {'', *own}:
        parts = group.split('/')
        for depth in range(len(parts) + 1):  # a limit of a group holds for those below it
            for version, names in (('', ('cpu.max',)), ('cpu', ('cpu.cfs_quota_us', 'cpu.cfs_period_us'))):
                files = [os.path.join(mounted, version, *parts[:depth], name) for name in names]
                try:
                    quota, period = (float(number) for file in files for number in _text(file).split())
                except (OSError, ValueError):  # no such file; 'max', no limit
                    continue
                if quota > 0 and period > 0:  # -1: no limit
                    found = min(found, quota / period)
    return max(1, int(found))


def _text(path: str) -> str:
    with open(path, encoding='utf-8') as stream:
        return stream.read()


PROFILES: Dict[str, Dict[str, Any]] = {
    'quickstart': {},
    'imagenet': dict(
        MODEL_NAME='RepVGG-B3', NUM_CLASSES=1000, INPUT_SIZE=224, WEIGHT_PATH_SERVER='',
        DATASET='imagefolder', DATA_PATH='data/imagenet', CLIENTS=1, BATCH_SIZE=16, IMAGES_PER_SUBSET=500,
        NORM_MEAN=(0.485, 0.456, 0.406), NORM_STD=(0.229, 0.224, 0.225),  # torchvision's ImageNet statistics
        SERVER_THREADS=0, DEVICE_PROFILE='jetson-tx2', LUT_ROUNDS=5, ALPHA_EPOCHS=1, ALPHA_LR=0.005,
        RECOVERY_LR=0.005, RECOVERY_BATCH_SIZE=16,
    ),
    'photos': dict(  # ten classes of photographs (imagenette); DATA_PATH: where train/ and val/ of them lie
        MODEL_NAME='RepVGG-A0', INPUT_SIZE=128, WEIGHT_PATH_SERVER='data/weights/repvgg_a0_imagenette.pt',
        DATASET='imagefolder', DATA_PATH='data/imagenette', RESULTS_DIR='results_photos', IMAGES_PER_SUBSET=600,
        NORM_MEAN=(0.485, 0.456, 0.406), NORM_STD=(0.229, 0.224, 0.225), CLIENTS=8, LUT_ROUNDS=11,
        WIRE_FORMATS=('float32', 'uint8'), ALPHA_EPOCHS=1, ALPHA_LR=0.01,
    ),
}

_BOOLEANS = {'1': True, 'true': True, 'yes': True, 'on': True, '0': False, 'false': False, 'no': False, 'off': False}
_TYPES = get_type_hints(Settings)


def load(overrides: Tuple[str, ...] = (), environ: Optional[Mapping[str, str]] = None) -> Settings:
    """Settings from the profile, the environment and `NAME=VALUE` overrides, in rising order.

    Raises `UserError` for an unknown or former name, a value of the wrong type or one out of range.
    """
    environ = os.environ if environ is None else environ
    texts = {name: value for name, value in environ.items() if name in _TYPES}
    for name in environ:
        if name in RENAMED:
            raise UserError(f'unknown setting {name} in the environment: {replacement_of(name)}')
        near = _nearest(name, cutoff=0.88)
        if name not in _TYPES and near and near not in environ and name.isupper():
            print(f'warning: {name} in the environment is no setting: did you mean {near}?', file=sys.stderr)
    for item in overrides:
        name, equals, value = item.partition('=')
        if not equals:
            raise UserError(f'override {item!r}: write it as NAME=VALUE')
        if name in RENAMED:
            raise UserError(f'unknown setting {name}: {replacement_of(name)}')
        if name not in _TYPES:
            near = _nearest(name.upper(), cutoff=0.7)
            raise UserError(f'unknown setting {name}' + (f': did you mean {near}?' if near else
                                                         ': config.py lists them all'))
        texts[name] = value
    given = {name: _parse(name, text) for name, text in texts.items()}
    profile = given.get('PROFILE', Settings.PROFILE)
    if given.get('OBJECTIVE') in OMEGA_OF:
        implied = OMEGA_OF[given['OBJECTIVE']]
        if given.setdefault('OMEGA', implied) != implied:
            raise UserError(f"OBJECTIVE={given['OBJECTIVE']} sets OMEGA to {implied:g}: leave one of them out")
    settings = Settings(**{**PROFILES.get(profile, {}), **given})
    settings = dataclasses.replace(settings, WIRE_FORMATS=with_shares(settings.WIRE_FORMATS, settings.WIRE_CHANNELS))
    budgets = [name for name in BUDGETS if getattr(settings, name) is not None]
    if settings.PICK == 'budget' and not budgets:
        raise UserError(f'PICK=budget needs a budget: set one of {", ".join(BUDGETS)}')
    if settings.PICK != 'budget' and budgets:
        raise UserError(f'{budgets[0]} is only used by PICK=budget, and PICK is {settings.PICK}')
    return settings


def with_shares(formats: Tuple[str, ...], shares: Tuple[float, ...]) -> Tuple[str, ...]:
    """Every format with every share of the channels: 'uint4+zlib' with 0.5 is 'uint4@0.5+zlib', with 1 itself. A format
    that names a share stays as it is."""
    if shares == (1.0,):
        return formats
    found = []
    for name in formats:
        numbers, plus, compression = name.partition('+')
        found += [name] if '@' in numbers else [numbers + (f'@{share:g}' if share < 1 else '') + plus + compression
                                                for share in shares]
    return tuple(dict.fromkeys(found))


def profile_defaults(settings: Settings) -> Settings:
    """The settings of this profile when nothing is overridden."""
    return Settings(**{'PROFILE': settings.PROFILE, **PROFILES.get(settings.PROFILE, {})})


REAL_CLIENT = ('DEVICE_PROFILE', 'BANDWIDTH_MBPS', 'RTT_MS')  # settings of which a connected client is the truth


def with_real_client(settings: Settings) -> Settings:
    """Settings of real mode: no client is simulated, and the link is measured, not named."""
    default = profile_defaults(settings)
    return dataclasses.replace(settings, DEVICE_PROFILE='', BANDWIDTH_MBPS=default.BANDWIDTH_MBPS,
                               RTT_MS=default.RTT_MS)


def as_text(value: Any) -> str:
    """A setting's value as it is written behind NAME=; `load` reads it back."""
    if isinstance(value, tuple):
        return ','.join(as_text(part) for part in value)
    if value is None or isinstance(value, bool):
        return {None: 'none', True: '1', False: '0'}[value]
    return str(value)


def replacement_of(name: str) -> str:
    """What took the place of a setting of earlier versions, as a message says it."""
    now = RENAMED[name]
    return f'it is now called {now}' if now in _TYPES else now


def _nearest(name: str, cutoff: float) -> Optional[str]:
    found = difflib.get_close_matches(name, list(_TYPES), n=1, cutoff=cutoff)
    return found[0] if found else None


def _parse(name: str, text: str) -> Any:
    kind = _TYPES[name]
    try:
        if kind == Optional[int]:
            return None if text.lower() in ('', 'none') else int(text)
        if kind == Optional[float]:
            return None if text.lower() in ('', 'none') else _finite(text)
        if kind == Tuple[float, ...]:
            return tuple(_finite(part) for part in text.split(','))
        if kind == Tuple[str, ...]:
            return tuple(part.strip() for part in text.split(',') if part.strip())
        if kind is bool:
            return _BOOLEANS[text.strip().lower()]
        return _finite(text) if kind is float else kind(text)
    except (KeyError, ValueError):
        words = {bool: "'1' or '0', 'true' or 'false'",
                 int: 'a whole number', float: 'a finite number', Optional[int]: "a whole number or 'none'",
                 Optional[float]: "a finite number or 'none'",
                 Tuple[float, ...]: 'finite numbers separated by commas'}
        raise UserError(f'setting {name}={text!r}: must be {words[kind]}') from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
