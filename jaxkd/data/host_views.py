"""What is done to large images on the host, one at a time, since they differ in size: crop and resize.

Pure functions of (seed, epoch, example id), like the views that `jaxkd.data.augment` makes on devices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of an image, resized to a square, mirrored at random.

    The recipe of the ImageNet literature (Szegedy et al. 2015, arXiv 1409.4842, section 6), with the draw of
    torchvision: ten attempts at an area and an aspect ratio that fit, then the centre.  Its numbers are raw
    Philox words; NumPy guarantees that their values never change.

    Attributes:
      size: height and width of the result, pixels.
      area: smallest and largest part of the image's area.
      ratio: smallest and largest width over height.
      flip: whether half of the results are mirrored.
    """

    size: int = 224
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __call__(self, image: np.ndarray, *, seed: int, epoch: int, example_id: int) -> np.ndarray:
        """Maps an image, uint8 `[H, W, C]`, to uint8 `[size, size, C]`.

        >>> image = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
        >>> RandomResizedCrop(4)(image, seed=0, epoch=1, example_id=7).shape
        (4, 4, 3)
        """
        # The order of the examples has the same key; the counter's other words keep the two apart.
        words = np.random.Philox(key=[seed, epoch], counter=[0, 0, 1, example_id]).random_raw(41)
        drawn = iter((words >> np.uint64(11)) * 2.0**-53)  # uniform in [0, 1)
        mirrored = self.flip and next(drawn) < 0.5
        box = self._box(image.shape[0], image.shape[1], drawn)
        result = _resize(image, box, (self.size, self.size))
        return np.ascontiguousarray(result[:, ::-1]) if mirrored else result

    def _box(self, height: int, width: int, drawn: Iterator[float]) -> tuple[int, int, int, int]:
        """Left, upper, right, lower edge."""
        low, high = np.log(self.ratio)
        for _ in range(10):
            area = height * width * (self.area[0] + next(drawn) * (self.area[1] - self.area[0]))
            ratio = math.exp(low + next(drawn) * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            left, upper = next(drawn), next(drawn)
            if 0 < w <= width and 0 < h <= height:
                left, upper = int(left * (width - w + 1)), int(upper * (height - h + 1))
                return left, upper, left + w, upper + h
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        left, upper = (width - w) // 2, (height - h) // 2
        return left, upper, left + w, upper + h


@dataclasses.dataclass(frozen=True)
class CentralCrop:
    """The centre of an image: what evaluation sees.

    Attributes:
      size: height and width of the result, pixels.
      resize: the shorter side before the crop, pixels.
    """

    size: int = 224
    resize: int = 256

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Maps an image, uint8 `[H, W, C]`, to uint8 `[size, size, C]`.

        >>> CentralCrop(size=2, resize=4)(np.zeros((8, 6, 3), np.uint8)).shape
        (2, 2, 3)
        """
        height, width = image.shape[:2]
        scale = self.resize / min(height, width)
        w, h = max(self.size, round(width * scale)), max(self.size, round(height * scale))
        whole = _resize(image, (0, 0, width, height), (w, h))
        left, upper = (w - self.size) // 2, (h - self.size) // 2
        return whole[upper : upper + self.size, left : left + self.size]


def _resize(image: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Bilinear, with antialiasing; `size` is width and height."""

    def resized(part: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BILINEAR, box=box))

    if image.shape[-1] == 3:
        return resized(image)
    # One by one: Pillow takes a fourth channel for opacity, and scales the others by it.
    return np.stack([resized(image[..., channel]) for channel in range(image.shape[-1])], axis=-1)
