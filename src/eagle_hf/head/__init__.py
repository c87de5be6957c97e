"""The draft head: the network, with nothing of drafting or speed."""
