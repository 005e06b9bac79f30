"""The conformance kit: checks, strategies, small models and known-answer vectors, for edgekit and its plugins."""
