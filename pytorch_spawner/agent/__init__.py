"""The agent: runs inside a student's container, tells what works there and warms compilation up.

Standard library only and Python 3.9 syntax: it travels as a zipapp into other people's images.
It must NOT decide anything about GPUs or users, and none of its troubles may ever stop or slow the
container's own command. This package imports nothing; ``launch`` is the way in.
"""
