"""The fault catalogue: everything that may go wrong, each with the state it must end in."""
