"""Batches of text, images, padding and documents, written as strings; and the formula of the attention as an oracle.

A string is a row of a batch: `t` text, `i` image, `.` padding, `|` the boundary between two packed documents.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from model.documents import IMAGE, PAD, TEXT

HEADS, WIDTH = 4, 8
CASES = {
    "text only": ["tttttt", "tttt.."],
    "image first": ["iitttt", "iiiitt"],
    "image last": ["ttttii", "tiiiii"],
    "adjacent images": ["tiitiitt", "iiiittit"],
    "eight images": ["tiitiitiitiitiitiitiitiit"],
    "one row without an image": ["ttttttt", "tiittii"],
    "padding right": ["tiitt...", "titititt"],
    "padding left": ["...tiitt", "titititt"],
    "images only": ["iiii", "iii."],
    "different segments": ["titititititi", "ttttttiiiitt", "tttttttttttt", "iit........."],
    "packed": ["tiit|tt|iitt", "ttt|tiitt.."],
    "packed, one without text": ["tiit|ii|tt", "ttttttt."],
    "packed, padding left": ["..tiit|tit", "tit|tt|t|iit"],
}


def parse_modality(texts: list[str]) -> torch.Tensor:
    """The modality (B, T) of each token."""
    return torch.tensor([[".ti".index(letter) for letter in text.replace("|", "")] for text in texts])


def parse_document_ids(texts: list[str]) -> torch.Tensor | None:
    """The documents (B, T), or None where none are packed."""
    if not any("|" in text for text in texts):
        return None
    rows = []
    for text in texts:
        pieces = enumerate(text.split("|"), start=1)
        rows.append([0 if letter == "." else number for number, piece in pieces for letter in piece])
    return torch.tensor(rows)


def pad(texts: list[str], side: str) -> list[str]:
    """Make all rows equally long."""
    lengths = [len(text.replace("|", "")) for text in texts]
    fill = ["." * (max(lengths) - length) for length in lengths]
    return [text + dots if side == "right" else dots + text for text, dots in zip(texts, fill, strict=True)]


rows = st.text("tti", min_size=1, max_size=12)
packed_rows = st.lists(st.text("tti", min_size=1, max_size=6), min_size=1, max_size=4).map("|".join)


def tensors(modality: torch.Tensor, groups: int, queries: int | None = None) -> list[torch.Tensor]:
    """Random query, key and value in float64, the same for the same modality."""
    generator = torch.Generator().manual_seed(int(modality.sum()) + modality.numel())
    batch, length = modality.shape
    shapes = ((HEADS, queries or length), (groups, length), (groups, length))
    return [
        torch.randn(batch, heads, size, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
        for heads, size in shapes
    ]


def oracle(query, key, value, modality, ids, image_rows: str, merge: str) -> torch.Tensor:
    """The formula, query by query, in float64: (B, T, H, D). Padding rows are 0."""
    batch, heads, length, width = query.shape
    repeats, total = heads // key.shape[1], key.shape[2]
    ids = torch.ones_like(modality) if ids is None else ids

    def softmax(b: int, h: int, t: int, keys: list[int]) -> torch.Tensor:
        scores = key[b, h // repeats, keys] @ query[b, h, t] * width**-0.5
        return scores.softmax(0) @ value[b, h // repeats, keys]

    def row(b: int, t: int, h: int) -> torch.Tensor:
        index = total - length + t
        before = [j for j in range(index + 1) if modality[b, j] != PAD and ids[b, j] == ids[b, index]]
        text = [j for j in before if modality[b, j] == TEXT]
        image = [j for j in before if modality[b, j] == IMAGE]
        if modality[b, index] == PAD:
            return value.new_zeros(width)
        if modality[b, index] == IMAGE:
            return value[b, h // repeats, index] if image_rows == "self" else softmax(b, h, t, before)
        if merge == "lse":
            return softmax(b, h, t, before)
        return softmax(b, h, t, text) + (softmax(b, h, t, image) if image else 0)

    rows = [[[row(b, t, h) for h in range(heads)] for t in range(length)] for b in range(batch)]
    return torch.stack([torch.stack([torch.stack(r) for r in of_row]) for of_row in rows])
