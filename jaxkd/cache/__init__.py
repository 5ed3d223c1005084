"""Caches of a teacher's logits: their files, the computing of them, and where a run takes them from."""

from jaxkd.cache.build import build_cache
from jaxkd.cache.options import CacheConfig
from jaxkd.cache.store import TeacherCache

__all__ = ["CacheConfig", "TeacherCache", "build_cache"]
