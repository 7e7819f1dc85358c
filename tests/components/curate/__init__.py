"""Tests of the parts of curation."""
