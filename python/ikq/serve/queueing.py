"""`FairQueue`: who waits, and who is next."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Things that wait, taken from each client in turn, so that one that asks for much delays nobody else.

    Examples:
        >>> queue = FairQueue[str]()
        >>> for client, thing in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")]:
        ...     queue.add(client, thing)
        >>> [queue.pop() for _ in range(len(queue))]
        ['a1', 'b1', 'a2', 'a3']
    """

    def __init__(self) -> None:
        # whose turn is next comes first
        self._by_client: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(things) for things in self._by_client.values())

    def __iter__(self) -> Iterator[T]:
        for things in self._by_client.values():
            yield from things

    def add(self, client: str, thing: T) -> None:
        """Puts something behind all else of this client."""
        self._by_client.setdefault(client, deque()).append(thing)

    def put_back(self, client: str, thing: T) -> None:
        """Puts something before all else."""
        self._by_client.setdefault(client, deque()).appendleft(thing)
        self._by_client.move_to_end(client, last=False)

    def peek(self) -> T:
        """What `pop` will give."""
        return next(iter(self._by_client.values()))[0]

    def pop(self) -> T:
        """Takes the next one. There must be one."""
        client, things = next(iter(self._by_client.items()))
        thing = things.popleft()
        if things:
            self._by_client.move_to_end(client)
        else:
            del self._by_client[client]
        return thing

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Takes out all that are unwanted."""
        found = []
        for client in list(self._by_client):
            things = self._by_client[client]
            found += [t for t in things if unwanted(t)]
            kept = deque(t for t in things if not unwanted(t))
            if kept:
                self._by_client[client] = kept
            else:
                del self._by_client[client]
        return found
