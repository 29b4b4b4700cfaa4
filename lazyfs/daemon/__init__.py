"""The process of a node: devices, cache and fetch engine behind a control API on a unix socket.

`client` is what other processes import; it needs neither FUSE nor the packages of `lazyfs[node]`.
"""
