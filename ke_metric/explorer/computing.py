"""What is known of each network, computed one after the other in a thread of its own; what is asked for goes first.

Vectors may have to be computed from weights, which takes seconds: the page can be used as soon as those of one
network are there.

Shapes: Q queries, G gallery, D embedding.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, Thread

import numpy as np

from ke_metric.arrays import FloatArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.explorer.collection import ExploredNetwork, PictureCollection
from ke_metric.explorer.layout import PlanarMap, map_of
from ke_metric.report.outcomes import Outcomes


@dataclass(frozen=True, eq=False)
class NetworkView:
    """What is known of one network.

    Attributes:
        query: [Q, D] embeddings, L2-normalised.
        gallery: [G, D]; the same array where the queries are the gallery.
        outcomes: What became of every query; None where nobody scored.
        plane: The map of the gallery, followed by the queries where they are other pictures; not turned yet.
    """

    query: FloatArray
    gallery: FloatArray
    outcomes: Outcomes | None
    plane: PlanarMap


def view_of(collection: PictureCollection, network: ExploredNetwork) -> NetworkView:
    """Compute what is known of a network."""
    query, gallery = collection.vectors(network)
    apart = "query" in collection.parts
    shown = np.concatenate([gallery, query]) if apart else gallery
    return NetworkView(query, gallery, collection.outcomes(network), map_of(shown))


class NetworkQueue:
    """Computes what is known of networks, each once.

    Args:
        networks: In the order in which they are computed where nobody asks.
        compute: What is known of one of them.
    """

    def __init__(
        self, networks: Sequence[ExploredNetwork], compute: Callable[[ExploredNetwork], NetworkView]
    ) -> None:
        self._compute, self._lock = compute, Lock()
        self._waiting = deque(networks)
        self._futures: dict[ExploredNetwork, Future[NetworkView]] = {network: Future() for network in networks}
        self._thread = Thread(target=self._run, name="vectors", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ask(self, network: ExploredNetwork) -> Future[NetworkView]:
        """Return what will be known of a network, and have it computed before all others."""
        with self._lock:
            if network in self._waiting:
                self._waiting.remove(network)
                self._waiting.appendleft(network)
        return self._futures[network]

    def view(self, network: ExploredNetwork) -> NetworkView:
        """Return what is known of a network; wait for it, and have it computed before all others.

        Raises:
            KeMetricError: It cannot be computed, or no more is computed.
        """
        try:
            return self.ask(network).result()
        except CancelledError as error:
            raise KeMetricError("The explorer is stopping", ExitCode.INTERRUPTED) from error
        except KeMetricError as error:
            # One of their own for everybody: an exception that is raised again gathers the calls of all who asked.
            raise KeMetricError(str(error), error.exit_code) from None

    async def until_known(self, network: ExploredNetwork) -> None:
        """Wait until `view` answers at once; no thread waits with it."""
        loop, known = asyncio.get_running_loop(), asyncio.Event()

        def tell(_: Future[NetworkView]) -> None:
            with suppress(RuntimeError):  # the loop has ended, and whoever waited in it
                loop.call_soon_threadsafe(known.set)

        self.ask(network).add_done_callback(tell)
        await known.wait()

    @property
    def is_computing(self) -> bool:
        """Whether the thread is still at work."""
        return self._thread.is_alive()

    def close(self, seconds: float) -> None:
        """Compute nothing more, and wait a while for what is being computed."""
        self.stop()
        if self.is_computing:
            self._thread.join(seconds)

    def stop(self) -> None:
        """Compute nothing more; what is being computed is finished."""
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
        for network in waiting:
            self._futures[network].cancel()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                network = self._waiting.popleft()
            future = self._futures[network]
            try:
                future.set_result(self._compute(network))
            except Exception as error:  # told to whoever asks for this network; the others are not touched by it
                future.set_exception(_told(network, error))


def _told(network: ExploredNetwork, error: Exception) -> KeMetricError:
    """Return what is told of a network that cannot be computed, without anything of this machine."""
    if isinstance(error, KeMetricError):
        return error
    which = f"generation {network.generation} {network.name}"
    if isinstance(error, OSError):
        reason = f"a file cannot be read: {error.strerror}. Was it moved or removed?"
        return KeMetricError(f"{which}: {reason}", ExitCode.LINEAGE)
    traceback.print_exception(error, file=sys.stderr)
    return KeMetricError(f"{which}: cannot be computed; what the explorer prints in its terminal says why")
