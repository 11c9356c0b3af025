"""Networks for tables: `x` has the numbers first and then the codes of categories, as preprocess.json says. Imported in the child only."""

import torch
from torch import Tensor, nn

HIDDEN = 256
LARGEST_EMBEDDING = 32
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)
BOTTLENECKS = ("resnet50", "resnet101")
MODEL_TYPES = ("mlp", *DEPTHS)


def network(model_type: str, *, numbers: int, codes: list[int], outputs: int, dropout: float) -> nn.Module:
    if model_type == "mlp":
        return Mlp(numbers=numbers, codes=codes, outputs=outputs, dropout=dropout)
    return ResNet(model_type, numbers=numbers, codes=codes, outputs=outputs, dropout=dropout)


class Mlp(nn.Module):
    """Two layers on the numbers and an embedding of each category."""

    def __init__(self, *, numbers: int, codes: list[int], outputs: int, dropout: float) -> None:
        super().__init__()
        self.numbers = numbers
        self.embeddings = nn.ModuleList(_embedding(count, min(LARGEST_EMBEDDING, count // 2 + 1)) for count in codes)
        width = numbers + sum(min(LARGEST_EMBEDDING, count // 2 + 1) for count in codes)
        self.layers = nn.Sequential(
            *(nn.Linear(width, HIDDEN), nn.LayerNorm(HIDDEN), nn.SiLU(), nn.Dropout(dropout)),
            *(nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), nn.SiLU(), nn.Dropout(dropout)),
            nn.Linear(HIDDEN, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        codes = x[:, self.numbers :].long()
        embedded = [embedding(codes[:, place]) for place, embedding in enumerate(self.embeddings)]
        return self.layers(torch.cat([x[:, : self.numbers], *embedded], dim=1))


class ResNet(nn.Module):
    """The blocks and depths of the residual networks for images, in one dimension: along the features, each of which is a vector as wide as the first stage."""

    def __init__(self, model_type: str, *, numbers: int, codes: list[int], outputs: int, dropout: float) -> None:
        super().__init__()
        self.numbers = numbers
        first = WIDTHS[0]
        self.weight = nn.Parameter(torch.randn(numbers, first) * 0.1)
        self.place = nn.Parameter(torch.randn(numbers + len(codes), first) * 0.1)
        self.embeddings = nn.ModuleList(_embedding(count, first) for count in codes)
        self.stem = nn.Sequential(nn.Conv1d(first, first, 3, padding=1, bias=False), nn.BatchNorm1d(first), nn.ReLU())
        blocks: list[nn.Module] = []
        inward = first
        for stage, (width, depth) in enumerate(zip(WIDTHS, DEPTHS[model_type], strict=True)):
            for number in range(depth):
                block = Block(inward, width, stride=2 if stage and not number else 1, bottleneck=model_type in BOTTLENECKS)
                blocks.append(block)
                inward = block.outward
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(inward, outputs))

    def forward(self, x: Tensor) -> Tensor:
        codes = x[:, self.numbers :].long()
        measured = x[:, : self.numbers, None] * self.weight
        embedded = [embedding(codes[:, place])[:, None] for place, embedding in enumerate(self.embeddings)]
        features = torch.cat([measured, *embedded], dim=1) + self.place  # [rows, features, channels]
        return self.head(self.blocks(self.stem(features.transpose(1, 2))).mean(dim=2))


class Block(nn.Module):
    def __init__(self, inward: int, width: int, *, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.outward = width * 4 if bottleneck else width
        if bottleneck:
            self.way = nn.Sequential(
                *(nn.Conv1d(inward, width, 1, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
                *(nn.Conv1d(width, width, 3, stride=stride, padding=1, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
                *(nn.Conv1d(width, self.outward, 1, bias=False), last := nn.BatchNorm1d(self.outward)),
            )
        else:
            self.way = nn.Sequential(
                *(nn.Conv1d(inward, width, 3, stride=stride, padding=1, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
                *(nn.Conv1d(width, width, 3, padding=1, bias=False), last := nn.BatchNorm1d(width)),
            )
        nn.init.zeros_(last.weight)  # each block begins as nothing but its shortcut
        same = inward == self.outward and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv1d(inward, self.outward, 1, stride=stride, bias=False), nn.BatchNorm1d(self.outward))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.way(x) + self.shortcut(x))


def _embedding(count: int, width: int) -> nn.Embedding:
    """The code of what was never seen says nothing, unless rows with missing values teach it something."""
    embedding = nn.Embedding(count, width)
    with torch.no_grad():
        embedding.weight.mul_(0.1)
        embedding.weight[0] = 0
    return embedding
