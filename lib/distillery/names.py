"""Names that a command checks before it imports what they stand for, which takes seconds."""

DATASETS = ("digits", "mnist", "fashion-mnist", "svhn", "cifar10", "cifar100", "tiny-imagenet", "folder", "clips", "moving-shapes")
SCALES = ("smoke", "small", "night", "paper")  # smallest first
