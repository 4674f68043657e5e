"""The mathematics that two or more methods share, a plain twin beside each. An objective of one method alone stands in its file."""
