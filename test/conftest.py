# SPDX-License-Identifier: Apache-2.0
"""What holds for every test."""

import signal

from hypothesis import HealthCheck, settings

# Both measure the machine: they fail where other programs take the processor.
settings.register_profile('any machine', deadline=None,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('any machine')

# A shell script's background job, as CI may be, ignores both, and every program that a test starts
# would, too, also the Ctrl-C that the test sends it.
for _number, _action in ((signal.SIGINT, signal.default_int_handler),
                         (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _action)
