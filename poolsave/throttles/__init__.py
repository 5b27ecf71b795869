"""Throttles: what slows a run down while others need the database. For the option `throttle`.

Example:
    >>> from poolsave import Options
    >>> from poolsave.throttles import Hours, Pace
    >>> Options(throttle=[Hours("22:00-06:00"), Pace(500)]).throttle
    (Hours('22:00-06:00'), Pace(500))
"""

from .hours import Hours
from .pace import Pace
from .replica_lag import ReplicaLag
from .server_load import ServerLoad

__all__ = ["Hours", "Pace", "ReplicaLag", "ServerLoad"]
