"""Real mode in one process on the server: wait for a client, measure, and run every step for the chosen domains.

    python server_main.py                              # all domains; then start client_worker.py on the device
    python server_main.py --domains 0,3 --set WIRE_FORMATS=float32,uint8
    SPLIT_AUTH_TOKEN=... python server_main.py --bind 0.0.0.0

A killed run goes on from what is saved: the same command does only what is missing. The client may come and go.
"""
from __future__ import annotations

import traceback
from typing import Callable, List, Optional, Sequence

import cli
import code1_train_and_record_weights
import code2_calculate_flops_importance
import config
import create_noniid_partition
import step2_initial_throughput_opt
import step5_visualize_results
from config import Settings, UserError
from costs.checks import check_settings
from pipeline import fingerprints, kinds
from wire.certificates import listening_context


def prepare(overrides: List[str], domains: Optional[str]) -> None:
    """What needs no client: partition, α of every domain, importance; each only if something changed."""
    chosen = ['--domains', domains] if domains else []
    create_noniid_partition.main(['--if_changed', *overrides])
    code1_train_and_record_weights.main(['--if_changed', *chosen, *overrides])
    code2_calculate_flops_importance.main(['--if_changed', *overrides])


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_server(parser)
    parser.add_argument('--domains', metavar='0,3,7', help='only these (default: all)')
    args, settings = cli.parse(parser, argv)
    check_settings(settings)
    settings = config.with_real_client(settings)
    domains = cli.domains(args.domains, settings)
    lut_file = kinds.path_of('lut', settings)
    flags = cli.server_flags(args)
    listening_context(flags.listening.tls)  # mistakes are told before the first step
    overrides = ['--set', *(item for group in args.overrides for item in group), *(
        f'{name}={config.as_text(getattr(settings, name))}' for name in config.REAL_CLIENT)]
    prepare(overrides, args.domains)
    from steps import joint, real_mode  # load PyTorch, which --help does not need
    with real_mode.measured_client(domains[0], settings, flags) as session:
        step2_initial_throughput_opt.main(['--lut_file', lut_file, '--if_changed', '--pruning_follows', *overrides])
        failed = [domain for domain in domains if not done(
            domain, settings, lambda domain: joint.joint_through_client(domain, session, settings, search_again=False))]
    if len(failed) < len(domains):
        step5_visualize_results.main(['--if_changed', *overrides])
    if failed:
        raise UserError(f"domain {', '.join(map(str, failed))} failed, {len(domains) - len(failed)} of {len(domains)} "
                        'done; the same command goes on with what is missing')


def done(domain: int, settings: Settings, work: Callable[[int], None]) -> bool:
    """Make a domain's result unless it is up to date; False, after saying why, when that failed: others go on."""
    path = kinds.path_of('joint', settings, domain)
    if fingerprints.is_current([path], fingerprints.inputs_of('joint', settings, domain, fingerprints.REAL)):
        cli.say(f'{path} is up to date')
        return True
    try:
        work(domain)
    except UserError as error:
        cli.say(f'domain {domain}: error: {error}')
        return False
    except Exception:  # an error of ours: it keeps its traceback, and the other domains go on
        traceback.print_exc()
        return False
    return True


if __name__ == '__main__':
    cli.run(main)
