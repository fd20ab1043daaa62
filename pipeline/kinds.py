"""The files of the pipeline: where each kind lies, which command makes it, and what it is made from."""
from __future__ import annotations

import os
from typing import Dict, NamedTuple, Optional, Sequence

from config import Settings


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
                   (*_TRAINED, 'link', 'objective', 'accuracy', 'joint'),
                   ('lut', 'alpha', 'importance_rankings', 'partition'), ('WEIGHT_PATH_SERVER',))
_SEQUENTIAL = _SEARCH._replace(path='{results}/sequential/domain_{domain}_sequential.json',
                              made_by='python step3_accuracy_opt.py --domain_id {domain}',
                              groups=(*_SEARCH.groups, 'confidence'))
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
                      ('model', 'weights', 'data', 'link', 'objective', 'accuracy', 'gradient'), ('lut', 'partition'),
                      ('WEIGHT_PATH_SERVER',)),
    'joint': _SEARCH._replace(path='{results}/joint_optimization/domain_{domain}_joint.json',
                              groups=(*_SEARCH.groups, 'pick', 'confidence')),
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
