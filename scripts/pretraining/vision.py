"""The miniature's vision encoder: a small CLIP encoder that has learnt to encode what each patch shows.

It is pretrained as real encoders are, on other images than those it will be used on: scenes are drawn for it from a
stream of their own, and one whose file would equal a held-out image is left out. What a patch shows - its quarter, and
the shape, colour and size of the object there - is written as a sum of fixed codes at right angles, each of length
sqrt(width); the encoder learns to give that sum, and is then frozen. Classification heads would teach it to name
patches as well, but in their features the presence of an object takes most of the variance; here every property takes
the same.
"""

import math
from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from scripts.common.files import bytes_sha256
from scripts.common.progress import Progress
from scripts.config.miniature import MiniatureConfig
from scripts.config.pretrain import PretrainVisionConfig
from scripts.pretraining.train_loop import fit
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.scenes import CELLS, COLOURS, SHAPES, SIZES, Scene, draw_scene, jpeg, render

_N_TEST = 500


def make_vision(
    settings: PretrainVisionConfig, world: MiniatureConfig, heldout: Collection[str], out: Path
) -> dict[str, float]:
    """Pretrain the encoder and write it, with its image processor, to the folder `out`.

    `heldout` are the sha256 of images that must not be seen. Returns the share of patches with an object, in unseen
    scenes, whose four properties are all recognised, and how many scenes were left out.
    """
    torch.manual_seed(settings.seed)
    side = settings.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pixels, labels, skipped = _scenes(settings, world, heldout, processor)
    encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=settings.width,
            intermediate_size=2 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            image_size=side,
            patch_size=settings.patch_size,
        )
    )
    codes = _codes(settings.width)

    def features(batch: Tensor) -> Tensor:
        # Without the class token: (images, patches, width).
        return encoder(pixel_values=batch).last_hidden_state[:, 1:]

    order = torch.Generator().manual_seed(settings.seed)

    def loss(step: int) -> Tensor:
        chosen = torch.randint(settings.scenes, (settings.batch,), generator=order)
        target = torch.stack([code[labels[chosen][..., i]] for i, code in enumerate(codes)]).sum(0)
        return F.mse_loss(features(pixels[chosen]), target)

    fit(encoder.parameters(), loss, settings.steps, settings.learning_rate, "vision encoder")

    with torch.no_grad():
        tested = features(pixels[-_N_TEST:])
        guesses = torch.stack([(tested @ code.T).argmax(-1) for code in codes], -1)
    truth = labels[-_N_TEST:]
    right = (guesses == truth).all(-1)[truth[..., 1] > 0].float().mean().item()
    encoder.save_pretrained(out)
    processor.save_pretrained(out)
    return {"patches_right": round(right, 4), "left_out": skipped}


def _codes(width: int) -> tuple[Tensor, ...]:
    """The codes (values, width) of quarter, shape, colour and size; value 0 of the last three is "none"."""
    values = [len(CELLS), len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1]
    every = nn.init.orthogonal_(torch.empty(sum(values), width), gain=math.sqrt(width))
    return every.split(values)


def _scenes(
    settings: PretrainVisionConfig, world: MiniatureConfig, heldout: Collection[str], processor: CLIPImageProcessorPil
) -> tuple[Tensor, Tensor, int]:
    """Pixels (scenes, 3, side, side), labels (scenes, patches, 4), and how many drawn images were held out."""
    progress = Progress("drawing scenes for the encoder", settings.scenes + _N_TEST)
    pixels: list[Tensor] = []
    labels: list[list[tuple[int, int, int, int]]] = []
    number = 0
    while len(pixels) < settings.scenes + _N_TEST:
        draw = RandomStream(settings.seed, "encoder", number)
        number += 1
        scene = draw_scene(draw, world)
        image = render(scene, draw, world.image_size)
        if bytes_sha256(jpeg(image)) in heldout:
            continue
        pixels.append(torch.from_numpy(processor(image)["pixel_values"][0]))
        labels.append(_labels(scene, settings.image_size // settings.patch_size))
        progress.advance()
    progress.close()
    return torch.stack(pixels), torch.tensor(labels), number - len(pixels)


def _labels(scene: Scene, patches: int) -> list[tuple[int, int, int, int]]:
    """For each patch in reading order: its cell, and 1 + shape, colour and size of the object in that cell, or 0."""
    by_cell = {thing.cell: thing for thing in scene}
    names = tuple(COLOURS)
    rows = []
    for patch in range(patches * patches):
        row, column = (int(2 * (index + 0.5) / patches) for index in divmod(patch, patches))
        cell = 2 * row + column
        thing = by_cell.get(cell)
        size = 1 + SIZES.index(thing.size) if thing and thing.size else 0
        rows.append(
            (cell, 1 + SHAPES.index(thing.shape), 1 + names.index(thing.colour), size) if thing else (cell, 0, 0, 0)
        )
    return rows
