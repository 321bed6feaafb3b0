"""A certificate for the gRPC ports between the parts of one server: who lacks its key is not let in."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from lorafleet_pipeline.stack.private_file import write_private

_VALID_DAYS = 3650
_NAME = "lorafleet embedded stack"


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate, its own authority, and its private key."""

    certificate: Path
    key: Path

    @classmethod
    def load_or_create(cls, folder: Path) -> Certificate:
        """The certificate of a folder, made once."""
        found = cls(folder / "grpc.crt", folder / "grpc.key")
        if not (found.certificate.is_file() and found.key.is_file()):
            found._create()
        return found

    def _create(self) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        write_private(self.certificate, certificate.public_bytes(serialization.Encoding.PEM).decode())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(self.key, pem.decode())
