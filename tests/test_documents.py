"""Commands in documents are commands that work: all are parsed, cheap ones are run on a table that is the same
everywhere, and what a document quotes is what they print."""
from __future__ import annotations

import dataclasses
import glob
import importlib
import json
import os
import re
import shlex
from typing import Dict, List, NamedTuple, Set

import numpy as np
import pytest
from random_cases import tier_costs

import cli
import config
import lut_manager
import step1_measure_lut as step1
import step2_initial_throughput_opt as step2
from config import Settings, UserError
from costs import device_profiles
from engines import many_domains
from pipeline import documents

DOCUMENTS = sorted(glob.glob(os.path.join(config.ROOT, '*.md')) + glob.glob(os.path.join(config.ROOT, 'docs', '*.md')) +
                   glob.glob(os.path.join(config.ROOT, 'data', '*.md')))
PROMPT = re.compile(r'^(?:\w*\$ )?')
PIPELINE_FLAGS = ('--with_sequential', '--force')  # of run_pipeline.sh alone


class Command(NamedTuple):
    """A command of a document."""
    document: str
    environment: Dict[str, str]
    words: List[str]

    def __str__(self) -> str:
        return ' '.join([f'{self.document}:', *self.words])


def blocks_of(path: str) -> List[str]:
    """The code blocks of a document, fenced or indented."""
    with open(path, encoding='utf-8') as stream:
        text = stream.read()
    fenced = re.findall(r'^```\w*\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r'^```\w*\n.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)
    return fenced + [re.sub(r'^ {4}', '', block, flags=re.MULTILINE)
                     for block in re.findall(r'(?:^ {4}.*\n)+', rest, re.MULTILINE)]


def commands_of(path: str) -> List[Command]:
    """Every python and run_pipeline.sh command in a document's code blocks."""
    found = []
    for block in blocks_of(path):
        exported: Dict[str, str] = {}
        for line in re.sub(r'\\\n\s*', ' ', block).splitlines():
            for part in PROMPT.sub('', line).split('&&'):
                try:
                    words = shlex.split(part, comments=True)
                except ValueError:  # a quotation, no command
                    continue
                if words[:1] == ['export']:
                    exported.update(word.split('=', 1) for word in words[1:])
                environment = dict(exported)
                while words and re.match(r'^[A-Z][A-Z_]*=', words[0]):
                    environment.update([words.pop(0).split('=', 1)])
                if words[:1] == ['python'] or words[:2] == ['bash', 'run_pipeline.sh']:
                    found.append(Command(os.path.basename(path), environment, words))
    return found


COMMANDS = [command for path in DOCUMENTS for command in commands_of(path)]


class Parsed(Exception):
    """A command line was accepted."""


def check(words: List[str], monkeypatch) -> None:
    """Raise what a wrong command line raises; run nothing."""
    parse = cli.parse

    def only_parse(*arguments):
        parse(*arguments)
        raise Parsed

    monkeypatch.setattr(cli, 'parse', only_parse)
    with pytest.raises(Parsed):
        if words[0] == 'bash':
            many_domains.print_domains([word for word in words[2:] if word not in PIPELINE_FLAGS])
        elif words[1] == '-m':
            module = importlib.import_module(words[2])
            if not hasattr(module, 'PARSER'):  # it loads nothing slow, and parses in its main
                module.main(words[3:])
            module.PARSER.parse_args(words[3:])
            raise Parsed
        else:
            importlib.import_module(words[1][:-len('.py')]).main(words[2:])


@pytest.mark.parametrize('command', COMMANDS, ids=str)
def test_a_command_in_a_document_has_flags_and_settings_that_exist(command, monkeypatch):
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    check(command.words, monkeypatch)


def test_the_commands_are_found_and_a_wrong_one_is_noticed(monkeypatch):
    assert len(COMMANDS) > 25 and {command.document for command in COMMANDS} >= {
        'README.md', 'CONTRIBUTING.md', 'limits.md', 'frontier.md', 'device_profiles.md', 'real_mode.md', 'results.md'}
    with pytest.raises(UserError):
        check(['bash', 'run_pipeline.sh', '--set', 'BANDWIDTH=3'], monkeypatch)
    with pytest.raises(SystemExit):
        check(['python', 'step_3_joint.py', '--domain', '3', '--mod', 'x'], monkeypatch)


# --- links ---------------------------------------------------------------------------------------------------------

def links_of(text: str) -> List[str]:
    """What a document links to in this repository: 'path#heading'."""
    found = re.findall(r'\]\(([^)\s]+)\)', re.sub(r'\]\s+\(', '](', text))
    return [link for link in found if not re.match(r'\w+:', link)]


def anchors_of(text: str) -> Set[str]:
    """The names of a document's headings in links."""
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
            for heading in re.findall(r'^#+ (.*)$', text, re.MULTILINE)}


def read(path: str) -> str:
    with open(path, encoding='utf-8') as stream:
        return stream.read()


@pytest.mark.parametrize('path', DOCUMENTS, ids=os.path.basename)
def test_links_lead_to_files_and_headings_that_exist(path):
    wrong = []
    for link in links_of(read(path)):
        file, _, heading = link.partition('#')
        target = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
        if not os.path.exists(target) or heading and heading not in anchors_of(read(target)):
            wrong.append(link)
    assert wrong == []


def test_every_document_is_in_the_list_of_documents():
    listed = links_of(read(os.path.join(config.ROOT, 'docs', 'README.md')))
    assert {os.path.basename(path) for path in DOCUMENTS if os.path.dirname(path).endswith('docs')} - {'README.md'} <= \
        set(listed)


# --- what documents quote ------------------------------------------------------------------------------------------

def quoted(document: str, command: str) -> List[str]:
    """What a document says that a command prints: the lines behind `$ command`, without those left out by '...'."""
    with open(os.path.join(config.ROOT, 'docs', document), encoding='utf-8') as stream:
        text = stream.read()
    found = re.search(rf'^\$ {re.escape(command)}\n(.*?)^(?:```|\$|\n)', text, re.DOTALL | re.MULTILINE)
    assert found is not None, f'{document} quotes no {command}'
    return [line for line in found[1].splitlines() if line != '...']


@pytest.fixture
def example(tmp_path, monkeypatch) -> Settings:
    """Settings with a table in RESULTS_DIR that is the same on every machine: that of the example in docs/limits.md."""
    from steps import unpruned
    monkeypatch.setattr(unpruned, 'image_formats_of', lambda table, settings: {})
    settings = config.load((f'RESULTS_DIR={tmp_path}', 'THROUGHPUT_OPTIM_STEPS=3'), {})
    tiers = {}
    for tier, stem_ms, block_ms, classifier_ms in (('server', 0.05, 0.1005, 0.0602), ('client', 0.2230, 0.4150, 0.1)):
        costs = tier_costs(tier, settings, 0, {'name': tier, 'simulated': tier == 'client'})
        fused = np.isin(np.arange(14), (0, 1, 2, 4, 6, 8, 13))
        times = np.where(np.isnan(costs.block_ms), np.nan, np.where(fused, block_ms, 1.5 * block_ms))
        tiers[tier] = dataclasses.replace(costs, block_ms=times, stem_ms=stem_ms, classifier_ms=classifier_ms)
    lut_manager.save(lut_manager.merge(tiers['server'], tiers['client'], settings), settings)
    return settings


def run_step2(settings: Settings, command: str) -> None:
    """A documented command of step 2 on the example's table."""
    step2.main([*shlex.split(command)[2:], '--set', f'RESULTS_DIR={settings.RESULTS_DIR}', 'THROUGHPUT_OPTIM_STEPS=3'])


def test_the_example_of_limits_prints_what_the_document_quotes(example, capsys):
    command = 'python step2_initial_throughput_opt.py --max_client_ms 1.5 --max_client_memory_mb 0.3 --set CLIENTS=1'
    lines = quoted('limits.md', command)
    run_step2(example, command)
    printed = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and [line for line in lines if line not in printed] == []


def test_the_refusal_of_limits_is_what_the_document_quotes(example):
    command = 'python step2_initial_throughput_opt.py --min_fps 600 --max_client_memory_mb 0.2 --set CLIENTS=1'
    with pytest.raises(UserError) as caught:
        run_step2(example, command)
    assert [f'step2_initial_throughput_opt.py: error: {caught.value}'] == quoted('limits.md', command)


@pytest.mark.parametrize('objective, omega', [('T_eff', 0.5), ('throughput', 0), ('latency', 1)])
def test_an_objective_is_the_omega_that_the_document_says(example, objective, omega):
    run_step2(example, f'python step2_initial_throughput_opt.py --objective {objective}')
    path = os.path.join(example.RESULTS_DIR, 'initial_throughput_config.json')
    assert documents.read(path, '').get('omega', float) == omega
    with open(os.path.join(config.ROOT, 'docs', 'limits.md'), encoding='utf-8') as stream:
        row = re.search(r'^\| `--objective`.*$', stream.read(), re.MULTILINE)[0]
    assert '`throughput` (`OMEGA` = 0)' in row and '`latency` (`OMEGA` = 1)' in row


def test_the_profiles_of_the_document_are_profiles_and_a_board_needs_no_measurement(tmp_path, capsys):
    found = [json.loads(block) for block in blocks_of(os.path.join(config.ROOT, 'docs', 'device_profiles.md'))
             if block.startswith('{')]
    assert [profile['name'] for profile in found] == ['my phone', 'my board']
    for profile in found:
        path = str(tmp_path / f"{profile['name'].replace(' ', '_')}.json")
        with open(path, 'w', encoding='utf-8') as stream:
            json.dump(profile, stream)
        assert device_profiles.load_profile(path).name == profile['name']
    step1.main(['--mode', 'client', '--device_profile', path, '--set', f'RESULTS_DIR={tmp_path}'])
    assert 'client (my board, simulated by my board): whole network fused' in capsys.readouterr().out
