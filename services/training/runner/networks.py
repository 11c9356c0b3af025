"""Networks for tables: `x` has the numbers first and then the codes of categories, as preprocess.json says. Imported in the child only."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .outcome import Failure

HIDDEN = 256
LARGEST_EMBEDDING = 32
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)
BOTTLENECKS = ("resnet50", "resnet101")
TRANSFORMER = "ft_transformer"
TOKEN, HEADS, LAYERS = 64, 4, 3
"""A third of its paper's width: on the tables of bench/tables_fit.py as good, in a third of the time."""
MOST_TOKENS = 2_000
"""Each looks at each other: with so many a row takes a fifth of a second of one core, and with five times as many twenty-five times that."""
ASKING = 128
"""Of them that look at the others together in an ONNX: what runs it holds a number for each pair."""
MODEL_TYPES = ("mlp", TRANSFORMER, *DEPTHS)

HELD = {"mlp": 8, TRANSFORMER: 48, "resnet18": 12, "resnet34": 12, "resnet50": 28, "resnet101": 28}
"""Vectors as wide as a layer that are there at the same time, of a row or of each of its features; measured. Where there are batch norms: when nothing is learned."""
ROOM = 1_000_000_000
"""Bytes for the rows that go through a network together. On a processor nobody is told that there is no more memory: whoever takes it is killed."""


def network(model_type: str, *, numbers: int, codes: list[int], outputs: int, dropout: float) -> nn.Module:
    """Raises a Failure where a table is too wide for it."""
    if model_type == "mlp":
        return Mlp(numbers=numbers, codes=codes, outputs=outputs, dropout=dropout)
    if model_type == TRANSFORMER:
        return FtTransformer(numbers=numbers, codes=codes, outputs=outputs, dropout=dropout)
    return ResNet(model_type, numbers=numbers, codes=codes, outputs=outputs, dropout=dropout)


def rows_together(model_type: str, width: int) -> int:
    """That there is room for."""
    numbers = HIDDEN * HELD["mlp"] + 2 * width if model_type == "mlp" else TOKEN * HELD[model_type] * (width + 1)
    return max(1, ROOM // (4 * numbers))


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


class FtTransformer(nn.Module):
    """A vector for each feature, and one more that gathers what they say: in each layer they look at each other. Gorishniy and others, 2021."""

    first: Tensor
    """Code of each category in the embedding of all."""

    def __init__(self, *, numbers: int, codes: list[int], outputs: int, dropout: float) -> None:
        super().__init__()
        width = numbers + len(codes)
        if width > MOST_TOKENS:
            what = f"The columns come to {width:,} numbers, and {TRANSFORMER} holds each against each other: it takes {MOST_TOKENS:,} at most."
            raise Failure("model_type_unfit", f"{what} Take gradient_boosting or mlp, or leave columns out.")
        self.numbers = numbers
        self.weight = nn.Parameter(_spread(numbers))
        self.place = nn.Parameter(_spread(width))
        self.gathering = nn.Parameter(_spread(1))
        self.embedding = nn.Embedding(sum(codes), TOKEN)  # one for all categories: a file with one for each of thousands takes minutes to write
        first = torch.tensor([0, *codes]).cumsum(0)[: len(codes)]
        self.register_buffer("first", first, persistent=False)
        with torch.no_grad():
            self.embedding.weight.copy_(_spread(sum(codes)))
            self.embedding.weight[first] = 0  # as in _embedding
        self.layers = nn.ModuleList(Layer(dropout=dropout) for _ in range(LAYERS))
        self.head = nn.Sequential(nn.LayerNorm(TOKEN), nn.ReLU(), nn.Linear(TOKEN, outputs))

    def forward(self, x: Tensor) -> Tensor:
        codes = x[:, self.numbers :].long() + self.first
        features = torch.cat([x[:, : self.numbers, None] * self.weight, self.embedding(codes)], dim=1) + self.place
        tokens = torch.cat([self.gathering.expand(x.shape[0], 1, TOKEN), features], dim=1)  # [rows, 1 + features, TOKEN]
        for layer in self.layers:
            tokens = layer(tokens[:, :1] if layer is self.layers[-1] else tokens, tokens)  # nothing else is asked of the last one
        return self.head(tokens[:, 0])


class Layer(nn.Module):
    """Attention and a gated layer, each with its norm before it. Of the attention's own shares none is dropped out: there would have to be one for each pair."""

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        width = 4 * TOKEN // 3
        self.before, self.between = nn.LayerNorm(TOKEN), nn.LayerNorm(TOKEN)
        self.query, self.key_value, self.looked = nn.Linear(TOKEN, TOKEN), nn.Linear(TOKEN, 2 * TOKEN), nn.Linear(TOKEN, TOKEN)
        self.gates, self.narrow = nn.Linear(TOKEN, 2 * width), nn.Linear(width, TOKEN)
        self.dropout = nn.Dropout(dropout)

    def forward(self, some: Tensor, tokens: Tensor) -> Tensor:
        """What becomes of some of the tokens, the first ones."""
        tokens = self.before(tokens)
        query = self.query(tokens[:, : some.shape[1]])
        key, value = self.key_value(tokens).chunk(2, dim=2)
        together = ASKING if torch.compiler.is_exporting() else query.shape[1]
        looks = [functional.scaled_dot_product_attention(part, _heads(key), _heads(value)) for part in _heads(query).split(together, dim=2)]
        found = torch.cat(looks, dim=2)
        some = some + self.dropout(self.looked(found.transpose(1, 2).flatten(2)))
        gate, passed = self.gates(self.between(some)).chunk(2, dim=2)
        return some + self.dropout(self.narrow(self.dropout(torch.relu(gate) * passed)))


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(2, (HEADS, TOKEN // HEADS)).transpose(1, 2)


def _spread(count: int) -> Tensor:
    return torch.empty(count, TOKEN).uniform_(-(TOKEN**-0.5), TOKEN**-0.5)


def _embedding(count: int, width: int) -> nn.Embedding:
    """The code of what was never seen says nothing, unless rows with missing values teach it something."""
    embedding = nn.Embedding(count, width)
    with torch.no_grad():
        embedding.weight.mul_(0.1)
        embedding.weight[0] = 0
    return embedding
