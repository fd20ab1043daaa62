"""Claims about warnings: a result that means less than it seems to says so, in its file and beside its numbers."""
from __future__ import annotations

import dataclasses
import json

from made_results import make_result, make_table

import config
from report import pictures
from search import result_assembly, result_file


def test_warnings_stand_in_the_file_in_what_is_printed_and_before_the_summarys_numbers(tmp_path):
    settings = config.load((f'RESULTS_DIR={tmp_path}', 'WEIGHT_PATH_SERVER=', 'PARTITION_FILE=none.json'), {})
    table = make_table(settings)
    result = dataclasses.replace(make_result(table, settings, 0), warnings=('this means nothing',))
    assert result_assembly.summary(result, settings).splitlines()[2] == '  warning: this means nothing'  # a name of two
    path = result_file.save('joint', result, settings, 'made for a test')
    with open(path, encoding='utf-8') as stream:
        written = json.load(stream)['warnings']
    assert len(written) == 2 and 'random weights' in written[0] and written[1] == 'this means nothing'
    loaded = result_file.load(0, table, settings)
    assert loaded.warnings == ('this means nothing',)  # what holds for all domains is said once
    inputs = pictures.Inputs(table, '', None, [loaded], {}, settings)
    lines = pictures.text_of(inputs).splitlines()
    assert 'random weights' in lines[0] and lines[1] == 'warning: domain 0: this means nothing'
    assert pictures.pictures_of(inputs)['domain_comparison'].args[2].endswith('with warnings: see summary.txt')


def test_a_sound_result_has_no_warning(tmp_path):
    settings = config.load((f'RESULTS_DIR={tmp_path}',), {})
    table = make_table(settings)
    result_file.save('joint', make_result(table, settings, 0), settings, 'made for a test')
    inputs = pictures.Inputs(table, '', None, [result_file.load(0, table, settings)], {}, settings)
    assert pictures.warnings_on(inputs) == [] and 'warning' not in pictures.text_of(inputs)
