"""Registries: images by the OCI distribution specification 1.1, over a small HTTP client of our own.

    names         what a user calls a repository, and where its registry answers
    hosts         the files of certs.d: mirrors, certificates, plain HTTP
    credentials   the files and helper programs that keep passwords
    auth          challenges and tokens
    connection    one HTTP/1.1 connection whose every wait has an end, and the pool that keeps them
    redirects     where blobs were redirected to, for as long as that holds
    client        one request: hosts in order, authorization, redirects, retries
    upload        one blob on its way to the registry
    store         the `Store`

Nothing is imported here, so that naming an image costs no HTTP client.
"""
