"""The JSON files: where they are, how they are written, and how they are read without being trusted.

Every file is replaced in one step, so a reader (or a run after a kill) sees the old one or the new one,
never half of one. Every file carries `schema_version` and `metadata`; a file that is missing, damaged,
of another version or of another model is refused in one line that names it and the command that makes it.
"""
from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import platform
import re
import tempfile
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Union

from config import Settings, UserError

SCHEMA_VERSION = 1
MAX_FILE_BYTES = 256 << 20  # a larger file is not one of ours


class FileKind(NamedTuple):
    """One kind of file: where it is, what makes it, and what it is made from. Together the rows of KINDS are the
    pipeline's graph of dependencies."""
    path: str  # a format of RESULTS_DIR, MODEL_NAME, PARTITION_FILE, WEIGHT_PATH_SERVER, a domain
    made_by: str
    groups: Sequence[str]  # the groups of settings that shape it
    inputs: Sequence[str] = ()  # kinds that it is made from
    files: Sequence[str] = ()  # settings that name further files it is made from


_TASK1, _TASK2 = 'task1_trained_weights_{model}/', 'task2_importance_rankings_{model}/'
_CODE1, _CODE2 = 'python code1_train_and_record_weights.py', 'python code2_calculate_flops_importance.py'
_STEP1 = 'python step1_measure_lut.py --mode '
_STEP3 = 'python step_3_joint.py --domain_id {domain} --mode pseudo'
_TRAINED = ('model', 'weights', 'data', 'alpha')
_TABLE = ('model', 'lut', 'server', 'client', 'link')
_SEARCH = FileKind('{results}/joint_optimization/domain_{domain}_state.json', _STEP3,
                   (*_TRAINED, 'link', 'objective', 'joint'), ('lut', 'alpha', 'importance_rankings', 'partition'),
                   ('WEIGHT_PATH_SERVER',))

_SEQUENTIAL = _SEARCH._replace(path='{results}/sequential/domain_{domain}_sequential.json',
                              made_by='python step3_accuracy_opt.py --domain_id {domain}')

KINDS: Dict[str, FileKind] = {
    'partition': FileKind('{partition}', 'python create_noniid_partition.py', ('data',)),
    'base_model': FileKind('{weights}.json', 'python train_base_model.py', ('model', 'data'), ('partition',)),
    'alpha': FileKind(_TASK1 + 'trained_hyper_weights.json', _CODE1, _TRAINED, ('partition',), ('WEIGHT_PATH_SERVER',)),
    'alpha_training': FileKind(_TASK1 + 'training_results.json', _CODE1, _TRAINED, ('partition',),
                               ('WEIGHT_PATH_SERVER',)),
    'branch_flops': FileKind(_TASK2 + 'branch_flops.json', _CODE2, ('model',), ('alpha',)),
    'importance_scores': FileKind(_TASK2 + 'importance_scores.json', _CODE2, ('model',), ('alpha',)),
    'importance_rankings': FileKind(_TASK2 + 'importance_rankings.json', _CODE2, ('model',), ('alpha',)),
    'roofline_server': FileKind('{results}/roofline_server.json', 'python roofline_measure.py --tier server',
                                ('server',)),
    'roofline_client': FileKind('{results}/roofline_client.json', 'python roofline_measure.py --tier client',
                                ('client',), (), ('DEVICE_PROFILE',)),
    'lut_server': FileKind('{results}/lut_server.json', _STEP1 + 'server', ('model', 'lut', 'server')),
    'lut_client': FileKind('{results}/lut_client.json', _STEP1 + 'client', ('model', 'lut', 'client'), (),
                           ('DEVICE_PROFILE',)),
    'lut': FileKind('{results}/hardware_lut_complete.json', _STEP1 + 'merge', _TABLE, ('lut_server', 'lut_client')),
    'step2': FileKind('{results}/initial_throughput_config.json',
                      'python step2_initial_throughput_opt.py --lut_file {results}/hardware_lut_complete.json',
                      ('model', 'link', 'objective', 'gradient'), ('lut',)),
    'joint': _SEARCH._replace(path='{results}/joint_optimization/domain_{domain}_joint.json',
                              groups=(*_SEARCH.groups, 'pick')),
    'joint_state': _SEARCH,
    'sequential_accuracy': _SEQUENTIAL._replace(path='{results}/sequential/domain_{domain}_accuracy.json'),
    'sequential_accuracy_state': _SEQUENTIAL._replace(path='{results}/sequential/domain_{domain}_state.json'),
    'sequential': _SEQUENTIAL._replace(made_by='python step4_final_throughput_opt.py --domain_id {domain}',
                                       inputs=(*_SEARCH.inputs, 'sequential_accuracy')),
    'summary': FileKind('{results}/visualization/summary.json', 'python step5_visualize_results.py', ()),
}


def path_of(kind: str, settings: Settings, domain: Optional[int] = None) -> str:
    """Where a kind of file lies under these settings."""
    return KINDS[kind].path.format(results=settings.RESULTS_DIR, model=settings.MODEL_NAME, domain=domain,
                                   partition=settings.PARTITION_FILE,
                                   weights=os.path.splitext(settings.WEIGHT_PATH_SERVER)[0])


def command_for(kind: str, settings: Settings, domain: Optional[int] = None) -> str:
    """The command that makes it."""
    return KINDS[kind].made_by.format(results=settings.RESULTS_DIR, domain=domain)


# --- writing ------------------------------------------------------------------------------------

@contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yield a temporary path beside `path`; it takes the place of `path` when the block ends without an error.

    Raises `UserError` when the folder or the file cannot be written; `path` then stays as it was.
    """
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix='.', suffix=os.path.splitext(path)[1] or '.tmp')
        os.close(handle)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}; free the path or choose another RESULTS_DIR') from None
    try:
        yield temporary
        with open(temporary, 'rb+') as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(path: str) -> None:
    """Raise `UserError` now rather than after the work, when `path` could not be written later."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}; free the path or choose another RESULTS_DIR') from None
    if os.path.isdir(path):
        raise UserError(f'cannot write {path}: a folder is in the way')


_NUMBER = r'(?:null|-?\d[\d.eE+-]*)'
_LIST_OF_NUMBERS = re.compile(rf'\[\n *{_NUMBER}(?:,\n *{_NUMBER})*\n *\]')  # no text in JSON holds a line end


def write(path: str, content: Dict[str, Any], metadata: Dict[str, Any]) -> None:
    """Write one JSON file atomically, with `schema_version` and `metadata` first, a list of numbers in one line. NaN
    and infinity are programming errors (`ValueError`): a missing number is None."""
    text = json.dumps({'schema_version': SCHEMA_VERSION, 'metadata': metadata, **content}, indent=1, allow_nan=False)
    with replacing(path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as stream:
            stream.write(_LIST_OF_NUMBERS.sub(lambda found: json.dumps(json.loads(found[0])), text) + '\n')


def make_metadata(settings: Settings, kind: str, inputs: str) -> Dict[str, Any]:
    """The metadata of a file of this kind; `inputs` is its `inputs_of`."""
    versions = {module: _version(module) for module in ('torch', 'torchvision', 'numpy')}
    return {'model': settings.MODEL_NAME,
            'created': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
            'software': {'python': platform.python_version(), **{k: v for k, v in versions.items() if v}},
            'seed': settings.SEED, 'config': _plain(settings.group(*KINDS[kind].groups)), 'inputs': inputs}


def _version(package: str) -> Optional[str]:
    from importlib import metadata
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def numbers_or_none(values: Iterable[float]) -> List[Optional[float]]:
    """A row of numbers for a JSON file: NaN becomes None."""
    return [None if math.isnan(value) else float(value) for value in values]


# --- is an output still current? -------------------------------------------------------------------

def inputs_of(kind: str, settings: Settings, domain: Optional[int] = None, **replaced: str) -> str:
    """A hash of everything that shapes a file of this kind: its settings and the content of its input files (our own
    JSON files count without their metadata, a missing file counts as missing). `replaced` gives another path for
    an input, as in `inputs_of('step2', settings, lut='table.json')`."""
    spec = KINDS[kind]
    files = [replaced.get(name) or path_of(name, settings) for name in spec.inputs]
    files += [_named_file(getattr(settings, name)) for name in spec.files]
    digest = hashlib.sha256(json.dumps(_plain(settings.group(*spec.groups)), sort_keys=True).encode())
    digest.update(f'\n{domain}'.encode())
    for path in files:
        digest.update(f'\n{os.path.basename(path)}:{content_hash(path)}'.encode())
    return digest.hexdigest()


def _named_file(value: str) -> str:
    """The file that a setting means: a path, or the name of a built-in device profile."""
    built_in = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data', 'device_profiles', f'{value}.json')
    return built_in if os.path.isfile(built_in) else value


def content_hash(path: str) -> str:
    """SHA-256 of a file's content, '' when there is none; of our own JSON files without their metadata."""
    if not os.path.isfile(path):
        return ''
    with open(path, 'rb') as stream:
        data = stream.read()
    if path.endswith('.json'):
        try:
            content = json.loads(data)
            content.pop('metadata', None)
            data = json.dumps(content, sort_keys=True).encode()
        except (ValueError, AttributeError):
            pass  # a damaged file hashes as it is; reading it will say what is wrong
    return hashlib.sha256(data).hexdigest()


def is_current(paths: Sequence[str], inputs: str) -> bool:
    """Were all these outputs made from inputs with this fingerprint? Pictures only have to be there."""
    for path in paths:
        if not os.path.isfile(path):
            return False
        if path.endswith('.json'):
            try:
                if read(path, '').content['metadata'].get('inputs') != inputs:
                    return False
            except UserError:
                return False
    return True


# --- reading ------------------------------------------------------------------------------------

Field = Union[str, Sequence[str]]  # 'metadata.model', or a sequence of keys where these may hold dots


def _label(field: Field) -> str:
    return field if isinstance(field, str) else '.'.join(field)


class Document:
    """A JSON file's content with checked access: a missing or ill-typed field is a `UserError` naming it."""

    def __init__(self, path: str, content: Dict[str, Any], made_by: str) -> None:
        self.path, self.content, self.made_by = path, content, made_by

    def refuse(self, what: str) -> UserError:
        """The error to raise when the content is not usable."""
        return UserError(f'{self.path}: {what}' + (f'; make it again with `{self.made_by}`' if self.made_by else ''))

    def find(self, field: Field) -> Any:
        """The value of a field such as 'metadata.model' or ('T_server', 'stage1.0'); `UserError` if it is missing."""
        node: Any = self.content
        for part in field.split('.') if isinstance(field, str) else field:
            if not isinstance(node, dict) or part not in node:
                raise self.refuse(f"field '{_label(field)}' is missing")
            node = node[part]
        return node

    def get(self, field: Field, kind: type = dict) -> Any:
        """`find`, checked for its type; `kind` float also takes integers, nothing takes a boolean but bool."""
        return self.check(self.find(field), field, kind)

    def check(self, value: Any, field: Field, kind: type) -> Any:
        """`value` if it is of this kind, else `UserError`."""
        accepted = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            words = {dict: 'an object', list: 'a list', str: 'text', float: 'a number', int: 'a whole number',
                     bool: 'true or false'}
            raise self.refuse(f"field '{_label(field)}' is {json.dumps(value)[:40]}, not {words[kind]}")
        if kind is float:
            try:
                value = float(value)
            except OverflowError:  # a whole number of more than 308 digits
                value = math.inf
            if not math.isfinite(value):
                raise self.refuse(f"field '{_label(field)}' is not a finite number")
        return value

    def number(self, field: Field, lowest: float = -math.inf) -> float:
        """One number, at least `lowest`."""
        return self._at_least(self.get(field, float), field, lowest)

    def numbers(self, field: Field, length: int, none_allowed: bool = False, lowest: float = -math.inf) -> List[float]:
        """A list of `length` numbers, None read as NaN where allowed."""
        values = self.get(field, list)
        if len(values) != length:
            raise self.refuse(f"field '{_label(field)}' has {len(values)} entries, not {length}")
        return [math.nan if value is None and none_allowed else
                self._at_least(self.check(value, f'{_label(field)}[{index}]', float), f'{_label(field)}[{index}]',
                               lowest) for index, value in enumerate(values)]

    def _at_least(self, value: float, field: Field, lowest: float) -> float:
        if value < lowest:
            raise self.refuse(f"field '{_label(field)}' is {value}, below {lowest:g}")
        return value

    def require_model(self, settings: Settings) -> None:
        """Refuse a file that was made for another model."""
        model = self.get('metadata.model', str)
        if model != settings.MODEL_NAME:
            raise self.refuse(f'was made for model {model}, the settings say {settings.MODEL_NAME}')


def read(path: str, made_by: str) -> Document:
    """Read one of our JSON files; `UserError` when it is missing, damaged or of another version."""
    if not os.path.exists(path):
        raise UserError(f'{path}: no such file' + (f'; make it with `{made_by}`' if made_by else ''))
    document = Document(path, {}, made_by)
    try:
        if os.path.getsize(path) > MAX_FILE_BYTES:
            raise document.refuse(f'is larger than {MAX_FILE_BYTES >> 20} MiB')
        with open(path, encoding='utf-8') as stream:
            content = json.load(stream, parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None
    except (ValueError, RecursionError) as error:
        raise document.refuse(f'is not valid JSON ({error})') from None
    if not isinstance(content, dict):
        raise document.refuse('is not a JSON object')
    document.content = content
    version = content.get('schema_version')
    if version != SCHEMA_VERSION:
        raise document.refuse(f'has schema_version {json.dumps(version)}, this program reads {SCHEMA_VERSION}')
    document.get('metadata', dict)
    return document


def _refuse_constant(name: str) -> float:
    raise ValueError(f'{name} is not a number')


def read_kind(kind: str, settings: Settings, domain: Optional[int] = None) -> Document:
    """Read the file of this kind that belongs to these settings, made for their model."""
    document = read(path_of(kind, settings, domain), command_for(kind, settings, domain))
    document.require_model(settings)
    return document
