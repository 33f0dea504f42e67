"""Problems with a protocol: one module per problem says what a method must offer, what data it takes, how it is scored.

Each module has a ``TRACK``; :func:`torchstone.compare` runs it on your own data, model and methods.
"""
