"""How stores are reached, beyond what a reference says: one value for every transport."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What a user set by hand; None leaves it to the environment and to the files of each transport.

    S3: ``endpoint_url`` names a server that is not AWS, ``region`` its region, ``profile`` a section of
    the AWS configuration files; ``path_style`` puts the bucket into the path instead of the host name.

    Registries: ``insecure`` does without proof of who a registry is, and without TLS where it has none;
    ``auth_file`` is the only file that passwords are looked for in, but for ``learned_file``, which is looked
    through before and holds those that engines used for pulls; ``certs_dirs`` are the directories
    that, as ``/etc/docker/certs.d`` does, hold a directory per registry; ``timeout`` is how many seconds
    one read may take, all its attempts together; ``proxy``, http://HOST:PORT, is used for every server instead of
    what the environment names; ``headers`` go along with every request.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    path_style: bool | None = None
    insecure: bool = False
    auth_file: Path | None = None
    learned_file: Path | None = None
    certs_dirs: tuple[Path, ...] | None = None
    timeout: float = 60.0
    proxy: str | None = field(default=None, repr=False)  # there may be a password in it
    headers: tuple[tuple[str, str], ...] = ()
