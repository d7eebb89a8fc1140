"""This process, its workers and its files."""
