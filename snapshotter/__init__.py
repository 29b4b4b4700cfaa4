"""A containerd proxy snapshotter: containers on images that are not there yet, and on every other image.

settings     what the owner of the node has chosen
service      gRPC: requests in, answers and codes out
lifecycle    what each call does, in an order that a crash cannot break
records      which snapshots there are (SQLite)
directories  what they have on disk
mounts       what containerd is to mount
filters      containerd's filter expressions
usage        what a directory takes on disk
"""
