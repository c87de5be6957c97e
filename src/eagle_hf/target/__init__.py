"""One forward of the target over a tree, whatever the target is."""
