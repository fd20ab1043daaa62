"""The files of the pipeline: where each kind lies, which command makes it, and what it is made from."""
from __future__ import annotations

import os
import shlex
from typing import Dict, List, NamedTuple, Optional, Sequence

import config
from config import Settings


class FileKind(NamedTuple):
    """One kind of file: where it is, what makes it, and what it is made from. Together the rows of KINDS are the
    pipeline's graph of dependencies."""
    path: str  # a format of RESULTS_DIR, `prepared`, MODEL_NAME, PARTITION_FILE, WEIGHT_PATH_SERVER, a domain
    made_by: str
    groups: Sequence[str]  # the groups of settings that shape it
    inputs: Sequence[str] = ()  # kinds that it is made from
    files: Sequence[str] = ()  # settings that name further files it is made from
    applied: Sequence[str] = ()  # of `groups`: a reader applies its own instead of refusing other ones


_TASK1, _TASK2 = '{prepared}task1_trained_weights_{model}/', '{prepared}task2_importance_rankings_{model}/'
_CODE1, _CODE2 = 'python code1_train_and_record_weights.py', 'python code2_calculate_flops_importance.py'
_STEP1 = 'python step1_measure_lut.py --mode '
_STEP3 = 'python step_3_joint.py --domain_id {domain} --mode pseudo'
_TRAINED = ('model', 'weights', 'data', 'alpha')
_TABLE = ('model', 'lut', 'server', 'client', 'link')
_SEARCH = FileKind('{results}/joint_optimization/domain_{domain}_state.json', _STEP3,
                   (*_TRAINED, 'link', 'objective', 'accuracy', 'joint'),
                   ('lut', 'alpha', 'importance_rankings', 'partition'), ('WEIGHT_PATH_SERVER',))
_SEQUENTIAL = _SEARCH._replace(path='{results}/sequential/domain_{domain}_sequential.json',
                              made_by='python step3_accuracy_opt.py --domain_id {domain}',
                              groups=(*_SEARCH.groups, 'confidence'))
KINDS: Dict[str, FileKind] = {
    'partition': FileKind('{partition}', 'python create_noniid_partition.py', ('data',),
                          applied=('data',)),  # its reader knows which of them shape it
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
    'lut': FileKind('{results}/hardware_lut_complete.json', _STEP1 + 'merge', _TABLE, ('lut_server', 'lut_client'),
                    applied=('link',)),
    'step2': FileKind('{results}/initial_throughput_config.json', 'python step2_initial_throughput_opt.py',
                      ('model', 'weights', 'data', 'link', 'objective', 'accuracy', 'gradient'), ('lut', 'partition'),
                      ('WEIGHT_PATH_SERVER',)),
    'joint': _SEARCH._replace(path='{results}/joint_optimization/domain_{domain}_joint.json',
                              groups=(*_SEARCH.groups, 'pick', 'confidence')),
    'joint_state': _SEARCH,
    'sequential_accuracy': _SEQUENTIAL._replace(path='{results}/sequential/domain_{domain}_accuracy.json'),
    'sequential_accuracy_state': _SEQUENTIAL._replace(path='{results}/sequential/domain_{domain}_state.json'),
    'sequential': _SEQUENTIAL._replace(made_by='python step4_final_throughput_opt.py --domain_id {domain}',
                                       inputs=(*_SEARCH.inputs, 'sequential_accuracy')),
    'fleet_plan': FileKind('{results}/fleet_plan.json', 'python plan_fleet.py FLEET_FILE',
                           ('model', 'link', 'objective', 'accuracy', 'fleet'),  # and the files that it names
                           applied=('fleet',)),  # it says itself what it was planned for
    'fleet_simulation': FileKind('{results}/fleet_simulation.json', 'python simulate_fleet.py',
                                 ('fleet',), ('fleet_plan',)),
    'summary': FileKind('{results}/visualization/summary.json', 'python step5_visualize_results.py',
                        (*_SEARCH.groups, 'pick')),
}
SHIPPED = ('partition', 'alpha', 'alpha_training', 'branch_flops', 'importance_scores',
           'importance_rankings')  # kinds of which the repository holds a file, made under the default settings


def in_default_folder(settings: Settings) -> bool:
    """Is RESULTS_DIR the default? Any other one holds everything that a run writes."""
    return os.path.abspath(settings.RESULTS_DIR) == os.path.abspath(Settings.RESULTS_DIR)


def path_of(kind: str, settings: Settings, domain: Optional[int] = None) -> str:
    """Where a kind of file is written under these settings; `fingerprints.found_at` says where it is read."""
    prepared = '' if in_default_folder(settings) else os.path.join(settings.RESULTS_DIR, '')
    return KINDS[kind].path.format(results=settings.RESULTS_DIR, prepared=prepared, domain=domain,
                                   model=settings.MODEL_NAME.replace(':', '_'),  # which no Windows path may hold
                                   partition=_own(settings, 'PARTITION_FILE', 'partition_info.json'),
                                   weights=os.path.splitext(weights_to_write(settings))[0])


def _own(settings: Settings, name: str, own_name: str) -> str:
    """The file that a setting names. The one that ships with the repository is never written under another
    RESULTS_DIR: there it is `own_name` in that folder."""
    value = getattr(settings, name)
    if value != getattr(config.profile_defaults(settings), name) or in_default_folder(settings):
        return value
    return os.path.join(settings.RESULTS_DIR, own_name)


def weights_to_write(settings: Settings) -> str:
    """Where base weights that are trained here go."""
    return _own(settings, 'WEIGHT_PATH_SERVER', 'base_model.pt')


def weights_file(settings: Settings) -> str:
    """The base weights to read: RESULTS_DIR's own where they have been trained, else WEIGHT_PATH_SERVER; '' for random
    ones."""
    own = weights_to_write(settings)
    return own if os.path.exists(own) else settings.WEIGHT_PATH_SERVER


def report_on_weights(settings: Settings) -> str:
    """The report beside the base weights that are read: what they were trained on."""
    return report_beside(weights_file(settings))


def report_beside(weights: str) -> str:
    """The report beside the base weights in this file."""
    return f'{os.path.splitext(weights)[0]}.json'


def groups_of(kind: str) -> List[str]:
    """The groups of settings that shape a kind of file, itself or through what it is made from."""
    spec, found = KINDS[kind], []
    for groups in (spec.groups, *(groups_of(name) for name in spec.inputs)):
        found += [name for name in groups if name not in found]
    return found


def overrides_of(settings: Settings, kind: str) -> List[str]:
    """['NAME=VALUE', ...]: every setting that shapes this kind of file and is not the profile's default; PROFILE first,
    then where files lie."""
    default = config.profile_defaults(settings)
    implied = {'OMEGA'} if settings.OBJECTIVE in config.OMEGA_OF else set()
    names = ['RESULTS_DIR', 'PARTITION_FILE', *(name for name in settings.group(*groups_of(kind))
                                                if name not in implied)]
    values = {**vars(settings), **settings.group(*groups_of(kind))}  # a moved job names its files as they were given
    found = [f'PROFILE={settings.PROFILE}'] if settings.PROFILE != Settings.PROFILE else []
    return found + [f'{name}={config.as_text(values[name])}' for name in names
                    if values[name] != getattr(default, name)]


def command_for(kind: str, settings: Settings, domain: Optional[int] = None) -> str:
    """The command that makes it under these settings."""
    changed = [shlex.quote(item) for item in overrides_of(settings, kind)]
    return ' '.join([KINDS[kind].made_by.format(domain=domain), *(['--set', *changed] if changed else [])])


def plain(value: object) -> object:
    """A setting's value, or a dict of them, as a JSON file holds it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value
