"""Augmentations beyond the mirror image, one family a file."""
