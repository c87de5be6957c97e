"""The key-value cache: accepted nodes stay, rejected ones go, and a borrowed cache comes back as it was."""
