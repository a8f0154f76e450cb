"""The checks before the start of who may use the OpenAI front. Each raises `StartupError`; none opens anything."""

from ipaddress import ip_address

from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import StartupError


def check_openai_access(settings: Settings, address: SocketAddress) -> None:
    """Raise `StartupError` if nobody could use a front on `address`, or everybody could by mistake."""
    with_keys = settings.openai_keys_file is not None or settings.openai_auth_endpoint is not None
    if settings.openai_open and with_keys:
        raise StartupError(
            "--openai-open excludes --openai-keys-file and --openai-auth-endpoint: either clients need keys, or they do not"
        )
    if not settings.openai_open and not with_keys:
        raise StartupError(
            "--openai-listen-addr requires --openai-keys-file (`keys add` makes one), or --openai-open for a front without keys"
        )
    if settings.openai_open and not is_loopback(address) and not settings.openai_open_anywhere:
        raise StartupError(
            "--openai-open on an address that is not of the loopback requires --openai-open-anywhere",
            "everybody who reaches the address could use all models",
            options=(f"--openai-listen-addr={address}",),
        )


def keys_in_clear(settings: Settings, address: SocketAddress, *, tls: bool) -> bool:
    """Whether keys travel to this process over a network without TLS of its own."""
    return not settings.openai_open and not tls and not is_loopback(address)


def is_loopback(address: SocketAddress) -> bool:
    """Whether only processes of this host reach `address`."""
    return ip_address(address.host).is_loopback
