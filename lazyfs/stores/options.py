"""How stores are reached, beyond what a reference says: one value for every transport."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What a user set by hand; None leaves it to the environment and to the files of each transport.

    S3: ``endpoint_url`` names a server that is not AWS, ``region`` its region, ``profile`` a section of
    the AWS configuration files; ``path_style`` puts the bucket into the path instead of the host name.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    path_style: bool | None = None
