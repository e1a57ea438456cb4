"""Losses in the places where other libraries' models call theirs."""
