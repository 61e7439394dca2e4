"""AdminClient; RestClient has the same methods in the versions before it."""

import datetime

import tinker

from tests.compatibility.calls import Call
from tests.compatibility.context import Context


def get_audit_log(_: Context, call: Call) -> None:
    call(tinker.AdminClient(), day=datetime.date(2026, 1, 1))


def get_billing_usage(_: Context, call: Call) -> None:
    call(tinker.AdminClient(), "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


def get_current_checkpoint_storage_usage(_: Context, call: Call) -> None:
    call(tinker.AdminClient())


def get_telemetry(_: Context, call: Call) -> None:
    assert call(tinker.AdminClient()) is not None
