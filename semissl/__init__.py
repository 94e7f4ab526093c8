"""Few labels, many images: self-supervision, same-class correlation and a linear head in one run."""
__version__ = "0.1.0"

def __getattr__(name: str):
    "`semissl.FewLabelClassifier`, imported when it is asked for: `import semissl` alone does no work."
    if name != "FewLabelClassifier": raise AttributeError(f"module 'semissl' has no attribute {name!r}")
    from .classifier import FewLabelClassifier
    return FewLabelClassifier
