"""Whose frame is next: start-time fair queueing (Goyal, Vin and Cheng, IEEE/ACM Transactions on Networking 5(5), 1997).

Every client has a virtual time: the work that it got, in milliseconds, divided by its weight. The client that waits and
has the least is next; one that was away starts at the virtual time of the frame that was taken last, so that nobody
saves up time. Between clients that always have frames waiting, work divided by weight never differs by more than one
frame of each. Nothing here knows sockets, threads or clocks.
"""
from __future__ import annotations

from collections import deque
from typing import Any, Callable, Deque, Dict, Hashable, List, NamedTuple, Optional, Sequence


class Waiting(NamedTuple):
    """A frame in the queue."""
    client: Hashable
    key: Hashable  # frames of one key may share a batch
    cost_ms: float  # of a worker
    work: Any  # what the caller wants back


class _Lane:
    """One client's frames, the oldest first."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.virtual_ms = 0.0
        self.frames: Deque[Waiting] = deque()


class FairQueue:
    """Frames that wait for a worker."""

    def __init__(self) -> None:
        self._lanes: Dict[Hashable, _Lane] = {}
        self._now_ms = 0.0  # virtual time of the frame that was taken last

    def __len__(self) -> int:
        return sum(len(lane.frames) for lane in self._lanes.values())

    def add_client(self, client: Hashable, weight: float = 1.0) -> None:
        """From now on frames of this client are taken. Raises `ValueError` for a weight that is not above 0."""
        if not weight > 0:
            raise ValueError(f'weight {weight} must be above 0')
        self._lanes[client] = _Lane(weight)

    def set_weight(self, client: Hashable, weight: float) -> None:
        """Change a client's share."""
        self._lanes[client].weight = weight

    def remove_client(self, client: Hashable) -> List[Waiting]:
        """Forget a client; its frames that nobody took."""
        return list(self._lanes.pop(client).frames)

    def knows(self, client: Hashable) -> bool:
        """Has it been added and not removed?"""
        return client in self._lanes

    def waiting(self, client: Hashable) -> int:
        """Frames of this client in the queue."""
        return len(self._lanes[client].frames)

    def push(self, frame: Waiting) -> None:
        """Add a frame behind its client's others."""
        lane = self._lanes[frame.client]
        if not lane.frames:
            lane.virtual_ms = max(lane.virtual_ms, self._now_ms)
        lane.frames.append(frame)

    def drop_oldest(self, client: Hashable) -> Optional[Waiting]:
        """Take a client's oldest frame out without work; None where none waits."""
        frames = self._lanes[client].frames
        return frames.popleft() if frames else None

    def take(self, most: Callable[[Hashable, int], int]) -> List[Waiting]:
        """The next batch: the frame whose turn it is, and frames of its key that are at the head of their lanes.
        `most(key, available)`: the size of a batch of this key when so many frames of it could be taken. [] when
        nothing waits."""
        lane = self._next(None)
        if lane is None:
            return []
        self._now_ms = lane.virtual_ms
        key = lane.frames[0].key
        limit = max(1, most(key, self._available(key)))
        batch: List[Waiting] = []
        while lane is not None and len(batch) < limit:
            frame = lane.frames.popleft()
            lane.virtual_ms += frame.cost_ms / lane.weight
            batch.append(frame)
            lane = self._next(key)
        return batch

    def give_back(self, batch: Sequence[Waiting]) -> None:
        """Frames that were taken and not worked on, as when a worker died: they are again the first of their lanes.
        Frames of clients that are gone are left out."""
        for frame in reversed(batch):
            lane = self._lanes.get(frame.client)
            if lane is not None:
                lane.frames.appendleft(frame)
                lane.virtual_ms -= frame.cost_ms / lane.weight

    def _next(self, key: Hashable) -> Optional[_Lane]:
        """The lane with the least virtual time, among those whose first frame has this key; None: any key."""
        ready = [lane for lane in self._lanes.values() if lane.frames and (key is None or lane.frames[0].key == key)]
        return min(ready, key=lambda lane: lane.virtual_ms, default=None)

    def _available(self, key: Hashable) -> int:
        """Frames of this key that no frame of another key stands before."""
        count = 0
        for lane in self._lanes.values():
            for frame in lane.frames:
                if frame.key != key:
                    break
                count += 1
        return count
