"""python -m flows.automations: what a Prefect server does by itself around the deployments; twice does no harm.

It makes the queue of the pool that lets one training run at a time; marks a run as crashed whose process gives no sign
of life; and, where KSHOT_WEBHOOK names a URL, posts to it when a run fails or crashes, and when a version is refused,
promoted or waits for a person.
"""

import os
import sys
from contextlib import suppress
from datetime import timedelta

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkQueueUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from pydantic import SecretStr

from flows.prefect_server import check_configured
from flows.promote import PROMOTED, REFUSED, WAITS
from kshot.errors import ConfigError, KshotError
from kshot.printing import one_line

POOL, QUEUE = "kshot", "training"
SIGN_OF_LIFE = "prefect.flow-run.heartbeat"
# Prefect looks at windows of this length that follow one another, so a run that died just after a sign is found after
# two of them, 84 s; the signs come every 30 s, which leaves a busy machine 12 s.
_SILENT = timedelta(seconds=42)
_WEBHOOK, _BLOCK = "KSHOT_WEBHOOK", "kshot"
_PENDING = "prefect.flow-run.Pending"
_PREPARES = timedelta(minutes=15)  # a clone and its data
_ENDS = tuple(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed"))
_TOLD = ("prefect.flow-run.Failed", "prefect.flow-run.Crashed", REFUSED, WAITS, PROMOTED)
_PAYLOAD = (
    '{"text": "{{ event.event }}: {{ event.resource.name }}, '
    '{% if event.payload.words %}{{ event.payload.words }}{% else %}{{ flow_run.state.message }}{% endif %}"}'
)


def main() -> int:
    try:
        check_configured()
        if not os.environ.get("PREFECT_API_URL"):
            raise ConfigError(
                "found no PREFECT_API_URL; need a Prefect server, whose automations these are; next: set it, as "
                "client.env of make stack does"
            )
        make_queue()
        done = [*map(put, automations(os.environ.get(_WEBHOOK, "")))]
    except KshotError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    for line in (f"queue {QUEUE} of pool {POOL}: one run at a time", *done):
        print(line)
    if not os.environ.get(_WEBHOOK):
        print(f"nobody is told of failures; next: {_WEBHOOK}=URL python -m flows.automations")
    return 0


def make_queue() -> None:
    """The pool, where no worker has made it yet, and its queue for trainings."""
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        try:
            queue = client.read_work_queue_by_name(QUEUE, POOL)
        except ObjectNotFound:
            queue = client.create_work_queue(QUEUE, work_pool_name=POOL)
        client.update_work_queue(queue.id, **WorkQueueUpdate(concurrency_limit=1).model_dump(exclude_unset=True))


def automations(webhook: str) -> list[AutomationCore]:
    """Those of the pool; with the URL of a `webhook`, that which tells of failures and decisions."""
    found = [
        _crashed(
            name="kshot: a silent run has crashed",
            after=SIGN_OF_LIFE,
            expect={SIGN_OF_LIFE, *_ENDS},
            within=_SILENT,
            message=f"no sign of life in {_SILENT.seconds} s: its process was killed or its machine is gone",
        ),
        _crashed(
            name="kshot: a run that does not begin has crashed",
            after=_PENDING,
            expect={"prefect.flow-run.Running", *_ENDS},
            within=_PREPARES,
            message=f"not begun in {_PREPARES.seconds // 60} min: its worker is gone, or its data take longer",
        ),
    ]
    if webhook:
        block = Webhook(url=SecretStr(webhook))
        found.append(
            AutomationCore(
                name="kshot: tell of failures and decisions",
                trigger=EventTrigger(
                    expect=set(_TOLD),
                    match={"prefect.resource.id": ["prefect.flow-run.*", "kshot.model.*"]},
                    for_each={"prefect.resource.id"},
                    posture=Posture.Reactive,
                    threshold=1,
                ),
                actions=[CallWebhook(block_document_id=block.save(_BLOCK, overwrite=True), payload=_PAYLOAD)],
            )
        )
    return found


def _crashed(*, name: str, after: str, expect: set[str], within: timedelta, message: str) -> AutomationCore:
    return AutomationCore(
        name=name,
        description="Its process was killed, or its machine is gone. A later run goes on from its checkpoint.",
        trigger=EventTrigger(
            after={after},
            expect=expect,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def put(automation: AutomationCore) -> str:
    """Make it, or change the one of its name to it; what was done in words."""
    with get_client(sync_client=True) as client:
        found = client.read_automations_by_name(automation.name)
        if not found:
            client.create_automation(automation)
            return f"{automation.name}: made"
        client.update_automation(found[0].id, automation)
        return f"{automation.name}: brought up to date"


if __name__ == "__main__":
    sys.exit(main())
