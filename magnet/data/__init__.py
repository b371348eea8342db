"""Data: images and points as data sets on a device."""
