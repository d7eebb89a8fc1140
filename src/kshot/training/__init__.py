"""The outer loop: what it minimises, how it updates, and where it goes on after a stop."""
