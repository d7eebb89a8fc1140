"""Whose turn it is to change a registered model on a tracking server: one process at a time, over all machines.

A server gives no lock. What it makes unique is the number of a new version. So each model NAME has a second one,
`~kshot-lock.NAME`, whose versions are tickets. Who wants to change NAME draws a ticket, and its turn begins when no
lower one is open. A ticket is open until a tag says that it has ended, for ever; its owner sets that tag when done.

A process that dies leaves its ticket open. Owners renew theirs, so whoever waits behind one ends it when it was not
renewed for `LEASE_S` by the waiter's own clock: the clocks of two machines are never compared. A process that was
stopped for that long finds its ticket ended before it writes.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any, TypeVar
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from kshot.errors import StageError
from kshot.printing import printable

T = TypeVar("T")

LOCK_PREFIX = "~kshot-lock."  # no name of a model of kshot begins so; it lists after the others
LEASE_S = 30.0
PAUSES_S = (1.0, 4.0, None)  # after each attempt at a write whose answer was lost; None: no further one

_RENEW_EVERY_S, _POLL_EVERY_S, _REPORT_EVERY_S = LEASE_S / 6, 0.5, 10.0
_NOWHERE = "kshot-lock://none/none"  # a version has to name files; a ticket has none
_STATE, _OPEN, _ENDED = "state", "open", "ended"
_OWNER, _HOLDER, _RENEWED = "owner", "holder", "renewed"
# A request of MLflow's client that is sent again later might arrive when the turn is over.
_ONE_ATTEMPT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@contextmanager
def turn(name: str, patience_s: float) -> Iterator["TurnClient"]:
    """Wait until it is this process's turn to change the model `name`, for at most `patience_s`, then give a client."""
    place = _Place(client=MlflowClient(), name=name)
    stop = Event()
    Thread(target=place.keep, args=(stop,), name="renews a ticket", daemon=True).start()
    try:
        place.wait(patience_s)
        yield TurnClient(place.check)
    finally:
        stop.set()
        with suppress(MlflowException), _one_attempt():
            place.leave()  # else it is ended by whoever comes next, a lease later


class TurnClient(MlflowClient):
    """A client that makes sure before each write to the registry that it still is this process's turn.

    A write is sent once. One that can be repeated without harm is sent again where its answer was lost, after the turn
    was made sure of again; a new version is not: what became of it is for the caller to look up.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self._check = check

    def create_model_version(self, *arguments: Any, **keywords: Any) -> ModelVersion:
        return self._once(super().create_model_version, *arguments, **keywords)

    def delete_model_version(self, *arguments: Any, **keywords: Any) -> None:
        self._once(super().delete_model_version, *arguments, **keywords)

    def set_model_version_tag(self, *arguments: Any, **keywords: Any) -> None:
        self._surely(super().set_model_version_tag, *arguments, **keywords)

    def set_registered_model_tag(self, *arguments: Any, **keywords: Any) -> None:
        self._surely(super().set_registered_model_tag, *arguments, **keywords)

    def set_registered_model_alias(self, *arguments: Any, **keywords: Any) -> None:
        self._surely(super().set_registered_model_alias, *arguments, **keywords)

    def delete_registered_model_alias(self, *arguments: Any, **keywords: Any) -> None:
        self._surely(super().delete_registered_model_alias, *arguments, **keywords)

    def set_terminated(self, *arguments: Any, **keywords: Any) -> None:
        self._surely(super().set_terminated, *arguments, **keywords)

    def _once(self, write: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        with _one_attempt():
            self._check()
            return write(*arguments, **keywords)

    def _surely(self, write: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        for pause_s in PAUSES_S:
            try:
                self._once(write, *arguments, **keywords)
            except MlflowException as error:
                if pause_s is None or not is_lost(error):
                    raise
                time.sleep(pause_s)
            else:
                return


def is_lock(name: str) -> bool:
    """Whether a registered model is no model, but the tickets of one."""
    return name.startswith(LOCK_PREFIX)


def is_lost(error: MlflowException) -> bool:
    """Whether no answer came, so that nobody knows what became of the request; rather than a refusal."""
    return isinstance(error.__cause__ or error.__context__, OSError)


@dataclass(frozen=True, kw_only=True)
class _Ticket:
    number: int
    owner: str
    holder: str  # machine and process, for people
    renewed: str  # another text after each renewal

    def __str__(self) -> str:
        return printable(self.holder)


@dataclass(kw_only=True)
class _Place:
    """This process's place among those who wait to change the model `name`."""

    client: MlflowClient
    name: str
    owner: str = field(default_factory=lambda: uuid4().hex)
    number: int | None = None  # of its ticket
    n_draws: int = 0
    n_renewals: int = 0

    @property
    def lock(self) -> str:
        return LOCK_PREFIX + self.name

    def wait(self, patience_s: float) -> None:
        """Return when every ticket below this process's own has ended."""
        self._make_lock()
        begun = reported = before = time.monotonic()
        heard = 0.0  # seconds, without those in which this process or the server stood still: then nobody could renew
        last_renewals: dict[int, tuple[str, float]] = {}
        while True:
            tickets = self._open_tickets()
            now = time.monotonic()
            heard += min(now - before, _RENEW_EVERY_S)
            before = now
            if now - begun > patience_s:
                raise StageError(
                    f"{tickets[0] if tickets else 'another process'} changed {self.name} in the registry for "
                    f"{patience_s:.0f} s; need it done; next: wait for that process, then run this again"
                )
            mine = [ticket.number for ticket in tickets if ticket.owner == self.owner]
            if not mine:
                if self.n_draws:
                    time.sleep(_POLL_EVERY_S)
                self._draw()
                continue
            self.number, *superfluous = mine
            for number in superfluous:  # of answers that were lost
                self._end(number)
            ahead = [ticket for ticket in tickets if ticket.number < self.number]
            if not ahead:
                return
            for ticket in ahead:
                renewed, since = last_renewals.setdefault(ticket.number, (ticket.renewed, heard))
                if renewed != ticket.renewed:
                    last_renewals[ticket.number] = (ticket.renewed, heard)
                elif heard - since > LEASE_S:
                    _report(f"not a sign of {ticket} for {LEASE_S:.0f} s: going on without it")
                    self._end(ticket.number)
            if now - reported > _REPORT_EVERY_S:
                reported = now
                _report(f"waiting for {ahead[0]}, which changes {self.name} in the registry")
            time.sleep(_POLL_EVERY_S)

    def check(self) -> None:
        """Raise StageError where this process's turn is over; else it lasts for another lease."""
        self._renew()
        if self.client.get_model_version(self.lock, str(self.number)).tags.get(_STATE) != _OPEN:
            raise StageError(
                f"this process was not heard of for {LEASE_S:.0f} s, and lost its turn to change {self.name} in the "
                "registry; need it to write; next: run this again"
            )

    def keep(self, stop: Event) -> None:
        """Renew the ticket until `stop`."""
        while not stop.wait(_RENEW_EVERY_S):
            with suppress(MlflowException):  # the next renewal may pass; if none does, `check` finds out
                self._renew()

    def leave(self) -> None:
        for ticket in self._open_tickets():
            if ticket.owner == self.owner:
                self._end(ticket.number)

    def _make_lock(self) -> None:
        try:  # who may change a model need not be allowed to make one
            self.client.get_registered_model(self.lock)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            return
        try:
            self.client.create_registered_model(self.lock, description=f"Not a model: who may change {self.name}.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _draw(self) -> None:
        """Draw a ticket; where the answer is lost, the next look at the open ones says whether there is one."""
        self.n_draws += 1
        holder = f"{socket.gethostname()}, process {os.getpid()}"
        tags = {_STATE: _OPEN, _OWNER: self.owner, _HOLDER: holder, _RENEWED: "0"}
        try:
            with _one_attempt():
                self.client.create_model_version(self.lock, _NOWHERE, tags=tags, await_creation_for=0)
        except MlflowException as error:
            if error.error_code == "PERMISSION_DENIED":
                raise StageError(
                    f"the MLflow server lets this user not change {self.lock}, the lock of {self.name}; "
                    "need EDIT on both; next: ask who manages the server"
                ) from error
            if not is_lost(error):
                raise

    def _renew(self) -> None:
        if self.number is not None:
            self.n_renewals += 1
            self.client.set_model_version_tag(self.lock, str(self.number), _RENEWED, str(self.n_renewals))

    def _end(self, number: int) -> None:
        self.client.set_model_version_tag(self.lock, str(number), _STATE, _ENDED)

    def _open_tickets(self) -> list[_Ticket]:
        """In the order of their turns."""
        found = self.client.search_model_versions(
            f"name = '{self.lock}' AND tags.{_STATE} = '{_OPEN}'", order_by=["version_number ASC"], max_results=1000
        )
        tickets = (
            _Ticket(
                number=int(version.version),
                owner=version.tags.get(_OWNER, ""),
                holder=version.tags.get(_HOLDER, "someone"),
                renewed=version.tags.get(_RENEWED, ""),
            )
            for version in found
        )
        return sorted(tickets, key=lambda ticket: ticket.number)


@contextmanager
def _one_attempt() -> Iterator[None]:
    """MLflow's client sends each request once, and waits for its answer for less than a lease."""
    before = {name: os.environ.get(name) for name in _ONE_ATTEMPT}
    os.environ.update(_ONE_ATTEMPT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _report(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
