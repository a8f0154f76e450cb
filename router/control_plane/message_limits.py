"""Limits of one registration message: its figures cost time for every request of its models, and its names stay in metrics.

They are far above what workers send. A message that exceeds a limit ends its registration with INVALID_ARGUMENT, whose text
names the limit. See docs/limits.md.
"""

import heapq
from collections.abc import Mapping
from typing import Final

from tunnel_protocol.control.stargate_pb2 import InferenceServerRegistration, ModelStats
from tunnel_protocol.limit import Limit

MODELS: Final = Limit("registration.models", pieces=16_384)
"""Number of models of one inference server."""

MODEL_NAME: Final = Limit("registration.model_name", bytes=1_024)
"""Bytes of a model's name in UTF-8."""

IDENTIFIER: Final = Limit("registration.identifier", bytes=1_024)
"""Bytes of `inference_server_id` and of `cluster_id`."""

URL: Final = Limit("registration.url", bytes=2_048)
"""Bytes of `inference_server_url`."""

PRIORITIES: Final = Limit("registration.priorities", pieces=4_096)
"""Queue time estimates kept of one model: those of the most urgent priorities. Further ones are dropped, not refused."""

STATS_WORDS: Final = Limit("registration.stats_words", bytes=256, pieces=256)
"""Number of labels in `stats_capabilities` and in `stats_sources` of one model, and bytes of one label."""

KEPT_REPORT: Final = Limit("registration.kept_report", bytes=65_536)
"""Encoded size up to which the last report of a stream is kept, to find that the next one is the same."""


class MessageLimitError(Exception):
    """A message exceeds `limit`; the text has the value found."""

    def __init__(self, limit: Limit, found: int, what: str) -> None:
        most = limit.pieces if limit.pieces is not None and found > limit.pieces else limit.bytes or limit.pieces
        super().__init__(f"{what}: {found} where at most {most} are allowed ({limit.name})")
        self.limit = limit


def check_limits(message: InferenceServerRegistration) -> None:
    """Raise `MessageLimitError` for the first limit that `message` exceeds."""
    _check_bytes(IDENTIFIER, message.inference_server_id, "bytes of inference_server_id")
    _check_bytes(IDENTIFIER, message.cluster_id, "bytes of cluster_id")
    _check_bytes(URL, message.inference_server_url, "bytes of inference_server_url")
    _check_pieces(MODELS, len(message.models), "models")
    for name, entry in message.models.items():
        _check_bytes(MODEL_NAME, name, "bytes of a model name")
        if entry.HasField("stats"):
            _check_stats(entry.stats)


def worth_keeping(encoded: bytes) -> bool:
    """Whether the report is within `KEPT_REPORT`: decoded, a report takes several times its encoded size."""
    return len(encoded) <= (KEPT_REPORT.bytes or 0)


def kept_estimates(estimates: Mapping[int, int]) -> Mapping[int, int]:
    """The queue time estimates of a model within `PRIORITIES`; less urgent priorities then use the last one kept."""
    most = PRIORITIES.pieces or 0
    if len(estimates) <= most:
        return estimates
    return {priority: estimates[priority] for priority in heapq.nsmallest(most, estimates)}


def _check_stats(stats: ModelStats) -> None:
    for words in (stats.stats_capabilities, stats.stats_sources):
        _check_pieces(STATS_WORDS, len(words), "stats_capabilities or stats_sources of a model")
        for word in words:
            _check_bytes(STATS_WORDS, str(word), "bytes of one of stats_capabilities or stats_sources")


def _check_bytes(limit: Limit, text: str, what: str) -> None:
    most = limit.bytes or 0
    # A character takes at most four bytes in UTF-8, so most names need not be encoded for this check.
    if len(text) * 4 > most and len(text.encode()) > most:
        raise MessageLimitError(limit, len(text.encode()), what)


def _check_pieces(limit: Limit, found: int, what: str) -> None:
    if found > (limit.pieces or 0):
        raise MessageLimitError(limit, found, what)
