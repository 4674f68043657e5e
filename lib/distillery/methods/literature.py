"""Published top-1 accuracies in percent of rows that are no method of this folder, ConvNet to ConvNet: name -> data set -> size -> (mean, deviation).

The numbers of a method stand in its own file. Whole data from the tables of FTD, DATM and PAD, size 0 = the whole training set;
MTT as FTD's authors ran it, robust learning and parameter pruning (PP) from FTD's table; CAFE from the tables of FTD and DATM,
'cifar10 on X' from FTD's Table 3: distilled on the ConvNet, evaluated on X; FTD without EMA from DATM's table; '(BiLP)': the
first figure of arXiv 2305.18381, whose tables are known as means alone and are not here. Cells nobody could check are left out.
"""

NUMBERS: dict[str, dict[str, dict[int, tuple[float, float]]]] = {
    "DC, full (BiLP)": {"cifar10": {1: (28.6, 0.2)}},
    "DC, random 10% (BiLP)": {"cifar10": {1: (28.5, 0.3)}},
    "DC, selected 10% (BiLP)": {"cifar10": {1: (30.0, 0.2)}},
    "DC, selected 2 a class (BiLP)": {"cifar10": {1: (28.4, 0.2)}},
    "CAFE": {
        "cifar10": {1: (30.3, 1.1), 10: (46.3, 0.6), 50: (55.5, 0.6)},
        "cifar100": {1: (12.9, 0.3), 10: (27.8, 0.3), 50: (37.9, 0.3)},
        "cifar10 on ResNet18": {50: (25.3, 0.9)}, "cifar10 on VGG11": {50: (40.5, 0.8)}, "cifar10 on AlexNet": {50: (34.0, 0.6)},
    },
    "MTT (FTD's run)": {
        "cifar10": {1: (46.2, 0.8), 10: (65.4, 0.7), 50: (71.6, 0.2)},
        "cifar100": {1: (24.3, 0.3), 10: (39.7, 0.4), 50: (47.7, 0.2)},
    },
    "MTT + robust learning": {
        "cifar10": {1: (45.8, 0.7), 10: (63.2, 0.7), 50: (72.7, 0.2)},
        "cifar100": {1: (24.1, 0.3), 10: (39.4, 0.4), 50: (47.9, 0.2)},
    },
    "PP": {"cifar10": {1: (46.4, 0.6), 10: (65.5, 0.3), 50: (71.9, 0.2)}, "cifar100": {1: (24.6, 0.1), 10: (43.1, 0.3), 50: (48.4, 0.3)}},
    "FTD without EMA (DATM's run)": {
        "cifar10": {1: (46.0, 0.4), 10: (65.3, 0.4), 50: (73.2, 0.2)},
        "cifar100": {1: (24.4, 0.4), 10: (42.5, 0.2), 50: (48.5, 0.3)},
        "tiny-imagenet": {1: (10.5, 0.2), 10: (23.4, 0.3), 50: (28.2, 0.4)},
    },
    "whole": {
        "cifar10": {0: (84.8, 0.1)}, "cifar100": {0: (56.2, 0.3)}, "tiny-imagenet": {0: (37.6, 0.4)}, "imagenette": {0: (87.4, 1.0)},
        "imagewoof": {0: (67.0, 1.3)}, "imagefruit": {0: (63.9, 2.0)}, "imagemeow": {0: (66.7, 1.1)},
    },
}  # fmt: skip
