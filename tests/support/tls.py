"""Certificates for servers of tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from support.servers import HOST


@dataclass(frozen=True)
class Certificates:
    """The files of an authority, and of a server that it has certified for the loopback address."""

    ca: Path
    cert: Path
    key: Path
    client: Path
    """The certificate and the key of a client, in one file."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a server that speaks TLS, without its port."""
        return {"tls_cert_file": self.cert, "tls_key_file": self.key, "tls_ca_cert_file": self.ca}


def certificates(directory: Path) -> Certificates:
    """Make an authority and a certificate.

    Args:
        directory: Where the files are written; it must exist.
    """
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    issued = authority.issue_cert(HOST, "localhost", key_type=trustme.KeyType.ECDSA)
    client = authority.issue_cert("worker@example.com", key_type=trustme.KeyType.ECDSA)
    files = Certificates(*(directory / name for name in ("ca.pem", "server.pem", "server.key", "client.pem")))
    authority.cert_pem.write_to_path(str(files.ca))
    issued.cert_chain_pems[0].write_to_path(str(files.cert))
    issued.private_key_pem.write_to_path(str(files.key))
    client.private_key_and_cert_chain_pem.write_to_path(str(files.client))
    return files
