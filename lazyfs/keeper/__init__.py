"""The process that never dies: holds the kernel's connection, and starts the daemon again when it ends.

It mounts /dev/fuse, keeps the descriptor, starts and restarts the daemon, and does nothing else. So it needs
nothing but the standard library and little memory, and nothing that a stranger wrote ever reaches it.
"""
