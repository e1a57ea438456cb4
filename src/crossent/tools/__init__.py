"""The tools for people: what ``crossent`` does on a command line, and the functions behind it."""
