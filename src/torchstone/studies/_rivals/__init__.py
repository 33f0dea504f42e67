"""Rivals that only studies need: small, private, each with a test against its definition."""
