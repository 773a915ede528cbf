"""What a site and a network take on a provider, and the cache of it.

It does not know what accuracy is.
"""

from onnx_pointwise.latency.cache import CacheInfo, LatencyCache, cache_info, clear_cache
from onnx_pointwise.latency.kernels import SiteLatency, site_latencies
from onnx_pointwise.latency.network import Measured, NetworkLatency, Timing, network_latency

__all__ = [
    "CacheInfo",
    "LatencyCache",
    "Measured",
    "NetworkLatency",
    "SiteLatency",
    "Timing",
    "cache_info",
    "clear_cache",
    "network_latency",
    "site_latencies",
]
