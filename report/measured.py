"""A stream through both devices beside what the table predicts for it, and what is off where they differ.

Three times of a stage (head, link, tail) are compared: predicted from the table, of a frame that was sent alone, and in
the stream. A stage that is slow already when nothing else runs was measured under other conditions; one that is slow
only in the stream has to share its cores.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping

from config import UserError

DIFFERS = 0.2  # relative difference that is explained
COUNTS = 0.1  # of the predicted latency: a stage whose difference is smaller explains nothing
STAGES = ('head', 'link', 'tail')
FIELDS = ('throughput_fps', 'lockstep_latency_ms', 'latency_p50_ms', 'bytes_per_frame',
          *(f'{stage}{what}' for stage in STAGES for what in ('_ms', '_busy')),
          *(f'lockstep_{stage}_ms' for stage in STAGES))
PREDICTED = ('T_client_ms', 'T_server_ms', 'T_com_ms', 'T_lat_ms', 'T_cyc_ms', 'throughput_fps')


@dataclass(frozen=True)
class Stage:
    """One of head, link and tail; ms."""
    name: str
    where: str  # 'client', 'server' or ''
    predicted_ms: float
    alone_ms: float  # in frames that were sent one at a time
    stream_ms: float

    @property
    def words(self) -> str:
        """'the head (client)'."""
        return f'the {self.name}' + (f' ({self.where})' if self.where else '')


def check(measured: Mapping[str, Any], path: str) -> None:
    """Raise `UserError` when a field that is shown is missing or no number; a stream of too few frames has none."""
    if 'throughput_fps' not in measured:
        return
    predicted = measured.get('predicted')
    for name, value in [*((f'measured.{name}', measured.get(name)) for name in FIELDS),
                        *((f'measured.predicted.{name}', predicted.get(name) if isinstance(predicted, dict) else None)
                          for name in PREDICTED)]:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
            raise UserError(f"{path}: field '{name}' is missing or not a number of 0 or more")
    if measured.get('head_tier') not in ('client', 'server'):
        raise UserError(f"{path}: field 'measured.head_tier' is neither client nor server")


def stages(measured: Mapping[str, Any]) -> List[Stage]:
    """Head, link and tail of a stream."""
    head = measured['head_tier']
    tail = 'server' if head == 'client' else 'client'
    named = (('head', head, f'T_{head}_ms'), ('link', '', 'T_com_ms'), ('tail', tail, f'T_{tail}_ms'))
    return [Stage(name, where, measured['predicted'][field], measured[f'lockstep_{name}_ms'], measured[f'{name}_ms'])
            for name, where, field in named]


def comparison(measured: Dict[str, Any]) -> List[str]:
    """A table of predicted and measured, and a line for everything that is off by more than DIFFERS and its likely
    cause."""
    if 'throughput_fps' not in measured:
        return ['the stream had too few frames behind its last interruption to say how fast it is']
    predicted = measured['predicted']
    rows = [('frames a second', predicted['throughput_fps'], None, measured['throughput_fps']),
            ('latency, ms', predicted['T_lat_ms'], measured['lockstep_latency_ms'], measured['latency_p50_ms']),
            *((f'{stage.name} ({stage.where}), ms' if stage.where else f'{stage.name}, ms', stage.predicted_ms,
               stage.alone_ms, stage.stream_ms) for stage in stages(measured))]
    lines = [f"{'':24}{'predicted':>10}{'lone frame':>12}{'in the stream':>15}"]
    for name, before, alone, streamed in rows:
        lines.append(f"{name:24}{before:10.2f}{'' if alone is None else format(alone, '.2f'):>12}{streamed:15.2f}")
    busy = ', '.join(f"{stage} {100 * measured[f'{stage}_busy']:.0f} %" for stage in STAGES)
    lines.append(f"busy: {busy}; {measured['bytes_per_frame'] / 1000:.1f} kB a frame as {measured['wire']}")
    if measured.get('clients', 1) > 1:
        lines.append(one_of(measured))
    return lines + differences(measured)


def one_of(measured: Mapping[str, Any]) -> str:
    """What the figures are where the configuration was chosen for several clients."""
    return (f"measured and predicted: one client with the server to itself; what is said of {measured['clients']} "
            'clients is predicted')


def one_line(measured: Mapping[str, Any]) -> str:
    """Frame rate and latency, for a table of domains."""
    if 'throughput_fps' not in measured:
        return 'too few frames'
    predicted = measured['predicted']
    return (f"{measured['throughput_fps']:.1f} frames/s measured, {predicted['throughput_fps']:.1f} predicted; lone "
            f"frame {measured['lockstep_latency_ms']:.2f} ms measured, {predicted['T_lat_ms']:.2f} predicted")


def differences(measured: Mapping[str, Any]) -> List[str]:
    """What differs by more than DIFFERS, which stage is off, and the likely cause; normally empty."""
    if 'throughput_fps' not in measured:
        return []
    predicted, found = measured['predicted'], []
    rate = measured['throughput_fps'] / predicted['throughput_fps'] - 1
    latency = measured['lockstep_latency_ms'] / predicted['T_lat_ms'] - 1
    if abs(rate) > DIFFERS:
        found.append(f'{100 * abs(rate):.0f} % {"more" if rate > 0 else "fewer"} frames a second than predicted')
    if abs(latency) > DIFFERS:
        found.append(f'a lone frame takes {100 * abs(latency):.0f} % {"more" if latency > 0 else "less"} time than '
                     'predicted')
    return [f'measured and predicted differ: {" and ".join(found)}', *causes(measured)] if found else []


def causes(measured: Mapping[str, Any]) -> List[str]:
    """A line for each stage that is off, or for what is not a stage, and one for each likely cause."""
    least_ms = COUNTS * measured['predicted']['T_lat_ms']
    lines, likely = [], []
    for stage in stages(measured):
        times = (f'{stage.predicted_ms:.2f} ms predicted, {stage.alone_ms:.2f} in a lone frame, '
                 f'{stage.stream_ms:.2f} in the stream')
        if off(stage.alone_ms, stage.predicted_ms, least_ms):
            lines.append(f'  {stage.words} is off: {times}')
            likely.append(cause_alone(stage, measured))
        elif off(stage.stream_ms, stage.alone_ms, least_ms):
            lines.append(f'  {stage.words} is off in the stream: {times}')
            likely.append(cause_in_stream(stage, measured))
    if not lines:
        outside_ms = measured['lockstep_latency_ms'] - sum(stage.alone_ms for stage in stages(measured))
        lines = [f'  no stage is off: {outside_ms:.2f} ms of a lone frame lie between the stages (messages, threads '
                 'that wait for a core)']
        likely = [shared_cores(measured)]
    return lines + [f'  likely cause: {cause}' for cause in dict.fromkeys(likely)]


def off(ms: float, usual_ms: float, least_ms: float) -> bool:
    """Does a time differ from another one by more than DIFFERS, and by what counts?"""
    return abs(ms - usual_ms) > max(DIFFERS * usual_ms, least_ms)


def cause_alone(stage: Stage, measured: Mapping[str, Any]) -> str:
    """Why a stage takes another time than predicted though nothing else of the stream runs."""
    if stage.alone_ms > stage.predicted_ms and measured.get('same_machine'):
        return shared_cores(measured)
    if stage.name == 'link':
        return ('the link: it has changed or carries other traffic; measure it again (--remeasure)'
                if stage.alone_ms > stage.predicted_ms else
                'the link: buffers on the way hide part of the transfer from the receiver, or it has become faster')
    if stage.alone_ms < stage.predicted_ms:
        return f'the {stage.where} was slower when the table was measured; measure it again (--remeasure)'
    return (f'the {stage.where} is slower than when the table was measured (clock, heat, other work); measure it again '
            '(--remeasure)')


def cause_in_stream(stage: Stage, measured: Mapping[str, Any]) -> str:
    """Why a stage takes another time in the stream than in a lone frame."""
    if stage.name == 'link':
        return ('the link: frames wait for each other on it, or the receiver is busy'
                if stage.stream_ms > stage.alone_ms else
                'the link: frames arrive while the receiver is busy, so it sees less of their transfer')
    return shared_cores(measured) if stage.stream_ms > stage.alone_ms else (
        f'the {stage.where} is idle between lone frames and then starts slowly (clock, cache)')


def shared_cores(measured: Mapping[str, Any]) -> str:
    """The words for threads that compete."""
    if measured.get('same_machine'):
        return 'shared cores: client and server run on one machine and compete, which two devices do not'
    return 'shared cores: computing, sending and receiving compete for them, or other programs do'
