"""Lineage: what every output was made from, down to the source file and its licence, and back."""
