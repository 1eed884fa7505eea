# SPDX-License-Identifier: Apache-2.0
"""What holds for every test."""

from hypothesis import HealthCheck, settings

# Both measure the machine: they fail where other programs take the processor.
settings.register_profile('any machine', deadline=None,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('any machine')
