"""The shapes every benchmark uses: the published ConvNet-3 on 32 x 32 photographs."""

import torch

SHAPE, CLASSES, WIDTH = (3, 32, 32), 10, 128
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
