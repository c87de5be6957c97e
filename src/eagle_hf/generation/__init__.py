"""The only folder that touches the internals of `transformers`' generation."""
