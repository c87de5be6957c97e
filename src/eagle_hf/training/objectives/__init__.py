"""The objectives that heads are trained with."""
