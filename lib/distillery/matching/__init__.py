"""The mathematics that methods share, a plain twin beside each."""
