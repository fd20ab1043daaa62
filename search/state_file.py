"""The file that a killed search goes on from."""
from __future__ import annotations

import base64
import os
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from config import Settings, UserError
from costs.cost_model import HardwareTable
from network.alpha import PruningMask, branches_of
from pipeline import documents, fingerprints, kinds, writing
from search.result_file import curve_from_json
from search.state import EvaluatedNetwork, Measurement, Phase, SearchState, Work


def save(kind: str, state: SearchState, domain: int, table: HardwareTable, settings: Settings, inputs: str,
         wall_s: float) -> None:
    """Write a search between two rounds."""
    writing.write(kinds.path_of(kind, settings, domain), {
        'best': network_to_json(state.best), 'curve': [vars(point) for point in state.curve],
        'phase': state.phase.value, 'rounds': state.rounds,
        'measured': {mask_to_text(mask): {'alpha': rows_to_json(found.alpha), 'margins': margins_to_text(found.margins)}
                     for mask, found in state.measured.items()},
        'recovered': {mask_to_text(mask): network_to_json(network) for mask, network in state.recovered.items()},
        'narrow': [network_to_json(network) for network in state.narrow],
        'rejected': [[block, list(kept)] for block, kept in sorted(state.rejected)],
        **vars(state.work), 'wall_s': wall_s}, writing.make_metadata(settings, kind, inputs, domain))


def load(kind: str, domain: int, table: HardwareTable, settings: Settings, inputs: str,
         ) -> Optional[Tuple[SearchState, float]]:
    """A search that was interrupted, and the seconds it had taken; None when there is none of these inputs. Raises
    `UserError` for a damaged file."""
    path = kinds.path_of(kind, settings, domain)
    if not fingerprints.is_current([path], inputs):
        return None
    document = documents.read(path, '')
    try:
        state = SearchState(
            network_from_json(document.get('best'), table), curve_from_json(document),
            Phase(document.get('phase', str)), document.get('rounds', int),
            {mask_from_text(text): Measurement(rows_from_json(found['alpha'], table),
                                               margins_from_text(found['margins']))
             for text, found in document.get('measured').items()},
            {mask_from_text(text): network_from_json(network, table)
             for text, network in document.get('recovered').items()},
            [network_from_json(network, table) for network in document.get('narrow', list)],
            {(int(block), tuple(bool(b) for b in kept)) for block, kept in document.get('rejected', list)},
            Work(document.get('block_evaluations', int), document.get('trained_block_images', int)))
        if len({len(found.margins) for found in state.measured.values()}) > 1:
            raise ValueError('margins of different images')
    except (TypeError, ValueError, KeyError, OverflowError):
        raise UserError(f'{path}: is damaged; delete it to start the search again') from None
    return state, document.number('wall_s', 0)


def drop(kind: str, domain: int, settings: Settings) -> None:
    """Remove the state of a search whose result is safely written."""
    path = kinds.path_of(kind, settings, domain)
    if os.path.exists(path):
        os.unlink(path)


def network_to_json(network: EvaluatedNetwork) -> Dict[str, Any]:
    """A network as the file holds it."""
    return {**vars(network), 'alpha': rows_to_json(network.alpha)}


def network_from_json(content: Dict[str, Any], table: HardwareTable) -> EvaluatedNetwork:
    """The inverse; `ValueError`, `TypeError`, `KeyError` or `OverflowError` where it is damaged."""
    formats = content['formats']
    return EvaluatedNetwork(rows_from_json(content['alpha'], table), float(content['accuracy']),
                            float(content['lossless_accuracy']),
                            None if formats is None else tuple(str(name) for name in formats),
                            bool(content['recovered']), bool(content['recalibrated']))


def rows_to_json(alpha: np.ndarray) -> List[List[Optional[float]]]:
    """α as rows, None where there is no branch."""
    return [writing.numbers_or_none(row) for row in alpha]


def rows_from_json(rows: List[List[Optional[float]]], table: HardwareTable) -> np.ndarray:
    """The inverse; `ValueError` where it is damaged."""
    alpha = np.array(rows, dtype=float)
    if alpha.shape != (table.n_blocks, 3) or (np.isnan(alpha) == branches_of(table.n_branches)).any():
        raise ValueError('damaged α')
    return alpha


def margins_to_text(margins: np.ndarray) -> str:
    """Base64 of little-endian half-precision numbers: hundreds a network, written after every round."""
    return base64.b64encode(margins.astype('<f2').tobytes()).decode('ascii')


def margins_from_text(text: str) -> np.ndarray:
    """The inverse; `ValueError` where it is damaged."""
    margins = np.frombuffer(base64.b64decode(text, validate=True), '<f2').astype(np.float16)
    if not np.isfinite(margins).all():
        raise ValueError('damaged margins')
    return margins


def mask_to_text(mask: PruningMask) -> str:
    """'111 011 ...': which branches every block keeps."""
    return ' '.join(''.join('01'[kept] for kept in branches) for branches in mask)


def mask_from_text(text: str) -> PruningMask:
    """The inverse."""
    return tuple(tuple(digit == '1' for digit in branches) for branches in text.split(' '))
