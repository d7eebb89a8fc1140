"""What backbones are built from."""
