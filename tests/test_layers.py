"""The layout holds: imports go down only, the device needs what docs/real_mode.md lists, and files stay small.

All of it is read from the source with `ast`, imports inside functions included. docs/architecture.md says why.
"""
from __future__ import annotations

import ast
import functools
import glob
import os
import re
from importlib import util
from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

import device_files
import pytest

from config import ROOT

COMMANDS = ('client_control', 'client_worker', 'code1_train_and_record_weights', 'code2_calculate_flops_importance',
            'create_noniid_partition', 'export_split', 'plan_fleet', 'serve_split', 'server_main_throughput',
            'simulate_fleet', 'step1_measure_lut', 'step2_initial_throughput_opt', 'step3_accuracy_opt',
            'step4_final_throughput_opt', 'step5_visualize_results', 'step_3_joint', 'train_base_model')
LEVELS = (  # folders and top-level modules; a file imports what stands above its own row here, and its own folder
    ('config', 'se_block'),
    ('cli', 'domain_transforms'),
    ('pipeline', 'wire', 'network'),
    ('costs', 'domains', 'repvgg', 'gamma_mask_builder', 'network_utils'),
    ('domain_dataset', 'gamma_configurator', 'throughput_optimizer'),
    ('hyper_repvgg', 'throughput_optimizer_limit'),
    ('engines',),
    ('tier',),
    ('lut_manager', 'roofline_measure'),
    ('search', 'remote'),
    ('fleet',),
    ('progressive_pruning', 'split_trainer', 'report', 'training'),
    ('steps', 'service'),
    ('export',),
    COMMANDS,
    ('server_main', 'benchmarks', 'data', 'examples'),  # server_main runs other commands
)
LEVEL = {name: number for number, row in enumerate(LEVELS) for name in row}
TOP_FILES, FUNCTION_IMPORTS, ANY_PARAMETERS, NOQA, FILE_LINES, CLASS_LINES = 35, 20, 15, 5, 400, 300
INHERITED = {'forward', 'backward'}  # PyTorch says what these do


class Import(NamedTuple):
    """One imported name: the module as written, and the file of this repository that it comes from ('' if none)."""
    line: int
    module: str
    file: str
    in_function: bool


@functools.lru_cache(maxsize=None)
def python_files() -> Tuple[str, ...]:
    """All Python files but the tests, relative to the top folder."""
    found: List[str] = []
    for folder, below, names in os.walk(ROOT):
        below[:] = sorted(name for name in below if name not in ('tests', 'results') and name[0] not in '._'
                          and not os.path.exists(os.path.join(folder, name, 'pyvenv.cfg')))
        found += [os.path.relpath(os.path.join(folder, name), ROOT).replace(os.sep, '/')
                  for name in sorted(names) if name.endswith('.py')]
    return tuple(found)


@functools.lru_cache(maxsize=None)
def source_of(file: str) -> str:
    with open(os.path.join(ROOT, file), encoding='utf-8') as stream:
        return stream.read()


@functools.lru_cache(maxsize=None)
def tree_of(file: str) -> ast.Module:
    return ast.parse(source_of(file))


def functions_of(node: ast.AST) -> Iterator[ast.AST]:
    return (child for child in ast.walk(node) if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))


def file_of(module: str) -> str:
    path = module.replace('.', '/')
    return next((name for name in (f'{path}.py', f'{path}/__init__.py') if name in python_files()), '')


@functools.lru_cache(maxsize=None)
def imports_of(file: str) -> Tuple[Import, ...]:
    """Every import of a file. `from folder import module` counts as an import of the module."""
    inside = {id(node) for function in functions_of(tree_of(file)) for node in ast.walk(function)}
    found: List[Import] = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{file}:{node.lineno} imports by a relative path'
            whole = [f'{node.module}.{alias.name}' for alias in node.names]
            modules = [module if file_of(module) else str(node.module) for module in whole]
        else:
            continue
        found += [Import(node.lineno, module, file_of(module), id(node) in inside) for module in modules]
    return tuple(found)


def unit_of(file: str) -> str:
    """The folder of a file, or the name of a top-level module."""
    return file.partition('/')[0] if '/' in file else file[:-len('.py')]


def circle(arrows: Dict[str, Set[str]]) -> List[str]:
    """One circle of a graph, [] when there is none."""
    finished: Set[str] = set()

    def visit(node: str, way: List[str]) -> List[str]:
        if node in way:
            return [*way[way.index(node):], node]
        if node not in finished:
            for other in sorted(arrows.get(node, ())):
                found = visit(other, [*way, node])
                if found:
                    return found
            finished.add(node)
        return []

    return next(filter(None, (visit(node, []) for node in sorted(arrows))), [])


def closure_of(file: str) -> Set[str]:
    """The files that a file imports, directly or not, with itself and the `__init__.py` of their folders."""
    found, waiting = {file}, [file]
    while waiting:
        for other in imports_of(waiting.pop()):
            if other.file and other.file not in found:
                found.add(other.file)
                waiting.append(other.file)
    return found | {f'{unit_of(name)}/__init__.py' for name in found if '/' in name}


# --- who may import whom ----------------------------------------------------------------------------------

def test_every_file_stands_on_a_level_and_nothing_is_listed_that_is_gone():
    units = {unit_of(file) for file in python_files()}
    assert sorted(units - set(LEVEL)) == [] and sorted(set(LEVEL) - units) == []
    assert len(LEVEL) == sum(len(row) for row in LEVELS)


def test_imports_go_down_only():
    wrong = [f'{file}:{found.line} ({unit_of(file)}) imports {found.module}' for file in python_files()
             for found in imports_of(file) if found.file and unit_of(found.file) != unit_of(file)
             and LEVEL[unit_of(found.file)] >= LEVEL[unit_of(file)]]
    assert wrong == []


def test_no_circle_of_imports():
    files = {file: {found.file for found in imports_of(file) if found.file} for file in python_files()}
    units: Dict[str, Set[str]] = {}
    for file, others in files.items():
        units.setdefault(unit_of(file), set()).update(unit_of(other) for other in others)
    assert circle(files) == [] and circle({unit: others - {unit} for unit, others in units.items()}) == []


@pytest.mark.parametrize('arrows, expected', [({'a': {'b'}, 'b': {'c'}, 'c': set()}, []),
                                              ({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}, ['b', 'c', 'b'])])
def test_a_circle_is_found(arrows, expected):
    assert circle(arrows) == expected


def test_few_files_at_the_top():
    assert len([file for file in python_files() if '/' not in file]) <= TOP_FILES


def test_an_init_file_is_one_docstring():
    files = [file for file in python_files() if file.endswith('/__init__.py')]
    folders = {unit_of(file) for file in python_files() if '/' in file} - {'data', 'examples'}
    assert {unit_of(file) for file in files} == folders
    assert [file for file in files if len(tree_of(file).body) != 1 or not ast.get_docstring(tree_of(file))] == []


def test_library_files_do_not_run_scripts():
    """They may tell a user what to type ('python step1_measure_lut.py --mode merge'), and nothing else."""
    first = LEVEL[COMMANDS[0]]
    scripts = {name for row in LEVELS[first:] for name in row} - {'benchmarks', 'data'}  # folders
    wrong: List[str] = []
    for file in python_files():
        if LEVEL[unit_of(file)] >= first:
            continue
        wrong += [f'{file}:{node.lineno} {node.value}' for node in ast.walk(tree_of(file))
                  if isinstance(node, ast.Constant) and isinstance(node.value, str)
                  and re.sub(r'\.py$', '', node.value) in scripts]
        wrong += [f'{file}:{found.line} imports {found.module}' for found in imports_of(file)
                  if found.module in ('runpy', 'subprocess')]
    assert wrong == []


# --- what the device needs --------------------------------------------------------------------------------

def test_the_device_needs_exactly_what_is_listed():
    files: Set[str] = set()
    for entry in device_files.listed():
        files |= {file for file in python_files() if file.startswith(entry)} if entry.endswith('/') else {entry}
    assert sorted(closure_of('client_worker.py')) == sorted(files)


def test_what_the_device_needs_is_python_3_8_and_asks_for_no_other_package():
    allowed = {'torch', 'numpy'}
    for file in closure_of('client_worker.py'):
        ast.parse(source_of(file), feature_version=(3, 8))
        outside = {found.module.partition('.')[0] for found in imports_of(file) if not found.file}
        assert not outside & {'torchvision', 'matplotlib', 'tqdm', 'ray', 'PIL', 'scipy'}, file
        assert all(name in allowed or not installed(name) for name in outside), (file, outside)


def installed(name: str) -> bool:
    """Is a module one that pip installed, not one of the standard library?"""
    origin = getattr(util.find_spec(name), 'origin', None) or ''
    return 'site-packages' in origin


# --- limits -----------------------------------------------------------------------------------------------

def test_few_imports_inside_functions():
    found = sorted({f'{file}:{item.line}' for file in python_files() for item in imports_of(file) if item.in_function})
    assert len(found) <= FUNCTION_IMPORTS, '\n'.join([f'{len(found)}:', *found])


def test_few_parameters_of_type_any():
    found: List[str] = []
    for file in python_files():
        for function in functions_of(tree_of(file)):
            given = function.args
            for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
                if argument is not None and isinstance(argument.annotation, ast.Name) and \
                        argument.annotation.id == 'Any':
                    found.append(f'{file}:{function.lineno} {function.name}({argument.arg})')
    assert len(found) <= ANY_PARAMETERS, '\n'.join([f'{len(found)}:', *found])


def test_few_exceptions_from_the_linter():
    found = [f'{file}:{number}' for file in python_files()
             for number, line in enumerate(source_of(file).splitlines(), start=1) if '# noqa' in line]
    assert len(found) <= NOQA, found


def test_files_and_classes_stay_small():
    tests = [os.path.relpath(path, ROOT) for path in glob.glob(f'{ROOT}/tests/**/*.py', recursive=True)]
    large = [file for file in (*python_files(), *tests) if len(source_of(file).splitlines()) > FILE_LINES]
    large += [f'{file} {node.name}' for file in python_files() for node in ast.walk(tree_of(file))
              if isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno >= CLASS_LINES]
    assert large == []


def test_progress_bars_stay_out_of_log_files():
    """`disable=None`: no bar where stderr is no terminal."""
    wrong = [f'{file}:{node.lineno}' for file in python_files() for node in ast.walk(tree_of(file))
             if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'tqdm'
             and 'disable' not in {keyword.arg for keyword in node.keywords}]
    assert wrong == []


def test_docstrings_make_sense_alone():
    """None begins with a reference to its neighbour."""
    wrong = [f'{file} {getattr(node, "name", "")}' for file in python_files() for node in ast.walk(tree_of(file))
             if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
             and (ast.get_docstring(node) or '').startswith('The same')]
    assert wrong == []


def public(body: List[ast.stmt]) -> List[ast.AST]:
    return [node for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            and not node.name.startswith('_')]


def test_public_functions_and_classes_have_docstrings():
    """A method that replaces one of a class of this repository has that one's docstring."""
    classes = {node.name: node for file in python_files() for node in ast.walk(tree_of(file))
               if isinstance(node, ast.ClassDef)}
    wrong: List[str] = []
    for file in python_files():
        for node in public(tree_of(file).body):
            methods = public(node.body) if isinstance(node, ast.ClassDef) else []
            described = {method.name for base in getattr(node, 'bases', []) if isinstance(base, ast.Name)
                         and base.id in classes for method in public(classes[base.id].body)} | INHERITED
            wrong += [f'{file}:{item.lineno} {item.name}' for item in (node, *methods)
                      if not ast.get_docstring(item) and (item is node or item.name not in described)]
    assert wrong == []
