"""`Arrival`: a model that is waited for."""

from __future__ import annotations

import asyncio

from ikq.serve.errors import ServiceError
from ikq.serve.loaded import LoadedModel

__all__ = ["Arrival", "closing"]


class Arrival:
    """A model that is to be loaded. In the event loop.

    Attributes:
        model: The model when it is there, or why it does not come.
        n_waiting: Requests that wait for it.
        n_texts: Texts that they want.
    """

    def __init__(self) -> None:
        self.model: asyncio.Future[LoadedModel] = asyncio.get_running_loop().create_future()
        # whoever waited may have gone: that nobody hears of an error is none
        self.model.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.n_waiting = 0
        self.n_texts = 0

    def fail(self, error: Exception) -> None:
        """It does not come."""
        if not self.model.done():
            self.model.set_exception(error)

    def check_wanted(self) -> None:
        """Ends what has been begun for it if nobody waits for it any more.

        Raises:
            ServiceError: so it is; nobody hears of it.
        """
        if self.model.done() or not self.n_waiting:
            raise ServiceError("unavailable", "nobody waits for the model any more")


def closing() -> ServiceError:
    """An error of what comes too late."""
    return ServiceError("unavailable", "the server is shutting down")
