# SPDX-License-Identifier: Apache-2.0
"""What the policy node says of itself, without the node: see the others for what topics carry."""

from control_loop import PERIOD, SECOND, lockstep
from diagnostic_msgs.msg import DiagnosticStatus
import pytest
from std_msgs.msg import Header

from worldvla_ros.msg import PolicyStatus
from worldvla_ros.nodes.reporting import Reporter
from worldvla_ros.safety.limits import Reason


class Reports:
    """Reports of one controller in lockstep, one a second."""

    def __init__(self):
        self.loop = lockstep()
        self.reporter = Reporter(self.loop.controller)
        self.steady_ns = 5 * SECOND

    def see(self):
        self.loop.see()
        self.reporter.camera.frames.add()
        assert any(self.loop.answer() for _ in range(2))  # the first asks for a chunk
        self.loop.now += PERIOD

    def wait(self, seconds):
        """Return the last report and the levels of camera and control beside it."""
        for _ in range(seconds):
            self.steady_ns += SECOND
            status = self.reporter.status(Header(), self.loop.now, self.steady_ns)
        told = self.reporter.diagnostics(self.loop.now, status, 'node').status
        levels = {one.name: one.level for one in told}
        return status, levels['node: camera'], levels['node: control']


def test_a_simulator_in_lockstep_that_sends_no_more_frames_is_told():
    """Time stands still there, so that no frame ever is too old."""
    reports = Reports()
    reports.wait(1)
    reports.see()
    status, camera, control = reports.wait(10)
    assert (status.state, camera, control) == (
        PolicyStatus.STATE_RUNNING, DiagnosticStatus.OK, DiagnosticStatus.OK)
    status, camera, control = reports.wait(2)
    assert (status.state, camera, control) == (
        PolicyStatus.STATE_HOLDING, DiagnosticStatus.ERROR, DiagnosticStatus.ERROR)
    assert status.halt_reason and 'no frame for 10 s' in status.halt_text
    reports.see()
    assert reports.wait(1)[0].state == PolicyStatus.STATE_RUNNING


@pytest.mark.parametrize('stop', [lambda loop: loop.controller.set_instruction(''),
                                  lambda loop: loop.controller.set_paused(True)])
def test_without_work_to_do_a_silent_simulator_is_no_fault(stop):
    reports = Reports()
    reports.wait(1)
    reports.see()
    stop(reports.loop)
    reports.loop.controller.idle(reports.loop.now, reports.loop.now)
    status = reports.wait(30)[0]
    assert status.state in (PolicyStatus.STATE_IDLE, PolicyStatus.STATE_PAUSED)


def test_what_is_counted_since_configure_is_told_while_inactive_too():
    """Pins a bug: the counts fell to zero."""
    reports = Reports()
    reports.loop.controller.schedule.underruns = 3
    status = reports.reporter.inactive_status(Header(), Reason.INACTIVE)
    assert status.underruns == 3
    assert status.dropped_actions == reports.loop.controller.schedule.dropped_actions


def test_a_rate_counts_from_the_activation_on():
    """Pins a bug: the pause before counted, too, and the control rate read as next to nothing."""
    reports = Reports()
    reports.wait(1)
    reports.steady_ns += 100 * SECOND
    reports.reporter.restart(reports.steady_ns)
    for _ in range(20):
        reports.reporter.commands.add()
    assert reports.wait(1)[0].control_rate == pytest.approx(20.0)
