"""Segment on many processes or machines through Dask."""
