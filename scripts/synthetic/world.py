"""The images of the miniature: scene, name and path of image number n.

Everything is a pure function of the seed and the number, so the writers of raw formats share no state and can run in
any order.
"""

from abc import ABC, abstractmethod
from functools import cache

from scripts.config.miniature import MiniatureConfig
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.scenes import Scene, draw_scene, jpeg, render

IMAGE_FOLDER = "coco/train2017"
_PARTNERS = 500
"""The partner of an image is one of this many images before it, so adding images does not change earlier pairs."""


class SceneImages(ABC):
    """Scenes and their images by number."""

    def __init__(self, settings: MiniatureConfig) -> None:
        self.settings = settings
        self.scene = cache(self._scene)

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def draw(self, purpose: str, number: int | str) -> RandomStream:
        """The random stream for a purpose and an item."""

    def _scene(self, number: int) -> Scene:
        return draw_scene(self.draw("scene", number), self.settings)

    def image(self, number: int) -> bytes:
        """Image `number` as JPEG."""
        return jpeg(render(self.scene(number), self.draw("pixels", number), self.settings.image_size))


class World(SceneImages):
    """The images that take the place of COCO's."""

    def __init__(self, settings: MiniatureConfig) -> None:
        super().__init__(settings)
        self.coco_id = cache(self._coco_id)

    def __len__(self) -> int:
        return self.settings.images

    def draw(self, purpose: str, number: int | str) -> RandomStream:
        """The random stream for a purpose and an item."""
        return RandomStream(self.settings.seed, purpose, number)

    def _coco_id(self, number: int) -> int:
        """A number like COCO's: increasing, with gaps."""
        return 100 * number + 1 + self.draw("coco id", number).below(100)

    def file_name(self, number: int) -> str:
        """The file name of an image."""
        return f"{self.coco_id(number):012d}.jpg"

    def partner(self, number: int, pair: int) -> int | None:
        """An earlier image to compare image `number` with; the first image has none."""
        window = min(number, _PARTNERS)
        return number - 1 - self.draw("partner", f"{number}/{pair}").below(window) if window else None


class Album(SceneImages):
    """The images of a dataset that does not use COCO's: separate scenes in a separate folder.

    Args:
        world: whose settings and seed are used.
        name: makes the random streams of the album differ from those of other albums.
        folder: of the images, below the data path.
        size: number of images.
    """

    def __init__(self, world: World, name: str, folder: str, size: int) -> None:
        super().__init__(world.settings)
        self.folder, self._world, self._name, self._size = folder, world, name, size

    def __len__(self) -> int:
        return self._size

    def draw(self, purpose: str, number: int | str) -> RandomStream:
        """The random stream for a purpose and an item of this album."""
        return self._world.draw(f"{self._name} {purpose}", number)

    def image_id(self, number: int) -> str:
        """The id of an image: a number without leading zeros, so that an id may be the prefix of another."""
        return str(1 + 3 * number + self.draw("id", number).below(3))

    def path(self, number: int) -> str:
        """The path of an image below the data path."""
        return f"{self.folder}/{self.image_id(number)}.jpg"
