"""The miniature world as a whole: which scene is image number n, what it is called and where it lies.

Everything is a pure function of the seed and the number, so writers of raw formats need no shared state and no order.
"""

from functools import cache

from scripts.config.miniature import MiniatureConfig
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.scenes import Scene, draw_scene, jpeg, render

IMAGE_FOLDER = "coco/train2017"
_PARTNERS = 500
"""A pair joins an image with one of so many before it: pairs stay when images are added, and every image gets its
share.
"""


class SceneImages:
    """Scenes and their images by number; a subclass says how many there are and gives `draw`, its stream of draws."""

    def __init__(self, settings: MiniatureConfig):
        self.settings = settings
        self.scene = cache(self._scene)

    def _scene(self, number: int) -> Scene:
        return draw_scene(self.draw("scene", number), self.settings)

    def image(self, number: int) -> bytes:
        """Image `number` as JPEG."""
        return jpeg(render(self.scene(number), self.draw("pixels", number), self.settings.image_size))


class World(SceneImages):
    """Scenes, images and names by number."""

    def __init__(self, settings: MiniatureConfig):
        super().__init__(settings)
        self.coco_id = cache(self._coco_id)

    def __len__(self) -> int:
        return self.settings.images

    def draw(self, purpose: str, number: int | str) -> RandomStream:
        """The stream of draws for one purpose and item."""
        return RandomStream(self.settings.seed, purpose, number)

    def _coco_id(self, number: int) -> int:
        """A number like COCO's: growing, with gaps."""
        return 100 * number + 1 + self.draw("coco id", number).below(100)

    def file_name(self, number: int) -> str:
        """The name of an image's file."""
        return f"{self.coco_id(number):012d}.jpg"

    def partner(self, number: int, pair: int) -> int | None:
        """An earlier image to compare image `number` with; the first image has none."""
        window = min(number, _PARTNERS)
        return number - 1 - self.draw("partner", f"{number}/{pair}").below(window) if window else None


class Album(SceneImages):
    """The images of a dataset that does not use COCO's: scenes of their own, in a folder of their own.

    `draw` is the stream of draws of a purpose and item, apart from those of other albums and of the world.
    """

    def __init__(self, world: World, name: str, folder: str, size: int):
        super().__init__(world.settings)
        self.folder, self._world, self._name, self._size = folder, world, name, size

    def __len__(self) -> int:
        return self._size

    def draw(self, purpose: str, number: int | str) -> RandomStream:
        """The stream of draws for one purpose and item of this album."""
        return self._world.draw(f"{self._name} {purpose}", number)

    def image_id(self, number: int) -> str:
        """The id of an image: a number without leading zeros, so that one may be the beginning of another."""
        return str(1 + 3 * number + self.draw("id", number).below(3))

    def path(self, number: int) -> str:
        """Where an image lies below the data path."""
        return f"{self.folder}/{self.image_id(number)}.jpg"
