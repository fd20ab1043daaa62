"""What all command lines share: flags and settings, one-line errors, progress.

`--help` answers at once, without loading PyTorch. A script imports what is slow inside `main`, behind the flags:

    def main(argv):
        args, settings = cli.parse(parser, argv)
        from steps import joint  # loads PyTorch
        ...

    if __name__ == '__main__':
        cli.run(main)

A benchmark, where most functions need PyTorch, answers before its imports:

    PARSER = cli.parser(__doc__)
    if __name__ == '__main__':
        cli.answer_help(PARSER)  # before the imports below, which load PyTorch
    import torch
"""
from __future__ import annotations

import argparse
import ctypes
import errno
import importlib
import math
import os
import re
import signal
import sys
import time
from contextlib import contextmanager
from types import ModuleType
from typing import Callable, Iterator, List, NamedTuple, NoReturn, Optional, Sequence, Tuple, TypeVar

import config
from config import UserError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
TRIM_BYTES = 512 << 20  # free memory above this goes back to the system
MMAP_BYTES = 32 << 20  # blocks above this do not come from the heap; glibc allows no more


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every other mistake of a user."""
        self.exit(EXIT_BAD_INPUT, f'{self.prog}: error: {message}; see --help\n')


def plain_parser(docstring: str) -> argparse.ArgumentParser:
    """An argument parser whose help is the script's docstring, for commands that no setting changes."""
    return _Parser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)


def parser(docstring: str) -> argparse.ArgumentParser:
    """An argument parser whose help is the script's docstring, with the flags that all scripts with settings have."""
    made = plain_parser(docstring)
    made.add_argument('--set', dest='overrides', metavar='NAME=VALUE', nargs='+', action='append', default=[],
                      help='override settings of config.py; may be repeated')
    return made


def add_if_changed(to: argparse.ArgumentParser) -> None:
    """The flag of steps that can tell whether their output is still current."""
    to.add_argument('--if_changed', action='store_true',
                    help='do nothing when the output was made from the same inputs and settings')


LIMIT_FLAGS = ('max_client_ms', 'max_server_ms', 'max_client_memory_mb', 'max_bytes_per_frame', 'max_latency_ms',
               'min_fps', 'max_client_mj', 'lambda_min', 'lambda_max', 'objective')  # each the lower case of a setting


def add_limits(to: argparse.ArgumentParser) -> None:
    """Limits of the optimisers as flags: `--min_fps 30` is `--set MIN_FPS=30`."""
    group = to.add_argument_group('limits (docs/limits.md); settings of the same names in config.py')
    for name in LIMIT_FLAGS:
        group.add_argument(f'--{name}', metavar='T_eff|throughput|latency|energy' if name == 'objective' else 'N')


PICK_FLAGS = ('pick', 'budget_T_eff_ms', 'budget_latency_ms', 'budget_min_fps')  # settings' names, upper case


def add_pick(to: argparse.ArgumentParser) -> None:
    """Which point of the frontier is the answer: `--pick knee` is `--set PICK=knee`."""
    group = to.add_argument_group('which point of the frontier is the answer (docs/frontier.md); also settings')
    for name in PICK_FLAGS:
        group.add_argument(f'--{name}', metavar='|'.join(config.PICKS) if name == 'pick' else 'N')


FLEET_FLAGS = ('fleet_objective', 'link_trace')  # settings' names, upper case


def add_fleet(to: argparse.ArgumentParser) -> None:
    """The flags of plans of fleets: `--link_trace FILE` is `--set LINK_TRACE=FILE`."""
    to.add_argument('--fleet_objective', metavar='max_min|max_total|fewest_servers|max_accuracy',
                    help='a setting, too (docs/fleet_planning.md)')
    add_link_trace(to)


def add_link_trace(to: argparse.ArgumentParser) -> None:
    """The flag of links that change."""
    to.add_argument('--link_trace', metavar='FILE', help='the links of clients that name none; a setting, too')


def port(text: str) -> int:
    """A flag's TCP port; 0: any free one, or none."""
    return _number(text, int, lambda value: 0 <= value < 65536, 'a port, 0 to 65535')


def count(text: str) -> int:
    """A flag's whole number above 0."""
    return _number(text, int, lambda value: value > 0, 'a whole number above 0')


def above_0(text: str) -> float:
    """A flag's number above 0."""
    return _number(text, float, lambda value: 0 < value < math.inf, 'a number above 0')


Number = TypeVar('Number', int, float)


def _number(text: str, kind: Callable[[str], Number], accepts: Callable[[Number], bool], wanted: str) -> Number:
    try:
        value = kind(text)
        if accepts(value):  # not for NaN
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f'{text!r}: must be {wanted}')


def add_listening(to: argparse.ArgumentParser) -> None:
    """The flags of scripts that clients connect to."""
    to.add_argument('--bind', metavar='ADDRESS', help='listen here for clients (default: SERVER_IP)')
    to.add_argument('--port', type=port, help='and on this port (default: PORT_MAIN)')
    to.add_argument('--allow_open', action='store_true',
                    help='listen beyond this machine even though SPLIT_AUTH_TOKEN is not set')
    add_tls(to, 'of this machine: clients connect with TLS', 'clients need a certificate that this one signed')


def add_tls(to: argparse.ArgumentParser, cert_help: str, ca_help: str) -> None:
    """The flags of TLS (docs/real_mode.md says how to make the files)."""
    group = to.add_argument_group('TLS, with files in PEM format (docs/real_mode.md)')
    group.add_argument('--tls_cert', metavar='FILE', help=f'the certificate {cert_help}')
    group.add_argument('--tls_key', metavar='FILE', help='its key')
    group.add_argument('--tls_ca', metavar='FILE', help=ca_help)


class TlsFiles(NamedTuple):
    """What the flags of `add_tls` say: paths."""
    cert: Optional[str] = None
    key: Optional[str] = None
    ca: Optional[str] = None


def tls_files(args: argparse.Namespace) -> TlsFiles:
    """The flags of `add_tls` as they were given."""
    return TlsFiles(args.tls_cert, args.tls_key, args.tls_ca)


def add_server(to: argparse.ArgumentParser) -> None:
    """The flags of scripts that wait for a client (real mode)."""
    add_listening(to)
    to.add_argument('--remeasure', action='store_true', help='measure the client and the link again')


class Listening(NamedTuple):
    """What the flags of `add_listening` say."""
    bind: Optional[str] = None
    port: Optional[int] = None
    allow_open: bool = False
    tls: TlsFiles = TlsFiles()


def listening(args: argparse.Namespace) -> Listening:
    """The flags of `add_listening` as they were given."""
    return Listening(args.bind, args.port, args.allow_open, tls_files(args))


class ServerFlags(NamedTuple):
    """What the flags of `add_server` say."""
    listening: Listening
    remeasure: bool


def server_flags(args: argparse.Namespace) -> ServerFlags:
    """The flags of `add_server` as they were given."""
    return ServerFlags(listening(args), args.remeasure)


def parse(with_parser: argparse.ArgumentParser, argv: Optional[Sequence[str]],
          ) -> Tuple[argparse.Namespace, config.Settings]:
    """Arguments and settings; raises `UserError` for a bad setting, exits 2 for a bad argument."""
    args = with_parser.parse_args(argv)
    flags = [f'{name.upper()}={getattr(args, name)}' for name in LIMIT_FLAGS + PICK_FLAGS + FLEET_FLAGS
             if getattr(args, name, None) is not None]
    return args, config.load((*(item for group in args.overrides for item in group), *flags))


def answer_help(with_parser: argparse.ArgumentParser) -> None:
    """End here when the command line asks for help or is wrong; for scripts whose imports are slow."""
    print_anything()
    with_parser.parse_args()


def run(main: Callable[[Optional[Sequence[str]]], Optional[int]]) -> None:
    """Run a script's `main`: one line and status 2 for a `UserError`, 1 for a full disk or memory, 130 for Ctrl-C, 143
    and 129 for SIGTERM and SIGHUP, which end it as Ctrl-C does: with all that it started."""
    name = command_name()
    keep_freed_memory()
    print_anything()
    for number in (signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)):
        if signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            signal.signal(number, _end)
    try:
        status = main(None) or 0
        sys.stdout.flush()
        sys.exit(status)
    except UserError as error:
        print(f'{name}: error: {one_line(str(error))}', file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt as error:
        print(f'{name}: interrupted; the same command goes on from what is saved', file=sys.stderr)
        sys.exit(128 + error.args[0] if error.args else EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, as in `... | head`
        _print_no_more()
        sys.exit(EXIT_FAILED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _print_no_more()
        print(f'{name}: error: {error.strerror}; the same command goes on from what is saved', file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        print(f'{name}: error: not enough memory; lower BATCH_SIZE or --jobs, or raise the limit (ulimit -v)',
              file=sys.stderr)
        sys.exit(EXIT_FAILED)


def _end(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _print_no_more() -> None:
    """What is still to be written to stdout is dropped: Python would try once more at its end, and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_out_of_memory(error: BaseException) -> bool:
    """Did Python, PyTorch or the system's loader of libraries get no memory?"""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ('allocate memory', 'out of memory', 'failed to map segment'))


def print_anything() -> None:
    """From now on a character that a terminal or a log cannot hold is written as \\u03b1: no report ends the work."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')


def say(message: str) -> None:
    """One line of progress, on stderr; stdout is left to results."""
    print(printable(message), file=sys.stderr, flush=True)


def printable(message: str) -> str:
    """The message with control characters but line ends written as \\x1b: what a file or a peer says steers no
    terminal."""
    return ''.join(sign if sign.isprintable() or sign == '\n' else ascii(sign)[1:-1] for sign in message)


def one_line(message: str) -> str:
    """The message with line ends written as \\n, too: nothing that it quotes makes a line of its own."""
    return printable(message).replace('\n', '\\n')


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say how long a step took when it is done."""
    start = time.perf_counter()
    yield
    say(f'{what}: {time.perf_counter() - start:.1f} s')


def domains(text: Optional[str], settings: config.Settings) -> List[int]:
    """'0,3,7' -> [0, 3, 7]; '0-2,7' -> [0, 1, 2, 7]; None: all of NUM_DOMAINS. Raises `UserError` for anything else."""
    if text is None:
        return list(range(settings.NUM_DOMAINS))
    found = set()
    for part in text.split(','):
        ends = re.fullmatch(r'(-?\d{1,9})(?:-(\d{1,9}))?', part.strip(), re.ASCII)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise UserError(f'domains {text!r}: write them as 0-9 or 0,3,7')
        found.update((int(ends[1]), int(ends[2] or ends[1])))
        found.update(range(int(ends[1]), min(int(ends[2] or ends[1]), settings.NUM_DOMAINS)))
    for domain in sorted(found):
        if not 0 <= domain < settings.NUM_DOMAINS:
            raise UserError(f'domain {domain}: there are domains 0 to {settings.NUM_DOMAINS - 1}')
    return sorted(found)


def optional(module: str, package: str, needed_for: str) -> ModuleType:
    """A module of a package that not every machine has; raises `UserError` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f'{needed_for} need {package} here: pip install {package}') from None


def keep_freed_memory() -> bool:
    """Keep freed memory in the process for the next frame; True where the C library knows how.

    glibc gives large blocks back to the system when a tensor dies and asks for them again for the next one, which the
    system then has to clear page by page. RepVGG-A0 at 224x224, batch 8, one thread: 14,000 page faults and 21 % of the
    time of a forward pass; at batch 1 the head of a network took 10 or 13 ms, from run to run.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc, or not a system with one C library
        return False
    return all([mallopt(M_MMAP_THRESHOLD, MMAP_BYTES), mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)])


def command_name() -> str:
    """What the user typed, as messages name it: 'step_3_joint.py'."""
    return os.path.basename(sys.argv[0])
