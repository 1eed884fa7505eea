# SPDX-License-Identifier: Apache-2.0
"""What the parts without ROS log, by Python's logging, in the log of ROS."""

import logging

from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.logging import get_logger

PACKAGE = 'worldvla_ros'


class RosHandler(logging.Handler):
    """Passes records on to a ROS logger below the node's, which /rosout and --log-level know."""

    node: RcutilsLogger | None = None  # its logger, once there is one

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record; rclpy wants a line of its own for each severity."""
        logger = (get_logger(record.name) if self.node is None
                  else self.node.get_child(record.name.removeprefix(f'{PACKAGE}.')))
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            logger.error(text)
        elif record.levelno >= logging.WARNING:
            logger.warning(text)
        elif record.levelno >= logging.INFO:
            logger.info(text)
        else:
            logger.debug(text)


def log_to_ros() -> RosHandler:
    """Send all records of this package to ROS, which filters them by its own level."""
    logger = logging.getLogger(PACKAGE)
    handler = next((one for one in logger.handlers if isinstance(one, RosHandler)), RosHandler())
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    return handler
