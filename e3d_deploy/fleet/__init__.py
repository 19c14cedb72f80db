"""Client that spreads streams over several Triton servers, and moves them when a server is lost.

from e3d_deploy.fleet import Fleet

with Fleet(["10.0.0.1:8001", "10.0.0.2:8001"], model="kth") as fleet:
    stream = fleet.stream("camera-7")
    for picture in camera:                          # uint8 [H, W, C]
        future = stream.push(picture, horizon=10)   # uint8 [10, H, W, C]
"""

from e3d_deploy.fleet.fleet import Fleet
from e3d_deploy.fleet.stream import Stream

__all__ = ["Fleet", "Stream"]
