"""What the exceptions of the wire carry."""

from tunnel_protocol.errors import ConnectionClosedError, ProtocolError, StreamCreditError


def test_protocol_error_carries_its_reason() -> None:
    assert ProtocolError("no").reason == str(ProtocolError("no")) == "no"


def test_credit_error_says_how_many_wait() -> None:
    error = StreamCreditError(7)
    assert error.waiting == 7
    assert str(error) == "7 requests already wait for a free stream on this connection"


def test_closed_connection_says_by_whom_and_why() -> None:
    error = ConnectionClosedError(0, "shutdown", by_peer=True)
    assert (error.error_code, error.reason, error.by_peer) == (0, "shutdown", True)
    assert str(error) == "shutdown"
    assert str(ConnectionClosedError(None, "", by_peer=False)) == "connection closed"
