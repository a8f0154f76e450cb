"""The last report of a registration, read once: a worker that does nothing sends the same again and again."""

from collections.abc import Mapping

from router.control_plane.message_limits import worth_keeping
from router.control_plane.messages import model_updates
from router.registry.stats import ModelUpdate
from tunnel_protocol.control.stargate_pb2 import InferenceServerRegistration


class LastReport:
    """What the last report says, and whether the next one says the same."""

    def __init__(self) -> None:
        self.models: Mapping[str, ModelUpdate] = {}
        """Its models; none before the first report."""
        self._encoded: bytes | None = None
        # The maps of an equal report may be encoded in another order.
        self._message: InferenceServerRegistration | None = None

    def is_repeated_by(self, encoded: bytes) -> bool:
        """Whether `encoded` is the same bytes."""
        return encoded == self._encoded

    def decode(self, encoded: bytes) -> InferenceServerRegistration | None:
        """The report in `encoded`; None if it says the same as the last one. Raises `DecodeError`."""
        message = InferenceServerRegistration.FromString(encoded)
        if message == self._message:
            self._encoded = encoded
            return None
        return message

    def take(self, encoded: bytes, message: InferenceServerRegistration) -> None:
        """Read a report that has been checked."""
        self.models = model_updates(message)
        kept = worth_keeping(encoded)
        self._encoded = encoded if kept else None
        self._message = message if kept else None
