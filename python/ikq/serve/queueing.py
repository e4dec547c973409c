"""`FairQueue`: who waits, and who is next."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Things that wait, taken from each client in turn, so that one that asks for much delays nobody else.

    Requests of a client take turns in the same way: one that wants many things does not hold up the others.

    Examples:
        >>> queue = FairQueue[str]()
        >>> for client, thing in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")]:
        ...     queue.add(client, thing)
        >>> [queue.pop() for _ in range(len(queue))]
        ['a1', 'b1', 'a2', 'a3']
        >>> for request, thing in [(1, "1a"), (1, "1b"), (2, "2a")]:
        ...     queue.add("a", thing, request)
        >>> [queue.pop() for _ in range(len(queue))]
        ['1a', '2a', '1b']
    """

    def __init__(self) -> None:
        # by client and request; whose turn is next comes first
        self._by_client: OrderedDict[str, OrderedDict[Hashable, deque[T]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[T]:
        for requests in self._by_client.values():
            for things in requests.values():
                yield from things

    def add(self, client: str, thing: T, request: Hashable = None) -> None:
        """Puts something behind all else of this client, but for what its other requests want several of.

        Args:
            client: Whose it is.
            thing: What waits.
            request: What tells the request from others of the client; `None`: it wants nothing else.
        """
        requests = self._by_client.setdefault(client, OrderedDict())
        requests.setdefault(object() if request is None else request, deque()).append(thing)

    def peek(self) -> T:
        """What `pop` will give."""
        requests = next(iter(self._by_client.values()))
        return next(iter(requests.values()))[0]

    def pop(self) -> T:
        """Takes the next one. There must be one."""
        client, requests = next(iter(self._by_client.items()))
        request, things = next(iter(requests.items()))
        thing = things.popleft()
        if things:
            requests.move_to_end(request)
        else:
            del requests[request]
        if requests:
            self._by_client.move_to_end(client)
        else:
            del self._by_client[client]
        return thing

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Takes out all that are unwanted."""
        found: list[T] = []
        for client, requests in list(self._by_client.items()):
            for request, things in list(requests.items()):
                gone = [t for t in things if unwanted(t)]
                if len(gone) == len(things):
                    del requests[request]
                elif gone:
                    requests[request] = deque(t for t in things if not unwanted(t))
                found += gone
            if not requests:
                del self._by_client[client]
        return found
