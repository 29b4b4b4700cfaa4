"""Measurements of lazyfs beside what people use instead, and the real images that they are made on."""
