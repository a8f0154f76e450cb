"""`python -m certs`: make, show and check TLS identities on the command line."""

import argparse
import datetime as dt
import pathlib
import sys

from cryptography import x509

from certs.identity import IdentityError, load_identity, not_after
from certs.self_signed import make_self_signed

_EPILOG = """examples:
  python -m certs make --cert tls.crt --key tls.key --dns stargate --dns router.example --ip 127.0.0.1
  python -m certs check --cert tls.crt --key tls.key
  python -m certs show --cert tls.crt

Which names: a worker that dials an IP address or `localhost` asks for `stargate`, any other one for the host it dials;
a router that dials a worker always asks for `stargate`."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code (1: certificate or key is unusable, or a file cannot be written)."""
    parser = argparse.ArgumentParser(
        prog="python -m certs",
        description="TLS identities for QUIC listeners.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write a self-signed certificate and its key")
    make.add_argument("--cert", required=True, type=pathlib.Path, help="file to write the certificate to (PEM)")
    make.add_argument("--key", required=True, type=pathlib.Path, help="file to write the key to (PEM, mode 600)")
    make.add_argument(
        "--dns", action="append", default=[], metavar="NAME", help="DNS name (default: localhost, stargate)"
    )
    make.add_argument("--ip", action="append", default=[], metavar="ADDRESS", help="IP address")
    make.add_argument(
        "--days", type=int, metavar="N", help="days of validity from now on (default: practically for ever)"
    )
    make.add_argument("--force", action="store_true", help="overwrite existing files")
    check = commands.add_parser("check", help="check a pair as a listener would at start-up")
    check.add_argument("--cert", required=True, help="certificate chain (PEM)")
    check.add_argument("--key", required=True, help="private key (PEM)")
    show = commands.add_parser("show", help="print names and validity of every certificate of a file")
    show.add_argument("--cert", required=True, type=pathlib.Path, help="certificates (PEM)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "make":
            _make(options)
        elif options.command == "check":
            identity = load_identity(options.cert, options.key, dt.datetime.now(dt.UTC))
            print(f"ok: valid until {not_after(identity).isoformat()}")
        else:
            _show(options.cert)
    except (IdentityError, OSError, ValueError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _make(options: argparse.Namespace) -> None:
    for path in (options.cert, options.key):
        if path.exists() and not options.force:
            message = f"{path} exists; give --force to overwrite it"
            raise OSError(message)
    names = options.dns or ([] if options.ip else ["localhost", "stargate"])
    identity = make_self_signed(names, options.ip, days=options.days)
    options.key.touch(mode=0o600)
    options.key.chmod(0o600)  # an existing file would keep its mode
    options.key.write_bytes(identity.key_pem)
    options.cert.write_bytes(identity.cert_pem)
    print(f"wrote {options.cert} and {options.key}")


def _show(path: pathlib.Path) -> None:
    for certificate in x509.load_pem_x509_certificates(path.read_bytes()):
        print(f"subject  {certificate.subject.rfc4514_string() or '(empty)'}")
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            names = [str(name.value) for name in extension.value]
        except x509.ExtensionNotFound:
            names = []
        print(f"names    {', '.join(names) or '(none)'}")
        print(
            f"valid    {certificate.not_valid_before_utc.isoformat()} .. {certificate.not_valid_after_utc.isoformat()}"
        )


if __name__ == "__main__":
    sys.exit(main())
