"""What an item of a dataset is, and how it is read from a file."""
