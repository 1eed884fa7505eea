# SPDX-License-Identifier: Apache-2.0
"""The other end of the policy node's topics for tests: camera, operator and robot in one node."""

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
import numpy as np
import rclpy
from rclpy.action import ActionClient
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger

from worldvla_ros.action import RunTask
from worldvla_ros.datatypes import Frame
from worldvla_ros.msg import ActionChunk, DeltaAction, PolicyStatus
from worldvla_ros.nodes.conversions import frame_to_image
from worldvla_ros.srv import GetActionChunk

NODE = '/worldvla_policy'
TASK = 'pick up the milk and place it in the basket'
RATE = 50.0  # [Hz]
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def overrides(**values):
    """Parameters of a node that is quick to test; `control__rate=1.0` sets control.rate."""
    values = {'backend': 'mock', 'control__rate': RATE, 'obs__tolerance': 0.005,
              'status_rate': 20.0, **values}
    return [Parameter(name.replace('__', '.'), value=value) for name, value in values.items()]


def noise(number, shape=(64, 64, 3)):
    """Return a picture of a shape (H, W, C) that differs from all others."""
    return np.random.default_rng(number).integers(1, 255, shape, np.uint8)


def picture(client, image, encoding='rgb8'):
    """Make an Image message of now from (H, W, C) uint8."""
    message = Image(height=image.shape[0], width=image.shape[1], encoding=encoding,
                    step=image.shape[1] * image.shape[2], data=image.tobytes())
    message.header.stamp = client.now()
    return message


def is_zero(action):
    """Whether a DeltaAction moves nothing."""
    return not any((action.translation.x, action.translation.y, action.translation.z,
                    action.rotation_vector.x, action.rotation_vector.y, action.rotation_vector.z))


def send_goal(node, tasks, goal, wait_for, on_feedback=None):
    """Send a goal by the thread that spins the node; returns its handle.

    From another thread rclpy ignores an answer that comes before `send_goal_async` returns.
    """
    asked = node.executor.create_task(tasks.send_goal_async, goal, on_feedback)
    wait_for(lambda: asked.done() and asked.result().done())
    return asked.result().result()


class PolicyClient:
    """
    Everything that arrives is kept in lists, in order.

    :param spin: fixture that spins a node
    :param wait_for: fixture that waits for a predicate
    """

    def __init__(self, context, spin, wait_for):
        self.node = node = rclpy.create_node('client', context=context,
                                             start_parameter_services=False)
        self.wait_for = wait_for
        self.actions, self.chunks, self.statuses, self.diagnostics = [], [], [], []
        self.twists, self.followed = [], []
        for kind, topic, inbox, qos in (
                (DeltaAction, f'{NODE}/action', self.actions, 100),
                (ActionChunk, f'{NODE}/action_chunk', self.chunks, 100),
                (PolicyStatus, f'{NODE}/status', self.statuses, 100),
                (DiagnosticArray, '/diagnostics', self.diagnostics, 100),
                (TwistStamped, f'{NODE}/delta_twist_cmds', self.twists, 100),
                (String, f'{NODE}/active_instruction', self.followed, LATCHED)):
            node.create_subscription(kind, topic, inbox.append, qos)
        self.images = node.create_publisher(Image, 'image', qos_profile_sensor_data)
        self.compressed = node.create_publisher(CompressedImage, 'image/compressed',
                                                qos_profile_sensor_data)
        self.poses = node.create_publisher(PoseStamped, 'ee_pose', qos_profile_sensor_data)
        self.instructions = node.create_publisher(String, f'{NODE}/instruction', 10)
        self.estops = node.create_publisher(Bool, f'{NODE}/estop', 10)
        self.tasks = ActionClient(node, RunTask, f'{NODE}/run_task')
        self._clients = {}
        self._shots = 0
        self.shoot = None  # number -> message, or None while the camera is off
        node.create_timer(1.0 / RATE, self._publish_image)
        spin(node)

    def now(self):
        """Stamp of now."""
        return self.node.get_clock().now().to_msg()

    def camera_on(self):
        """Let the camera deliver noise."""
        self.shoot = lambda number: frame_to_image(
            Frame(noise(number), self.node.get_clock().now().nanoseconds), 'camera')

    def _publish_image(self):
        if self.shoot is not None:
            self._shots += 1
            message = self.shoot(self._shots)
            (self.images if isinstance(message, Image) else self.compressed).publish(message)

    def take_away(self, publisher):
        """Destroy a publisher in the thread that spins: a wait set may just hold its events."""
        gone = self.node.executor.create_task(self.node.destroy_publisher, publisher)
        self.wait_for(gone.done)

    def instruct(self, text=TASK):
        """Publish an instruction, once somebody listens."""
        self.wait_for(self.instructions.get_subscription_count)
        self.instructions.publish(String(data=text))

    def estop(self, pressed):
        """Publish the state of the e-stop."""
        self.wait_for(self.estops.get_subscription_count)
        self.estops.publish(Bool(data=pressed))

    def ask(self, kind, name, request):
        """Send a request; returns the future of the response."""
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = self.node.create_client(kind, f'{NODE}/{name}')
        self.wait_for(client.service_is_ready)
        return client.call_async(request)

    def call(self, kind, name, request):
        """Call a service and return its response."""
        future = self.ask(kind, name, request)
        self.wait_for(future.done)
        return future.result()

    def trigger(self, name):
        """Call a Trigger service."""
        return self.call(Trigger, name, Trigger.Request())

    def pause(self, paused):
        """Call the service ~/pause."""
        return self.call(SetBool, 'pause', SetBool.Request(data=paused))

    def ask_chunk(self, instruction=''):
        """Call ~/get_action_chunk; returns the future of the response."""
        return self.ask(GetActionChunk, 'get_action_chunk',
                        GetActionChunk.Request(instruction=instruction))

    def transition(self, name):
        """Ask for a lifecycle transition; returns whether it succeeded."""
        number = getattr(Transition, f'TRANSITION_{name.upper()}')
        request = ChangeState.Request(transition=Transition(id=number))
        return self.call(ChangeState, 'change_state', request).success

    def state(self):
        """Return the label of the lifecycle state."""
        return self.call(GetState, 'get_state', GetState.Request()).current_state.label

    def wait_until_active(self):
        """Wait until the node runs and hears."""
        self.wait_for(lambda: self.call(
            GetState, 'get_state',
            GetState.Request()).current_state.id == State.PRIMARY_STATE_ACTIVE)
        self.wait_for(lambda: self.actions)

    def next(self, inbox, predicate=lambda message: True):
        """Wait for the first message after now that fulfils a predicate."""
        start = len(inbox)
        return self.wait_for(lambda: next(filter(predicate, inbox[start:]), None))

    def command(self, sequence, step):
        """Wait for the command from one step of one chunk."""
        return self.wait_for(lambda: next((
            action for action in self.actions
            if (action.chunk_sequence, action.chunk_step) == (sequence, step)), None))

    def next_motion(self):
        """Wait for a command that moves the robot."""
        return self.next(self.actions, lambda action: not is_zero(action))

    def next_halt(self, reason):
        """Wait for zero motion with a reason, DeltaAction.REASON_*."""
        return self.next(self.actions,
                         lambda action: is_zero(action) and action.reason == reason)

    def next_status(self, predicate):
        """Wait for a status that fulfils a predicate."""
        return self.next(self.statuses, predicate)

    def send_goal(self, instruction=TASK, **limits):
        """Send a goal; returns its handle."""
        self.wait_for(self.tasks.server_is_ready)
        self.feedback = []
        return send_goal(self.node, self.tasks, RunTask.Goal(instruction=instruction, **limits),
                         self.wait_for,
                         lambda message: self.feedback.append(message.feedback))

    def result_of(self, goal):
        """Wait for (status, result) of a goal."""
        future = goal.get_result_async()
        self.wait_for(future.done)
        return future.result().status, future.result().result
