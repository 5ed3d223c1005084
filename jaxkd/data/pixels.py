"""One image, whatever it came as: uint8 `[H, W, C]`, grey or colour, or refused with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np

# Pillow's modes that hold eight bits a channel, and the channels that they become.
_GREY, _COLOUR = ("1", "L", "LA", "La"), ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
SIXTEEN_BITS = (
    "has 16 bits a channel, and images are 8 bits here; convert it, with (image >> 8).astype('uint8') if "
    "its values fill the 16 bits"
)


def channels_of(image: Any) -> int:
    """How many channels an image has as pixels: 1, 3, or 4 for an array that has 4.

    Raises:
      ValueError: it is no image of eight bits a channel.

    >>> channels_of(np.zeros((2, 2), np.uint8)), channels_of(np.zeros((2, 2, 3), np.uint8))
    (1, 3)
    """
    if (mode := getattr(image, "mode", None)) is not None and hasattr(image, "convert"):
        if mode not in _GREY + _COLOUR:
            reason = f"is of Pillow's mode {mode!r}, which is not 8 bits a channel"
            raise ValueError(SIXTEEN_BITS if str(mode).startswith("I") else f"{reason}; convert it to RGB")
        return 1 if mode in _GREY else 3
    array = np.asarray(image)
    if array.dtype != np.uint8:
        if array.dtype == np.uint16:
            raise ValueError(SIXTEEN_BITS)
        raise ValueError(f"must be uint8 or a Pillow image, got {array.dtype}{_hint(array.dtype)}")
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(f"must be [H, W] or [H, W, C] of 1, 3 or 4 channels, got {list(array.shape)}")
    return channels


def as_pixels(image: Any, channels: int) -> np.ndarray:
    """An image as uint8 `[H, W, C]`.

    Args:
      image: uint8 `[H, W]` or `[H, W, C]`, or an image of Pillow; palettes become colours, an alpha channel
        of Pillow's is dropped.
      channels: C; grey becomes colour, and colour is not made grey.

    Raises:
      ValueError: it is no image of eight bits a channel, or of more channels.

    >>> as_pixels(np.full((1, 2), 7, np.uint8), 3).tolist()
    [[[7, 7, 7], [7, 7, 7]]]
    """
    own = channels_of(image)
    if own != channels and own != 1:
        raise ValueError(f"has {own} channels, and the other images have {channels}")
    if hasattr(image, "convert"):
        image = image.convert("L" if own == 1 else "RGB")
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    return array if own == channels else np.repeat(array, channels, axis=-1)


def not_uint8(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """What to say of images `[N, H, W, C]` of another type or rank."""
    return f"images must be uint8 [N, H, W, C], got {dtype} {list(shape)}{_hint(dtype)}"


def _hint(dtype: np.dtype) -> str:
    """How to make uint8 pixels of another type."""
    if dtype == np.uint8:
        return ""
    if dtype == np.uint16:
        return "; of 16 bits, take the upper 8 with (images >> 8).astype('uint8')"
    if dtype.kind in "iu":
        return "; if its values reach from 0 to 255, convert it with images.astype('uint8')"
    if dtype.kind == "f":
        return "; convert pixels in [0, 1] with (255 * images).round().astype('uint8')"
    return ""
