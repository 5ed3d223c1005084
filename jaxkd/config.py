"""The options of runs and of caches, for calls from Python; every field can be a keyword instead.

jaxkd.distill(DistillConfig(teacher="digits-resnet20", epochs=3))
jaxkd.distill(teacher="digits-resnet20", epochs=3)
"""

from jaxkd.cache.options import CacheConfig
from jaxkd.runs.config import DistillConfig, GeneratorConfig, RunConfig, TrainConfig

__all__ = ["CacheConfig", "DistillConfig", "GeneratorConfig", "RunConfig", "TrainConfig"]
