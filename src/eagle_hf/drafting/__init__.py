"""From a feature to a tree: the drafter, the shapes of trees, what they are sized by."""
