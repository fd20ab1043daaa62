"""Frames on their way through the workers: shared memory, the fair queue, batches, and answers.

A thread for each worker takes the next batch, has it run, and gives every client its answers. All threads meet in one
queue under one lock, which is held for microseconds: never while anything is computed, received or sent.
"""
from __future__ import annotations

import math
import threading
import time
from typing import Any, Callable, Dict, List, Mapping, Sequence

from config import Settings, UserError
from service.arena import Arena, Slots
from service.batches import BatchTimes
from service.client import MAX_UNANSWERED, Frame, ServedClient
from service.entries import Choice, ServedNetwork
from service.fair_queue import FairQueue, Waiting
from service.tails import Answer, Prediction, TailKey
from service.workers import Request, StartWorkers, TailWorker, WorkerDied
from wire.frames import Message, ProtocolError

MAX_ATTEMPTS = 3  # workers that may die of one frame
LONGEST_S = 1e6  # that a client may say a frame took


class Dispatcher:
    """The frames of all clients, and the workers that run their tails."""

    def __init__(self, settings: Settings, networks: Mapping[str, ServedNetwork], slot_bytes: int, max_clients: int,
                 workers: int, say: Callable[[str], None], start_workers: StartWorkers) -> None:
        """Workers are started; `start` waits for them."""
        self.slot_bytes, self._bound_ms, self._say = slot_bytes, settings.BATCH_LATENCY_MS, say
        self._arena = Arena(slot_bytes, max_clients * MAX_UNANSWERED)
        self._slots = Slots(self._arena.n_slots)
        self._queue = FairQueue()
        self._batches: Dict[TailKey, BatchTimes] = {}
        self._changed = threading.Condition()  # guards these three
        self._closed = False
        self.workers = start_workers(settings, networks, self._arena, workers)
        self._threads = [threading.Thread(target=self._run_worker, args=(worker,), daemon=True, name=f'worker {number}')
                         for number, worker in enumerate(self.workers)]

    def start(self) -> None:
        """Return when all workers are ready. Raises `UserError` when one could not start."""
        try:
            for worker in self.workers:
                worker.wait_until_ready()
        except WorkerDied as error:
            raise UserError(f'{error} before it was ready; its own message says why') from None
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the workers; what waits is not answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for worker in self.workers:
            worker.end()
        for worker in self.workers:
            worker.join()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def snapshot(self, now_s: float) -> Dict[str, Any]:
        """How busy it is, for reports."""
        busy = [worker.busy.share(now_s) for worker in self.workers]
        with self._changed:
            waiting, under_way = len(self._queue), self._arena.n_slots - len(self._slots)
        return {'workers': len(self.workers), 'busy': round(sum(busy) / len(busy), 4), 'waiting': waiting,
                'under_way': under_way, 'restarts': sum(worker.restarts for worker in self.workers)}

    def prepare(self, names: Sequence[str]) -> None:
        """Have every worker fold these networks, between two batches, so that no frame waits for it."""
        for worker in self.workers:
            for name in names:
                if self._closed:
                    return
                try:
                    worker.ask(Request(TailKey(name, 0, ''), []))
                except WorkerDied as error:  # its own thread replaces it
                    self._say(str(error))

    # --- clients ---

    def add_client(self, client: ServedClient) -> None:
        """From now on its frames are taken."""
        with self._changed:
            self._queue.add_client(client)

    def set_shares(self, shares: Mapping[ServedClient, float]) -> None:
        """Clients that always have frames waiting are served in this proportion."""
        with self._changed:
            for client, share in shares.items():
                self._queue.set_weight(client, share)

    def remove_client(self, client: ServedClient) -> None:
        """Forget its frames; a batch that a worker has of it is answered into the void."""
        with self._changed:
            for waiting in self._queue.remove_client(client):
                self._slots.give_back(waiting.work.slot)

    def submit(self, client: ServedClient, message: Message, number: int) -> None:
        """Queue a frame, whose head was computed under configuration `number`. Raises `ProtocolError`."""
        configuration, now_s = client.configurations[number], time.monotonic()
        choice = configuration.choice
        key = TailKey(configuration.network.name, choice.split, choice.wire)
        head_s, latency_s = (message.number(name, 0, LONGEST_S) for name in ('head_s', 'latency_s'))
        with self._changed:
            slot = self._slots.take()
        if slot is None:
            raise AssertionError('more frames than MAX_UNANSWERED of each client')
        try:
            layout = self._arena.write(slot, message.tensors)
        except ValueError as error:
            with self._changed:
                self._slots.give_back(slot)
            raise ProtocolError(f'FRAME: {error}') from None
        frame = Frame(client, message.integer('i', 0, 2 ** 62), number, key, slot, layout, message.receive_s, now_s,
                      head_s=head_s, earlier_latency_s=latency_s)
        for dropped in self._queued(frame, choice):
            client.answer(dropped, {'dropped': True})

    def _queued(self, frame: Frame, choice: Choice) -> List[Frame]:
        """Add a frame to the queue; the frames that are dropped for it."""
        dropped: List[Frame] = []
        with self._changed:
            times = self._batches.setdefault(frame.key, BatchTimes(choice.T_server_ms))
            if not self._queue.waiting(frame.client):
                frame.first_s = frame.arrived_s
            self._queue.push(Waiting(frame.client, frame.key, times.frame_ms, frame))
            for _ in range(frame.client.too_many(self._queue.waiting(frame.client))):
                dropped.append(self._queue.drop_oldest(frame.client).work)
                self._slots.give_back(dropped[-1].slot)
            self._changed.notify()
        return dropped

    # --- workers ---

    def _run_worker(self, worker: TailWorker) -> None:
        """Hand one batch after the other to a worker."""
        while True:
            batch = self._next_batch()
            if not batch:
                return
            frames = [waiting.work for waiting in batch]
            worker.busy.begin(time.monotonic())
            try:
                answer = worker.ask(Request(frames[0].key, [(frame.slot, frame.layout) for frame in frames]))
            except WorkerDied as error:
                if self._closed:
                    return
                self._say(f'{error}; its {len(frames)} frame(s) are asked again')
                self._ask_again(batch)
                worker.replace(self._say)
            else:
                self._deliver(frames, answer)
            worker.busy.end(time.monotonic())

    def _next_batch(self) -> List[Waiting]:
        """The next frames, as soon as there are any; [] when this is closed."""
        with self._changed:
            while not self._closed:
                batch = self._queue.take(self._best_size)
                if batch:
                    now_s = time.monotonic()
                    for waiting in batch:
                        frame = waiting.work
                        frame.first_s = max(frame.first_s, frame.arrived_s, frame.client.last_taken_s)
                        frame.client.last_taken_s = frame.taken_s = now_s
                    return batch
                self._changed.wait()
        return []

    def _best_size(self, key: TailKey, available: int) -> int:
        return self._batches[key].best_size(available, self._bound_ms)

    def _deliver(self, frames: Sequence[Frame], answer: Answer) -> None:
        with self._changed:
            self._batches[frames[0].key].add(len(frames), answer.ms)
            for frame in frames:
                self._slots.give_back(frame.slot)
        for frame, found in zip(frames, answer.frames):
            if isinstance(found, Prediction):
                probability = found.probability if math.isfinite(found.probability) else None
                fields = {'prediction': [found.label], 'probability': probability}
                frame.client.answer(frame, fields, answer.ms, len(frames))
            else:
                frame.client.connection.fail('protocol', f'frame {frame.i}: {found}')

    def _ask_again(self, batch: Sequence[Waiting]) -> None:
        """Frames of a worker that died go back to where they were; a frame that several died of ends its client."""
        for waiting in batch:
            waiting.work.attempts += 1
        again = [waiting for waiting in batch if waiting.work.attempts < MAX_ATTEMPTS]
        with self._changed:
            left_out = [waiting for waiting in batch if waiting not in again or not self._queue.knows(waiting.client)]
            for waiting in left_out:
                self._slots.give_back(waiting.work.slot)
            self._queue.give_back(again)
            self._changed.notify_all()
        for waiting in batch:
            if waiting not in again:
                waiting.client.connection.fail('failed', f'{MAX_ATTEMPTS} workers ended while they had frame '
                                                         f'{waiting.work.i}')
