"""What lazyfs is worth on the images, the machine and the links of its user: measured starts, and what they show."""
