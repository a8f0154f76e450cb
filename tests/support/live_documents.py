"""Documents of docs/api.md for tests: what is not given has a neutral value."""

from typing import Any

import msgspec

from router.operators.live_document import Live, Policy, Router, State


def filled(kind: type[Any], **given: Any) -> Any:
    """An instance with a neutral value for each field that is not given."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        text = str(field.type)
        neutral: Any = 0
        if "None" in text:
            neutral = None
        elif "list" in text:
            neutral = []
        elif "str" in text:
            neutral = ""
        if field.required:
            values[field.name] = neutral
    return kind(**{**values, **given})


def a_router(**given: Any) -> Router:
    """A ready one."""
    return filled(Router, **{"ready": True, "draining": False, **given})  # type: ignore[no-any-return]


def live(
    *,
    workers: Any = (),
    targets: Any = (),
    clusters: Any = (),
    flows: Any = (),
    history: Any = (),
    requests: Any = (),
    certificates: Any = (),
    router: Router | None = None,
    policy: Policy | None = None,
    left_out: int = 0,
) -> Live:
    """All of `/api/v1/live`."""
    return Live(
        state=State(
            router=router or a_router(),
            policy=policy or filled(Policy, digest="d"),
            certificates=list(certificates),
            targets=list(targets),
            clusters=list(clusters),
            workers=list(workers),
            flows=list(flows),
            left_out=left_out,
        ),
        history=list(history),
        requests=list(requests),
    )
