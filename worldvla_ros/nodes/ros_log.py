# SPDX-License-Identifier: Apache-2.0
"""What the parts without ROS log, by Python's logging, in the log of ROS."""

import logging

from rclpy.logging import get_logger

PACKAGE = 'worldvla_ros'


class RosHandler(logging.Handler):
    """Passes records on to the ROS logger of their name."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record; rclpy wants a line of its own for each severity."""
        logger, text = get_logger(record.name), record.getMessage()
        if record.levelno >= logging.ERROR:
            logger.error(text)
        elif record.levelno >= logging.WARNING:
            logger.warning(text)
        elif record.levelno >= logging.INFO:
            logger.info(text)
        else:
            logger.debug(text)


def log_to_ros() -> None:
    """Send all records of this package to ROS, which filters them by its own level."""
    logger = logging.getLogger(PACKAGE)
    if not any(isinstance(handler, RosHandler) for handler in logger.handlers):
        logger.addHandler(RosHandler())
    logger.setLevel(logging.DEBUG)
