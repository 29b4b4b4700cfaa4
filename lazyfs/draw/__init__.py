"""Pictures for people who would rather look than read: values in, SVG text out. No dependencies."""
