"""Every setting of the project, once: default, unit, source.

    PROFILE=imagenet python step1_measure_lut.py --mode server          # from the environment
    python step_3_joint.py --domain_id 3 --set EPSILON=0.01 OMEGA=1     # from the command line

The command line wins over the environment, the environment over the profile, the profile over
the defaults below. Every value is checked against its type and range; an unknown name is an
error that names the nearest setting. Importing this module does nothing else: a script calls
`load()` once and passes the `Settings` on.
"""
from __future__ import annotations

import dataclasses
import difflib
import math
import os
from typing import Any, Dict, Mapping, Optional, Tuple, get_type_hints

ROOT = os.path.dirname(os.path.abspath(__file__))  # of the repository


class UserError(Exception):
    """Something the user can put right; shown as one line on stderr, exit status 2."""


def _setting(default: Any, group: str) -> Any:
    """A field of `Settings`; `group` names the results that it shapes (see `Settings.group`)."""
    return dataclasses.field(default=default, metadata={'group': group})


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings. Groups say which outputs depend on which settings, so that the pipeline
    repeats a step only when something that shapes its result has changed."""

    PROFILE: str = _setting('quickstart', 'none')  # 'quickstart' or 'imagenet', see PROFILES below
    SEED: int = _setting(0, 'data')  # seeds partition, corruptions, α training and search

    # --- model -------------------------------------------------------------------------------
    MODEL_NAME: str = _setting('RepVGG-Micro', 'model')  # a name of repvgg.ARCHITECTURES
    NUM_CLASSES: int = _setting(10, 'model')
    INPUT_SIZE: int = _setting(32, 'model')  # pixels; images are squares of this side, 3 channels
    WEIGHT_PATH_SERVER: str = _setting('data/weights/repvgg_micro_mnist5k.pt', 'weights')  # '': random weights
    WEIGHT_PATH_CLIENT: str = _setting('', 'none')  # on the client; '': the server sends what is missing

    # --- data --------------------------------------------------------------------------------
    DATASET: str = _setting('mnist5k', 'data')  # 'mnist5k', 'imagefolder' or a torchvision dataset's name
    DATA_PATH: str = _setting('data', 'data')  # root folder of the dataset
    PARTITION_FILE: str = _setting('data/noniid_partitions/partition_info.json', 'none')
    NUM_DOMAINS: int = _setting(10, 'data')  # 1..10, one corruption each (domain_transforms.py)
    TRAIN_FRACTION: float = _setting(0.5, 'data')  # of all images; fits the base model and α
    VAL_FRACTION: float = _setting(0.25, 'data')  # of all images; every decision. The rest is test data
    DIRICHLET_BETA: float = _setting(2.0, 'data')  # concentration of the label skew; smaller is more skewed
    IMAGES_PER_SPLIT: int = _setting(700, 'data')  # at most this many images of a split in one domain; 0: no limit
    NORM_MEAN: Tuple[float, ...] = _setting((0.5, 0.5, 0.5), 'data')  # per channel, of images in [0, 1]
    NORM_STD: Tuple[float, ...] = _setting((0.5, 0.5, 0.5), 'data')
    BATCH_SIZE: int = _setting(64, 'alpha')  # images; α training and evaluation
    NUM_WORKERS: int = _setting(0, 'none')  # data loading processes; does not change a pixel
    TORCH_THREADS: int = _setting(1, 'alpha')  # threads of training and evaluation; 1: same sums everywhere, and
    #                                               run_pipeline.sh runs a domain on each core; 0: all cores
    TRAIN_DEVICE: str = _setting('cpu', 'none')  # of α training and search: 'cpu', 'cuda', 'cuda:1', 'auto' (CUDA if
    #                                              there is one); with 'cuda' domains take turns on all GPUs

    # --- α for each domain (code1) and its importance (code2) -----------------------------------
    ALPHA_EPOCHS: int = _setting(4, 'alpha')  # passes over a domain's training split
    ALPHA_LR: float = _setting(0.02, 'alpha')  # Adam

    # --- tiers: what is measured or simulated (roofline, step 1) --------------------------------
    SERVER_DEVICE: str = _setting('auto', 'server')  # 'auto' (CUDA if there is one), 'cpu', 'cuda', 'cuda:1'
    SERVER_THREADS: int = _setting(1, 'server')  # CPU threads of the server tier; 0: all cores
    CLIENT_DEVICE: str = _setting('auto', 'client')  # of a real client
    CLIENT_THREADS: int = _setting(1, 'client')  # CPU threads of a real client; 0: all cores
    DEVICE_PROFILE: str = _setting('edge-cpu', 'client')  # simulated client: 'edge-cpu', 'jetson-tx2', a JSON
    #                                                       file, or '' when a real client is meant
    EDGE_CPU_SLOWDOWN: float = _setting(6.0, 'client')  # edge-cpu: the time of one thread here, times this
    LUT_ROUNDS: int = _setting(21, 'lut')  # timed visits of every (block, γ); the median is kept

    # --- link --------------------------------------------------------------------------------
    HEAD_TIER: str = _setting('client', 'link')  # the tier that runs the head: 'client' or 'server'
    BANDWIDTH_MBPS: float = _setting(100.0, 'link')  # Mbit/s; a measured link replaces it in real mode
    RTT_MS: float = _setting(2.0, 'link')  # round-trip time, ms
    WIRE_FORMATS: Tuple[str, ...] = _setting(('float32',), 'link')  # what a feature map may travel as

    # --- step 2: γ and λ (design section 5 and 6) ------------------------------------------------
    OMEGA: float = _setting(0.5, 'objective')  # T_eff = ω·T_lat + (1-ω)·T_cyc
    LAMBDA_MIN: int = _setting(1, 'objective')  # smallest split the optimisers may choose (1: no raw image leaves)
    LAMBDA_MAX: Optional[int] = _setting(None, 'objective')  # largest one; none: N-1
    OBJECTIVE: str = _setting('T_eff', 'objective')  # 'T_eff', or 'throughput' (sets OMEGA to 0), 'latency' (to 1)
    MAX_CLIENT_MS: Optional[float] = _setting(None, 'objective')  # limits, none: no limit (docs/limits.md)
    MAX_SERVER_MS: Optional[float] = _setting(None, 'objective')
    MAX_CLIENT_MEMORY_MB: Optional[float] = _setting(None, 'objective')  # weights + peak activations, MB of 2^20 bytes
    MAX_BYTES_PER_FRAME: Optional[float] = _setting(None, 'objective')  # across the link
    MAX_LATENCY_MS: Optional[float] = _setting(None, 'objective')  # T_lat, round trip included
    MIN_FPS: Optional[float] = _setting(None, 'objective')  # frames a second of a stream, 1000 / T_cyc
    SIGMA: float = _setting(5.0, 'gradient')  # steepness of the soft split
    ROOFLINE_BETA: float = _setting(0.01, 'gradient')  # β: weight of the roofline loss beside a tier's time
    ROOFLINE_LAMBDA: float = _setting(0.05, 'gradient')  # λ_I
    ROOFLINE_RHO: float = _setting(0.1, 'gradient')  # ρ
    THROUGHPUT_OPTIM_STEPS: int = _setting(800, 'gradient')  # Adam steps
    THROUGHPUT_OPTIM_LR: float = _setting(0.01, 'gradient')

    # --- step 3: α, γ and λ together (design section 5 and 7) ------------------------------------
    EPSILON: float = _setting(0.02, 'joint')  # allowed loss of accuracy, fraction of 1
    KAPPA: float = _setting(100.0, 'joint')  # price of violating it
    MU: float = _setting(1.0, 'joint')  # reward of accuracy
    MAX_PRUNING_ROUNDS: int = _setting(30, 'joint')  # accepted changes at most
    MIN_SAVING: float = _setting(0.01, 'joint')  # of the unpruned T_eff; what saves less is within the table's noise
    LOOKS: int = _setting(96, 'joint')  # networks whose accuracy is measured without a recovery of their own, at most;
    #                                     only half of them where no other promises much
    QUIET_SHARE: float = _setting(0.125, 'joint')  # of the validation images, hardest first: when so many in a row are
    #                                              right, a look takes the rest as right; 1: looks see all images
    ACTIVATION_CACHE_MB: int = _setting(512, 'none')  # memory of a search for what blocks put out, MiB
    PRUNING_THRESHOLD: float = _setting(0.02, 'joint')  # a branch whose |α| is below is offered for pruning for
    #                                                    accuracy's sake even when it saves no time
    SHARED_STEPS: int = _setting(96, 'joint')  # α steps (batches) on networks pruned at random, where all recoveries
    #                                            start; 0: they start from the unpruned network's α
    RECOVERY_STEPS: int = _setting(12, 'joint')  # α steps (batches) after a candidate change
    RECOVERY_BATCH_SIZE: int = _setting(32, 'joint')  # images a step
    RECOVERY_LR: float = _setting(0.05, 'joint')  # Adam
    RECALIBRATE_BN: bool = _setting(False, 'joint')  # re-estimate BatchNorm's statistics for pruned networks
    RECALIBRATION_IMAGES: int = _setting(128, 'joint')  # training images that they are estimated on, without labels
    L1_WEIGHT: float = _setting(0.02, 'joint')  # L1 pressure on α, times each branch's share of the time
    FRONTIER_LOOKS: int = _setting(4, 'joint')  # further looks after the search, where they promise the frontier most
    FRONTIER_RECOVERIES: int = _setting(1, 'joint')  # and recoveries of α; one costs as much as seven looks
    PICK: str = _setting('constraint', 'pick')  # which point of the frontier is the answer: 'constraint', 'knee' or
    #                                             'budget' (frontier.py says what they mean)
    BUDGET_T_EFF_MS: Optional[float] = _setting(None, 'pick')  # of PICK=budget; none: no bound
    BUDGET_LATENCY_MS: Optional[float] = _setting(None, 'pick')  # T_lat, round trip included
    BUDGET_MIN_FPS: Optional[float] = _setting(None, 'pick')  # frames a second of a stream, 1000 / T_cyc

    # --- real mode ---------------------------------------------------------------------------
    SERVER_IP: str = _setting('127.0.0.1', 'none')
    PORT_MAIN: int = _setting(6006, 'none')  # carries work; the client connects to it
    PORT_CONTROL: int = _setting(6008, 'none')  # status, cancel, shut down; the client listens on loopback

    # --- files -------------------------------------------------------------------------------
    RESULTS_DIR: str = _setting('results', 'none')

    def __post_init__(self) -> None:
        for name, (accepts, wanted) in _RULES.items():
            if not accepts(getattr(self, name)):
                raise UserError(f'setting {name}={getattr(self, name)!r}: must be {wanted}')

    def group(self, *groups: str) -> Dict[str, Any]:
        """The settings of these groups, by name: what a result's metadata records."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
                if f.metadata['group'] in groups}

    def threads(self, count: int) -> int:
        """A thread setting with 0 replaced by the cores that this process may use."""
        if count:
            return count
        return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


PROFILES: Dict[str, Dict[str, Any]] = {
    'quickstart': {},
    'imagenet': dict(
        MODEL_NAME='RepVGG-B3', NUM_CLASSES=1000, INPUT_SIZE=224, WEIGHT_PATH_SERVER='',
        DATASET='imagefolder', DATA_PATH='data/imagenet', BATCH_SIZE=16, IMAGES_PER_SPLIT=500,
        NORM_MEAN=(0.485, 0.456, 0.406), NORM_STD=(0.229, 0.224, 0.225),  # torchvision's ImageNet statistics
        SERVER_THREADS=0, DEVICE_PROFILE='jetson-tx2', LUT_ROUNDS=5, ALPHA_EPOCHS=1, ALPHA_LR=0.005,
        RECOVERY_LR=0.005, RECOVERY_BATCH_SIZE=16,
    ),
}

OMEGA_OF = {'throughput': 0.0, 'latency': 1.0}  # what OBJECTIVE means: T_eff with all its weight on one of its terms

PICKS = ('constraint', 'knee', 'budget')
BUDGETS = ('BUDGET_T_EFF_MS', 'BUDGET_LATENCY_MS', 'BUDGET_MIN_FPS')

_positive = (lambda v: v > 0, 'above 0')
_not_negative = (lambda v: v >= 0, '0 or more')
_fraction = (lambda v: 0 <= v <= 1, 'between 0 and 1')
_port = (lambda v: 0 < v < 65536, 'a port, 1 to 65535')
_named = (lambda v: v.strip() != '', 'a path')
_RULES = {
    'PROFILE': (lambda v: v in PROFILES, "'quickstart' or 'imagenet'"),
    'HEAD_TIER': (lambda v: v in ('client', 'server'), "'client' or 'server'"),
    'NUM_DOMAINS': (lambda v: 1 <= v <= 10, 'between 1 and 10'),
    'TRAIN_FRACTION': (lambda v: 0 < v < 1, 'between 0 and 1'),
    'VAL_FRACTION': (lambda v: 0 < v < 1, 'between 0 and 1'),
    'NORM_MEAN': (lambda v: len(v) == 3, 'three numbers'),
    'NORM_STD': (lambda v: len(v) == 3 and min(v) > 0, 'three numbers above 0'),
    'WIRE_FORMATS': (lambda v: len(v) > 0, 'at least one format'),
    'SEED': (lambda v: 0 <= v < 2 ** 63, '0 or more, below 2^63'),
    'RESULTS_DIR': _named, 'PARTITION_FILE': _named,
    'PORT_MAIN': _port, 'PORT_CONTROL': _port, 'OMEGA': _fraction, 'EPSILON': _fraction, 'MIN_SAVING': _fraction,
    'QUIET_SHARE': (lambda v: 0 < v <= 1, 'above 0, at most 1'),
    'LAMBDA_MAX': (lambda v: v is None or v >= 0, '0 or more, or none'),
    'OBJECTIVE': (lambda v: v == 'T_eff' or v in OMEGA_OF, "'T_eff', 'throughput' or 'latency'"),
    **{name: (lambda v: v is None or v > 0, 'above 0, or none') for name in (
        'MAX_CLIENT_MS', 'MAX_SERVER_MS', 'MAX_CLIENT_MEMORY_MB', 'MAX_BYTES_PER_FRAME', 'MAX_LATENCY_MS',
        'MIN_FPS', 'BUDGET_T_EFF_MS', 'BUDGET_LATENCY_MS', 'BUDGET_MIN_FPS')},
    'PICK': (lambda v: v in PICKS, "'constraint', 'knee' or 'budget'"),
    **{name: _positive for name in (
        'NUM_CLASSES', 'INPUT_SIZE', 'DIRICHLET_BETA', 'BATCH_SIZE', 'ALPHA_LR', 'EDGE_CPU_SLOWDOWN',
        'LUT_ROUNDS', 'RECALIBRATION_IMAGES', 'BANDWIDTH_MBPS', 'SIGMA', 'THROUGHPUT_OPTIM_LR', 'LOOKS',
        'RECOVERY_LR', 'RECOVERY_BATCH_SIZE')},
    **{name: _not_negative for name in (
        'IMAGES_PER_SPLIT', 'NUM_WORKERS', 'TORCH_THREADS', 'ALPHA_EPOCHS', 'SERVER_THREADS',
        'CLIENT_THREADS', 'RTT_MS', 'LAMBDA_MIN', 'ROOFLINE_BETA', 'ROOFLINE_LAMBDA', 'ROOFLINE_RHO',
        'THROUGHPUT_OPTIM_STEPS', 'KAPPA', 'MU', 'MAX_PRUNING_ROUNDS', 'PRUNING_THRESHOLD', 'SHARED_STEPS',
        'RECOVERY_STEPS', 'L1_WEIGHT', 'ACTIVATION_CACHE_MB', 'FRONTIER_LOOKS', 'FRONTIER_RECOVERIES')},
}
_BOOLEANS = {'1': True, 'true': True, 'yes': True, 'on': True, '0': False, 'false': False, 'no': False, 'off': False}
_TYPES = get_type_hints(Settings)


def load(overrides: Tuple[str, ...] = (), environ: Optional[Mapping[str, str]] = None) -> Settings:
    """Settings from the profile, the environment and `NAME=VALUE` overrides, in rising order.

    Raises `UserError` for an unknown name, a value of the wrong type or one out of range.
    """
    environ = os.environ if environ is None else environ
    texts = {name: value for name, value in environ.items() if name in _TYPES}
    for name in environ:
        near = _nearest(name, cutoff=0.88)
        if name not in _TYPES and near and near not in environ and name.isupper():
            raise UserError(f'unknown setting {name} in the environment: did you mean {near}?')
    for item in overrides:
        name, equals, value = item.partition('=')
        if not equals:
            raise UserError(f'override {item!r}: write it as NAME=VALUE')
        if name not in _TYPES:
            near = _nearest(name.upper(), cutoff=0.5)
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
    budgets = [name for name in BUDGETS if getattr(settings, name) is not None]
    if settings.PICK == 'budget' and not budgets:
        raise UserError(f'PICK=budget needs a budget: set one of {", ".join(BUDGETS)}')
    if settings.PICK != 'budget' and budgets:
        raise UserError(f'{budgets[0]} is only used by PICK=budget, and PICK is {settings.PICK}')
    return settings


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
