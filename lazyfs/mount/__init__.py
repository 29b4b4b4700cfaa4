"""What the kernel shows: the FUSE front with the device files, and EROFS and overlay mounts on top of it."""
