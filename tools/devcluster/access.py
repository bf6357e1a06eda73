"""Who may talk to the API server, and with which credentials?"""

from __future__ import annotations

import base64
import ipaddress
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = timedelta(days=30)


@dataclass(frozen=True)
class Credentials:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    def write(self, stem: Path) -> tuple[Path, Path]:
        """Write ``STEM.crt`` and ``STEM.key``, and return both paths."""
        certificate, key = stem.with_suffix(".crt"), stem.with_suffix(".key")
        certificate.write_bytes(self.certificate)
        key.touch(mode=0o600)
        key.write_bytes(self.key)
        return certificate, key


class CertificateAuthority:
    """Signs the certificates of one cluster, for its servers and for its clients."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        authority = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._builder(self._name, self._key).add_extension(authority, critical=True)
        self.credentials = _credentials(certificate.sign(self._key, hashes.SHA256()), self._key)

    def server(self, *names: str) -> Credentials:
        """For a server reached by these host names and addresses."""
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        return self._issue(names[0], (), ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def client(self, user: str, *groups: str) -> Credentials:
        """For the Kubernetes user of this name, in these groups."""
        return self._issue(user, groups, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self,
        common_name: str,
        organizations: tuple[str, ...],
        usage: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None = None,
    ) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
        builder = self._builder(x509.Name(subject), key)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return _credentials(builder.sign(self._key, hashes.SHA256()), key)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))  # clocks differ
            .not_valid_after(now + _LIFETIME)
        )


def signing_key_pair(stem: Path) -> tuple[Path, Path]:
    """Write the key that signs service-account tokens and its public half; return both paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = stem.with_suffix(".key"), stem.with_suffix(".pub")
    private.touch(mode=0o600)
    private.write_bytes(_private_bytes(key))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def kubeconfig(server: str, authority: bytes, user: Credentials | str, namespace: str = "default") -> str:
    """A kubeconfig that stands alone: certificates inside. ``user`` is a client certificate or a bearer token."""
    if isinstance(user, str):
        credentials = {"token": user}
    else:
        credentials = {
            "client-certificate-data": base64.b64encode(user.certificate).decode(),
            "client-key-data": base64.b64encode(user.key).decode(),
        }
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(authority).decode()}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "devcluster",
        "clusters": [{"name": "devcluster", "cluster": cluster}],
        "users": [{"name": "user", "user": credentials}],
        "contexts": [
            {"name": "devcluster", "context": {"cluster": "devcluster", "user": "user", "namespace": namespace}}
        ],
    }
    return yaml.safe_dump(document, sort_keys=False)


def plain_kubeconfig(server: str) -> str:
    """A kubeconfig without credentials, for a proxy that has its own."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "proxy",
        "clusters": [{"name": "proxy", "cluster": {"server": server}}],
        "users": [{"name": "user", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "user"}}],
    }
    return yaml.safe_dump(document, sort_keys=False)


def client_tls(config: Mapping[str, Any]) -> tuple[ssl.SSLContext, str | None]:
    """From a kubeconfig of ours, how to speak TLS to its server, and the bearer token where it has one."""
    authority = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"])
    tls = ssl.create_default_context(cadata=authority.decode())
    user = config["users"][0]["user"]
    if "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile() as both:  # OpenSSL loads them from files only
            both.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
            both.flush()
            tls.load_cert_chain(both.name)
    return tls, user.get("token")


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _credentials(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Credentials:
    return Credentials(certificate.public_bytes(Encoding.PEM), _private_bytes(key))


def _private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
