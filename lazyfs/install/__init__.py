"""Making engines use lazyfs: their configuration files, edited as their owner would, and taken back.

edits        a TOML file changed in place; what was there before is kept in a comment beside it
files        what is to be written, shown as a difference, written whole or not at all
containerd   containerd by itself: config.toml, hosts.toml
k3s          k3s and RKE2, which write their containerd's configuration themselves
docker       Docker Engine: daemon.json, and the containerd below it
"""
