"""Saved models in service: adapt to a support set, classify queries."""
