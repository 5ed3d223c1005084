"""Zip archives, with the members' total size checked before anything is unpacked."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from jaxkd.files import limits

_CHUNK = 1 << 20
_ENCRYPTED = 0x1


class Archive:
    """The members of a zip, by name, in the archive's order."""

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self._archive = archive
        self._members = members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """Bytes of a member, unpacked."""
        return self._members[name].file_size

    def read(self, name: str) -> bytearray:
        """The bytes of a member; their checksum is compared.

        Raises:
          ValueError: there is no such member, or it is shorter than it says.
          zipfile.BadZipFile: checksum mismatch.
        """
        if name not in self._members:
            raise ValueError(f"the archive has no member {name[: limits.NAME_LENGTH]!r}")
        contents = bytearray()
        with self._archive.open(self._members[name]) as member:
            while chunk := member.read(_CHUNK):
                contents += chunk
        if len(contents) != self.size(name):
            raise ValueError(f"member {name!r} ends after {len(contents)} of {self.size(name)} bytes")
        return contents


@contextlib.contextmanager
def opened(file: BinaryIO) -> Iterator[Archive]:
    """Opens a zip and checks what it declares.

    Raises:
      ValueError: its members are too many, too large for the file, encrypted or packed in an unusual way.
      zipfile.BadZipFile: it is damaged.
    """
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if len(infos) > limits.ZIP_MEMBERS:
            raise ValueError(f"the archive has {len(infos)} members; at most {limits.ZIP_MEMBERS} are read")
        members = {info.filename: info for info in infos}
        if len(members) != len(infos):
            raise ValueError("the archive has two members of one name")
        for info in infos:
            if info.flag_bits & _ENCRYPTED or info.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise ValueError(
                    f"member {info.filename!r} is encrypted or packed by another method than zlib"
                )
            if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
                raise ValueError(f"member {info.filename!r} has two sizes")
        # Members that share bytes would add up to more than the file.
        if (packed := sum(info.compress_size for info in infos)) > size:
            raise ValueError(f"the archive's members claim {packed:,} bytes of a file of {size:,}")
        most = limits.UNPACKED_BYTES + limits.UNPACKED_RATIO * size
        if (unpacked := sum(info.file_size for info in infos)) > most:
            raise ValueError(
                f"the archive unpacks to {unpacked:,} bytes; at most {most:,} are read from a file of "
                f"{size:,} (save it uncompressed to go beyond)"
            )
        yield Archive(archive, members)
