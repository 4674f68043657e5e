"""Images: named sets, folders, archives, sets of others, and the synthetic set."""

from distillery.data.images import PUBLISHED, ZCA, ImageSet, LazyImages, Splits, Standardize, fit_standardize, fit_zca, published
from distillery.data.load import NAMES, NORMALIZATIONS, check_enough, flip_labels, load, split_per_class, subset_per_class, take_classes
from distillery.data.synthetic import TensorSource

__all__ = ["ImageSet", "LazyImages", "PUBLISHED", "Splits", "Standardize", "TensorSource", "ZCA", "fit_standardize", "fit_zca", "published"]
__all__ += ["NAMES", "NORMALIZATIONS", "check_enough", "flip_labels", "load", "split_per_class", "subset_per_class", "take_classes"]
