"""What results look like in a terminal.

It computes nothing.
"""

__all__ = []
