"""Few labels, many images: self-supervision, same-class correlation and a linear head in one run."""
__version__ = "0.1.0"
