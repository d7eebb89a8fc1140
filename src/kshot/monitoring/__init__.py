"""Whether a model in use still sees what it was made for: answers of a service against a reference."""
