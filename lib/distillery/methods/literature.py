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


# Fine-tuned on 10, 20, .. 90% of each class: data set -> way -> nine mean accuracies in percent. From the plotting script of DLC's authors
# (arXiv 2402.05356), averaged over encoders that nobody names; gamma of FlexRand chosen on test images.
KEPT: dict[str, dict[str, str]] = {
    "CXRB10": {
        "random": "22.45 26.00 29.73 30.94 32.21 33.56 34.39 35.38 36.32",
        "k-center": "20.61 25.31 27.89 30.09 30.89 33.49 34.90 35.59 36.73",
        "contextual diversity": "17.32 22.33 25.51 28.89 30.89 33.39 33.78 35.50 36.17",
        "entropy": "24.09 28.15 29.08 32.17 33.08 34.04 34.31 35.23 36.43",
        "forgetting": "23.34 28.30 29.62 31.21 33.69 34.08 35.19 35.61 36.48",
        "FlexRand": "24.89 29.08 31.41 33.13 34.53 35.42 36.04 37.02 37.37",
    },
    "DeepWeeds": {
        "random": "84.37 89.64 91.80 93.49 94.43 94.98 95.19 95.57 95.82",
        "k-center": "84.02 89.57 92.14 93.76 94.61 95.20 95.54 95.66 95.91",
        "contextual diversity": "78.09 88.96 93.14 94.43 95.30 95.63 95.85 96.08 96.16",
        "entropy": "77.52 84.07 87.00 89.40 91.02 92.42 93.62 94.71 95.58",
        "forgetting": "80.81 88.80 91.34 91.81 92.53 94.03 94.92 95.55 95.89",
        "FlexRand": "85.95 90.84 92.88 94.05 94.86 95.37 95.72 95.96 96.15",
    },
    "DTD": {
        "random": "50.39 59.96 65.47 67.95 71.16 71.78 72.87 74.05 74.61",
        "k-center": "45.87 58.76 65.17 68.31 70.45 72.57 73.44 74.52 75.14",
        "contextual diversity": "42.52 55.57 62.93 67.20 70.51 72.57 74.05 74.64 75.02",
        "entropy": "53.87 60.66 64.10 66.86 68.70 70.42 71.51 72.85 74.32",
        "forgetting": "47.97 61.76 66.99 69.41 71.83 72.57 73.79 74.24 74.54",
        "FlexRand": "52.95 61.82 66.49 69.51 71.78 72.81 73.84 74.35 74.82",
    },
    "FGVC-Aircraft": {
        "random": "18.60 31.25 41.57 48.83 55.42 59.76 62.92 66.56 68.61",
        "k-center": "17.03 29.09 39.33 47.13 54.25 57.89 62.81 65.53 68.70",
        "contextual diversity": "17.39 30.14 40.61 48.06 55.01 59.91 63.73 66.80 69.05",
        "entropy": "21.21 32.50 41.66 47.99 54.02 57.51 61.48 65.20 68.20",
        "forgetting": "19.69 33.11 42.80 50.26 56.50 60.72 63.51 66.86 68.80",
        "FlexRand": "20.31 33.80 43.16 50.05 56.79 60.68 63.67 66.89 69.05",
    },
    "Sketch": {
        "random": "36.80 57.27 63.79 69.78 72.49 74.56 76.27 77.24 78.34",
        "k-center": "34.19 55.41 64.34 69.63 72.67 74.64 76.36 77.53 78.59",
        "contextual diversity": "29.06 52.75 62.23 68.77 72.54 72.25 76.85 77.96 78.84",
        "entropy": "43.85 59.89 65.50 69.12 71.40 73.35 75.32 76.77 78.26",
        "forgetting": "39.47 58.15 64.65 69.31 71.73 73.98 75.85 77.10 78.36",
        "FlexRand": "40.64 57.58 67.21 70.72 73.35 75.15 76.58 77.95 78.70",
    },
}  # fmt: skip
