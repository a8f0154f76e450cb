"""Checks of a registration's first message, and of every later message against the first.

Source: docs/control-plane.md, "Admission".
"""

from typing import Final

from router.control_plane.inference_server_url import InvalidUrlError, check_inference_server_url
from router.grpc.status import Status
from router.ports.identity import Identity
from tunnel_protocol.control.stargate_pb2 import InferenceServerRegistration


class RefusedError(Exception):
    """A registration is refused or ended with a gRPC status. `label` is the refusal's name in metrics."""

    def __init__(self, code: Status, message: str, *, label: str, log_text: str) -> None:
        super().__init__(message)
        self.code = code
        self.message: Final = message
        self.label = label
        self.log_text = log_text
        """The text of the log line; operators search for some of them."""


def _invalid(message: str, label: str, log_text: str | None = None) -> RefusedError:
    return RefusedError(
        Status.INVALID_ARGUMENT,
        message,
        label=label,
        log_text=f"{log_text or message}; denying registration",
    )


def admit(message: InferenceServerRegistration, routing_key: str | None, *, reverse_listener: bool) -> Identity:
    """The identity in a first message. Raises `RefusedError`; does not check whether the id is free."""
    if not message.inference_server_id:
        raise _invalid("inference_server_id is empty", "empty_id")
    if not message.inference_server_url:
        raise _invalid("inference_server_url is empty", "empty_url")
    try:
        check_inference_server_url(message.inference_server_url, reverse=message.reverse_tunnel)
    except InvalidUrlError as error:
        text = f"invalid inference_server_url: {error.reason}"
        raise _invalid(text, "invalid_url", "invalid inference_server_url") from error
    if message.reverse_tunnel and not reverse_listener:
        raise _invalid("reverse tunnel flag set but no reverse tunnel config", "no_reverse_listener")
    return Identity(
        inference_server_id=message.inference_server_id,
        cluster_id=message.cluster_id or message.inference_server_id,
        url=message.inference_server_url,
        routing_key=routing_key,
        reverse=message.reverse_tunnel,
    )


def check_unchanged(message: InferenceServerRegistration, identity: Identity) -> None:
    """Raise `RefusedError` if a later message has another identity than the first one."""
    if message.reverse_tunnel != identity.reverse:
        raise _invalid("reverse tunnel flag changed", "identity_changed")
    if message.inference_server_url != identity.url:
        raise _invalid("inference_server_url changed", "identity_changed")
    if message.inference_server_id != identity.inference_server_id:
        raise _invalid("inference_server_id changed", "identity_changed")
    if (message.cluster_id or message.inference_server_id) != identity.cluster_id:
        raise _invalid("cluster_id changed", "identity_changed")


def too_large(message: str) -> RefusedError:
    """The refusal of a message that exceeds one of the limits of `message_limits`."""
    return _invalid(message, "too_large", f"registration message too large: {message}")


def already_registered(message: str) -> RefusedError:
    """The refusal of an id that a live registration already has."""
    return RefusedError(
        Status.ALREADY_EXISTS,
        message,
        label="duplicate",
        log_text="duplicate inference_server_id: another stream already registered this id",
    )
