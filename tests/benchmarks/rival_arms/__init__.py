"""The parts of ``rivals.py``: the arms, the ledger that caps them, curves, tables and plot."""
