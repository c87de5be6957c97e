"""The command line `eagle-hf`."""
