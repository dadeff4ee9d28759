"""Measurements of objects: `table` makes one table per image with size, shape and intensities of every object."""
