"""The mathematics that several algorithms share, as functions."""
