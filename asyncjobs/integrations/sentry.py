"""Sentry: captures failed tries and tasks if the app has initialised it. Other apps import and pay nothing."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal

from asyncjobs.active_job import ActiveJob
from asyncjobs.errors import Discard, RetryLater
from asyncjobs.events import Event, EventBus
from asyncjobs.guests.calls import in_thread
from asyncjobs.logs import ThrottledLog, exc_info, said

logger = logging.getLogger("asyncjobs")

NOTHING: Final = nullcontext()


class Sentry:
    """Captures errors from events, each try in a scope of its own.

    Payloads and the values of local variables, which hold them, are left out unless `payload` is set.
    """

    def __init__(self, bus: EventBus, capture: Literal["every", "final"], payload: bool) -> None:
        self._payload = payload
        self._silenced = False
        self._throttled = ThrottledLog(logger)
        bus.on("job.failed", self._on_job)
        if capture == "every":
            bus.on("job.retrying", self._on_job)
        bus.on("task.failed", self._on_task)

    @staticmethod
    def _sdk() -> Any:
        """The SDK if the app has initialised it with a place to send to, else None. The question takes 0.2 µs."""
        sdk = sys.modules.get("sentry_sdk")
        if sdk is None or not hasattr(sdk, "get_client"):
            return None
        client = sdk.get_client()
        return sdk if client.is_active() and client.transport is not None else None

    def silence_logs(self) -> None:
        """Let Sentry ignore the loggers of asyncjobs, else it would report a failure's log line beside the failure."""
        try:
            if not self._silenced and self._sdk() is not None:
                from sentry_sdk.integrations.logging import ignore_logger

                ignore_logger("asyncjobs")
                ignore_logger("asyncjobs.*")
                self._silenced = True
        except BaseException as error:
            self._throttled.error("silence", "Sentry could not be told which loggers to ignore: %s", said(error))

    def scope(self, job: ActiveJob) -> AbstractContextManager[Any]:
        """A scope for one try, so that the settings of parallel handlers never mix."""
        try:
            sdk = self._sdk()
        except BaseException as error:
            self._throttled.error("scope", "a try goes without its scope in Sentry: %s", said(error))
            return NOTHING
        return NOTHING if sdk is None else _Scope(sdk, job, self._throttled)

    def _on_job(self, event: Event) -> None:
        error = event.error
        if not isinstance(error, BaseException) or isinstance(error, (Discard, RetryLater)):
            return
        group = {} if event.group_id is None else {"asyncjobs.group": event.group_id}
        queue = event.name if event.group_id is None else f"{event.name}-{event.group_id}"
        tags = {
            "asyncjobs.job": event.name,
            "asyncjobs.queue": queue,
            **group,
            "asyncjobs.id": event.job_id or "",
            "asyncjobs.attempt": str(event.attempts_made),
        }
        level = "error" if event.type == "job.failed" else "warning"
        self._send(event, error, tags, level)

    def _on_task(self, event: Event) -> None:
        if isinstance(event.error, BaseException):
            at = event.scheduled_at.isoformat() if event.scheduled_at else ""
            self._send(event, event.error, {"asyncjobs.task": event.name, "asyncjobs.scheduled_at": at}, "error")

    def _send(self, event: Event, error: BaseException, tags: dict[str, str], level: str) -> None:
        sdk = self._sdk()
        if sdk is None:
            return
        self.silence_logs()
        from sentry_sdk.utils import event_from_exception

        record, hint = event_from_exception(
            exc_info(error),
            client_options=sdk.get_client().options,
            mechanism={"type": "asyncjobs", "handled": False},
        )
        record["level"] = level  # type: ignore[typeddict-item]
        record["fingerprint"] = [event.name, type(error).__name__]
        record["transaction"] = event.name
        if not self._payload:
            _drop_locals(record)
        with sdk.new_scope() as scope:
            if event.context is not None:
                scope.update_from_scope(event.context)
            for tag, value in tags.items():
                scope.set_tag(tag, value)
            if self._payload and event.data is not None:
                scope.set_extra("payload", event.data)
            scope.capture_event(record, hint=hint)

    async def flush(self, timeout: float) -> None:
        """Give the transport `timeout` seconds to send the events that it holds."""
        try:
            sdk = self._sdk()
        except BaseException as error:
            self._throttled.warning("flush", "Sentry did not send what it holds: %s", said(error))
            return
        if sdk is None or timeout <= 0:
            return
        failed = await in_thread(timeout, lambda: sdk.flush(timeout * 0.9))
        if failed is not None:
            self._throttled.warning("flush", "Sentry did not send what it holds: %s", said(failed))


class _Scope:
    """An isolation scope around one try. Errors of Sentry, inside or at the end, do not touch the try."""

    __slots__ = ("_job", "_scope", "_sdk", "_throttled")

    def __init__(self, sdk: Any, job: ActiveJob, throttled: ThrottledLog) -> None:
        self._sdk, self._job, self._throttled = sdk, job, throttled
        self._scope: Any = None

    def __enter__(self) -> Any:
        try:
            self._scope = self._sdk.isolation_scope()
            scope = self._scope.__enter__()
        except BaseException as error:
            self._scope = None
            self._failed(error)
            return None
        try:
            scope.clear_breadcrumbs()
            scope.set_transaction_name(self._job.name, source="task")
        except BaseException as error:
            self._failed(error)
        return scope

    def __exit__(self, *error: object) -> None:
        if self._scope is not None:
            try:
                self._scope.__exit__(None, None, None)
            except BaseException as raised:
                self._failed(raised)

    def _failed(self, error: BaseException) -> None:
        self._throttled.error("scope", "Sentry's scope of a try raised: %s", said(error))


def _drop_locals(record: Any) -> None:
    for one in record.get("exception", {}).get("values", ()):
        for frame in (one.get("stacktrace") or {}).get("frames", ()):
            frame.pop("vars", None)
