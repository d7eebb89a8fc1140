"""python -m infra.stack.show RUN: the result that a flow run left on its page."""

import sys
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from rich.markdown import Markdown

from flows.summary import terminal
from flows.train import RESULT


def main() -> int:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(sys.argv[1])]),
                key=ArtifactFilterKey(any_=[RESULT]),
            )
        )
    for artifact in found:
        terminal().print(Markdown(str(artifact.data)))
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
